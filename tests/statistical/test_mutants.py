"""The tests notice what they are for."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_mutant_is_killed() -> None:
    script = Path(__file__).parents[1] / "mutants.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
