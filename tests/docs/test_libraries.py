"""The trainings with other libraries: which there are, that no other run collects them, and the tables they fill."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

CLIENTS = Path(__file__).parents[1] / "clients"
ROOT = CLIENTS.parents[1]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with a page of two tables."""
    monkeypatch.syspath_prepend(CLIENTS)
    import page

    path = tmp_path / "libraries.md"
    path.write_text(
        "# Libraries\n\n<!-- made by one -->\n\n| a |\n|---|\n| 1 |\n\nText\n\n<!-- made by two -->\n\n\nEnd\n"
    )
    monkeypatch.setattr(page, "PAGE", path)
    return page


def test_every_library_has_a_file_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(CLIENTS)
    import run

    assert {run.test_file(name) for name in run.LIBRARIES} == set(CLIENTS.glob("test_*.py"))


@pytest.mark.parametrize("options", [["-m", "not slow"], ["-m", "slow"], []])
def test_runs_that_do_not_ask_collect_none(options: list[str]) -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *options, str(CLIENTS)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stdout + done.stderr


def test_a_table_is_replaced_and_the_rest_of_the_page_is_not(page: ModuleType) -> None:
    page.write("two", ("b", "c"), ["| 2 | 3 |"])
    page.write("one", ("a",), [*page.rows("one"), "| 4 |"])
    assert page.PAGE.read_text() == (
        "# Libraries\n\n<!-- made by one -->\n\n| a |\n|---|\n| 1 |\n| 4 |\n\nText\n\n"
        "<!-- made by two -->\n\n| b | c |\n|---|---|\n| 2 | 3 |\n\nEnd\n"
    )
    with pytest.raises(SystemExit, match="no place for a table of three"):
        page.rows("three")
