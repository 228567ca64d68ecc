"""The Pythia example without a network: a model of random weights, on Python's own sources."""

import sys
from pathlib import Path

import pytest

import bif_lightning as bl

pytest.importorskip("transformers", reason="transformers is not installed (extra 'language')")
import pythia


@pytest.mark.slow
def test_random_weights_give_a_dump_of_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--random-init --sequences 5 --queries 2 --tokens 12 --chains 2 --draws 8 --batch-size 4 --device cpu"
    monkeypatch.setattr(sys, "argv", ["pythia.py", *options.split(), "--out", str(tmp_path)])
    pythia.main()
    stored = bl.open_tokens(tmp_path / "step=000000000.h5")
    assert len(stored.train) == 5 * 11
    assert len(stored.query) == 2 * 11
    assert len(stored.texts("train", 0) or []) == 12
    assert "step 0: " in capsys.readouterr().out
