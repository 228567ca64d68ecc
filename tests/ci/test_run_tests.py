"""The script that runs the tests in CI names what fails once, and fails for what fails again or is skipped."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

CI = Path(__file__).parents[2] / ".ci"

FLAKY = """
from pathlib import Path
def test_fails_once():
    first, mark = not Path("seen").exists(), Path("seen").touch()
    assert not first
"""
FAILING = "def test_fails():\n    assert False\n"
SKIPPED = "import pytest\ndef test_skips():\n    pytest.skip('no such device')\n"
PASSING = "def test_passes():\n    pass\n"
BROKEN = "import no_such_module\n"
MANY = "import pytest\n@pytest.mark.parametrize('n', range(11))\ndef test_fails(n):\n    assert False\n"
FIXTURE = "import pytest\n@pytest.fixture\ndef bad():\n    raise OSError\ndef test_errs(bad):\n    pass\n"


def run(folder: Path, skips: str = "", **files: str) -> subprocess.CompletedProcess[str]:
    """The script over a suite of these files, one `test_<name>.py` each."""
    (folder / ".ci").mkdir()
    for name in ("run_tests.py", "outcomes.py"):
        shutil.copy(CI / name, folder / ".ci")
    (folder / ".ci" / "skips.txt").write_text(skips)
    (folder / "pytest.ini").write_text("[pytest]\n")
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text)
    command = [sys.executable, ".ci/run_tests.py", "-q", "-p", "xdist.plugin", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_flaky_test_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    done = run(tmp_path, flaky=FLAKY, passing=PASSING)
    assert done.returncode == 0, done.stdout
    assert "== FLAKY: failed once, and passed three times alone\n   test_flaky.py::test_fails_once\n" in done.stdout
    assert done.stdout.count("1 passed") == 4  # once beside the failure, then three times alone


def test_what_fails_again_fails_the_run(tmp_path: Path) -> None:
    done = run(tmp_path, flaky=FLAKY, failing=FAILING, fixture=FIXTURE)
    assert done.returncode == 1
    assert (
        "== FLAKY: failed once, and passed three times alone\n   test_flaky.py::test_fails_once\n\n"
        "== FAILED, and again when run alone\n   test_failing.py::test_fails\n   test_fixture.py::test_errs\n"
    ) in done.stdout


def test_a_skip_passes_where_it_is_listed_alone(tmp_path: Path) -> None:
    listed = "# devices\ntest_listed.py::test_skips: CI has no such device\n"
    done = run(tmp_path, listed, listed=SKIPPED, other=SKIPPED, passing=PASSING)
    assert done.returncode == 1
    assert done.stdout.endswith("in .ci/skips.txt\n   test_other.py::test_skips: no such device\n")
    (tmp_path / "again").mkdir()
    assert run(tmp_path / "again", listed, listed=SKIPPED).returncode == 0


def test_a_skip_is_listed_with_its_reason(tmp_path: Path) -> None:
    done = run(tmp_path, "test_skipped.py::test_skips\n", skipped=SKIPPED)
    assert done.returncode == 1
    assert "a line is `name of the test: reason`" in done.stderr


def test_what_cannot_be_collected_fails_the_run(tmp_path: Path) -> None:
    assert run(tmp_path, broken=BROKEN, passing=PASSING).returncode == 2


def test_many_failures_are_not_run_again(tmp_path: Path) -> None:
    done = run(tmp_path, many=MANY)
    assert done.returncode == 1
    assert done.stdout.count("11 failed") == 1
