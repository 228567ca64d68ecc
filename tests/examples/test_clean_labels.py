"""The example from start to end, on fewer digits and steps."""

import re
import sys
from pathlib import Path

import clean_labels
import pytest


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_influence_calls_harmful_is_better_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The change of the test loss is below 0 by three of its standard errors, and that of the helpful above it."""
    monkeypatch.setattr(clean_labels, "TRAIN", 500)
    monkeypatch.setattr(clean_labels, "QUERIES", 200)
    monkeypatch.setattr(clean_labels, "REMOVED", 0.1)  # as many as have wrong labels
    monkeypatch.setattr(clean_labels, "STEPS", [60, 200])
    monkeypatch.setattr(sys, "argv", ["clean_labels.py", "--out", str(tmp_path / "out"), "--seeds", "3"])
    clean_labels.main()
    printed = capsys.readouterr().out
    changes = {
        name.strip(): (float(value), float(error))
        for name, value, error in re.findall(r"^ *(\S[^\d\n]*?)  \d\.\d+ ± .* change (\S+) ± (\S+)$", printed, re.M)
    }
    assert {"nothing", "random", "influence", "influence, helps", "loss", "area under margin"} <= set(changes)
    harmful, helpful = changes["influence"], changes["influence, helps"]
    assert harmful[0] < -3 * harmful[1], printed
    assert helpful[0] > 0, printed
    assert (tmp_path / "out" / "clean_labels.png").stat().st_size > 10_000
    assert len(list((tmp_path / "out" / "bif").glob("step=*.h5"))) == 2
