"""`bif-lightning attribute`: from a shell, as a user has checkpoints, a module and data."""

import json
import re
from pathlib import Path

import pytest
import torch

import bif_lightning as bl
from bif_lightning.commands.cli import main

APP = """
import lightning as L
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(L.LightningModule):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def points():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    return TensorDataset(torch.randn(60, 4, generator=generator) + y[:, None], y)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(points(), batch_size=20)
"""
SETTINGS = """
sampler:
  class_path: bif_lightning.SGLD
  init_args: {step_size: 0.001, inverse_temperature: 50.0, localization: 50.0}
chains:
  class_path: bif_lightning.Chains
  init_args: {num_chains: 2, num_draws: 5, batch_size: 8}
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's module, settings, and checkpoints of three steps, one of them broken."""
    (tmp_path / "attribute_app.py").write_text(APP)
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import attribute_app

    saved = tmp_path / "saved"
    saved.mkdir()
    for step in (10, 40):
        torch.manual_seed(step)
        torch.save(
            {"global_step": step, "epoch": 1, "state_dict": attribute_app.Net().state_dict()}, saved / f"{step}.ckpt"
        )
    return tmp_path


ARGUMENTS = [
    "attribute", "saved", "--model", "attribute_app.Net", "--data", "attribute_app.points", "--train", "0:12",
    "--query", "50:56", "--settings", "settings.yaml", "--out", "out/bif", "--accelerator", "cpu",
]  # fmt: skip


def test_checkpoints_become_a_run(app: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(ARGUMENTS) == 0
    out = capsys.readouterr().out
    assert "2 dumps written, 0 already present" in out
    run = bl.open_run(app / "out" / "bif")
    assert dict(run.sizes)["train"] == 12
    assert dict(run.sizes)["query"] == 6
    assert list(run.step.values) == [10, 40]
    assert list(run.num_chains.values) == [2, 2]
    assert list((app / "out").glob("events.out.tfevents.*"))
    assert main(["show", "out/bif"]) == 0
    capsys.readouterr()
    assert main([*ARGUMENTS, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["present"] == [10, 40]


@pytest.mark.slow
def test_a_broken_checkpoint_is_exit_status_1_and_the_others_are_done(
    app: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (app / "saved" / "30.ckpt").write_bytes((app / "saved" / "10.ckpt").read_bytes()[:500])
    assert main(ARGUMENTS) == 1
    said = capsys.readouterr()
    assert "2 dumps written" in said.out
    assert "30.ckpt" in said.err


@pytest.mark.parametrize("spelling", ["--dry-run", "--dry_run"])
def test_a_dry_run_forecasts(app: Path, capsys: pytest.CaptureFixture[str], spelling: str) -> None:
    assert main([*ARGUMENTS, spelling, "--num-nodes", "1", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["expected_seconds"] > 0
    assert answer["expected_bytes"] > 0
    assert answer["planned"] == [10, 40]
    assert answer["expected_seconds_in_all"] == 2 * answer["expected_seconds"]
    assert not (app / "out").exists()


@pytest.mark.slow
def test_a_dry_run_says_what_is_left_and_what_all_of_it_takes(app: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ARGUMENTS, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 dumps to write, of steps 10, 40; 0 already present: out/bif\n")
    assert re.search(r"A checkpoint takes about .* s and .* a snapshot, .*; all of them take about [\d.]+ s\n", said)
    (app / "saved" / "40.ckpt").rename(app / "40.ckpt")
    assert main(ARGUMENTS) == 0
    (app / "40.ckpt").rename(app / "saved" / "40.ckpt")
    capsys.readouterr()
    assert main([*ARGUMENTS, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("1 dump to write, of step 40; 1 already present: out/bif\n")
    assert main(ARGUMENTS) == 0
    capsys.readouterr()
    assert main([*ARGUMENTS, "--dry-run"]) == 0
    assert capsys.readouterr().out == "0 dumps to write; 2 already present: out/bif\n"


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--train", "everything", "--train is 'everything'"),
        ("--train", "0:900", "only 60|has 60 examples"),
        ("--settings", "attribute_app.py", "is not valid YAML"),
        ("--out", "saved/10.ckpt/bif", "10.ckpt"),
        ("--model", "attribute_app.points", "is not a LightningModule"),
    ],
)
def test_wrong_arguments_are_exit_status_2(
    app: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, words: str
) -> None:
    arguments = list(ARGUMENTS)
    arguments[arguments.index(option) + 1] = value
    assert main(arguments) == 2
    assert re.search(words, capsys.readouterr().err)
