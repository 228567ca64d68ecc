"""The example from start to end, as a user runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "clean_labels.py"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_influence_calls_harmful_is_better_left_out(tmp_path: Path) -> None:
    """The change of the test loss is below 0 by three of its standard errors, and that of the helpful above it."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--out", str(tmp_path / "out"), "--seeds", "3"],
        check=False, capture_output=True, text=True, cwd=tmp_path, timeout=1150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    changes = {
        name.strip(): (float(value), float(error))
        for name, value, error in re.findall(r"^ *(\S[^\d\n]*?)  \d\.\d+ ± .* change (\S+) ± (\S+)$", done.stdout, re.M)
    }
    assert {"nothing", "random", "influence", "influence, helps", "loss", "area under margin"} <= set(changes)
    harmful, helpful = changes["influence"], changes["influence, helps"]
    assert harmful[0] < -3 * harmful[1], done.stdout
    assert helpful[0] > 0, done.stdout
    assert (tmp_path / "out" / "clean_labels.png").stat().st_size > 10_000
    assert len(list((tmp_path / "out" / "bif").glob("step=*.h5"))) == 5
