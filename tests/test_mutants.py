"""The tests notice what they are for."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.statistical

SCRIPT = Path(__file__).parents[0] / "mutants.py"


def test_every_mutant_fits_the_source() -> None:
    """That its patch still says something, and its tests are still there, is known long before the mutants are run."""
    script = runpy.run_path(str(SCRIPT))
    for one in script["MUTANTS"]:
        source = script["mutated"](script["ROOT"], one)
        compile(source, one.file, "exec")
        assert source != (script["ROOT"] / "bif_lightning" / one.file).read_text(), one.name
        for test in one.tests:
            assert (SCRIPT.parent / test).is_file(), f"{one.name}: {test}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_mutant_is_killed() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
