"""The tests notice what they are for."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.statistical

HERE = Path(__file__).parent
SCRIPTS = [HERE / "mutants.py", HERE / "device" / "mutants.py"]


@pytest.mark.parametrize("path", SCRIPTS, ids=["engine", "device"])
def test_every_mutant_fits_the_source(path: Path) -> None:
    """That its patch still says something, and its tests are still there, is known long before the mutants are run."""
    script = runpy.run_path(str(path))
    for one in script["MUTANTS"]:
        source = script["mutated"](script["ROOT"], one)
        compile(source, one.file, "exec")
        assert source != (script["ROOT"] / "bif_lightning" / one.file).read_text(), one.name
        for test in one.tests:
            file, _, name = test.partition("::")
            function = name.partition("[")[0].rpartition("::")[2]
            assert f"def {function}" in (HERE / file).read_text(), f"{one.name}: {test}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("path", SCRIPTS, ids=["engine", "device"])
def test_every_mutant_is_killed(path: Path) -> None:
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
