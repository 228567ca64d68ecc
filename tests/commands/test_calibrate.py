"""`bif-lightning calibrate`: from a checkpoint to a page and a YAML that the callback takes."""

import functools
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from PIL import Image

import bif_lightning as bl
from bif_lightning.calibration import grid
from bif_lightning.commands.cli import main
from bif_lightning.config import Sampler

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
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def points():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    return TensorDataset(torch.randn(60, 4, generator=generator) + y[:, None], y), "more"


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(points()[0], batch_size=20)


def losses(module, batch):
    return F.cross_entropy(module.net(batch[0]), batch[1], reduction="none")


number = 3
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's module, and a checkpoint of it after some training."""
    (tmp_path / "calibrate_app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.save({"state_dict": trained()}, tmp_path / "last.ckpt")
    torch.save(trained(), tmp_path / "plain.pt")
    return tmp_path


@functools.cache
def trained() -> dict[str, torch.Tensor]:
    """The weights of the user's module after some training."""
    import calibrate_app  # type: ignore[import-not-found]

    torch.manual_seed(0)
    net = calibrate_app.Net()
    inputs, targets = calibrate_app.points()[0].tensors
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net.net(inputs), targets).backward()
        optimizer.step()
    return net.state_dict()


@pytest.fixture
def small_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cells, one of which runs away, in place of 36."""
    for name, factors in (("STEPS", (1.0, 8.0)), ("PULLS", (1.0,)), ("TEMPERATURES", (1.0,))):
        monkeypatch.setattr(grid, name, factors)


@pytest.mark.usefixtures("small_grid")
def test_a_checkpoint_becomes_a_page_and_settings(app: Path, capsys: Any) -> None:
    arguments = ["calibrate", "last.ckpt", "--model", "calibrate_app.Net", "--data", "calibrate_app.points"]
    assert main([*arguments, "--out", "found", "--accelerator", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "Pilots:" in said
    assert "Choice: step_size" in said
    width, height = Image.open(app / "found.png").size
    assert width > 200
    assert height > 200
    parser = ArgumentParser()
    parser.add_argument("--sampler", type=Sampler | Literal["auto"] | None)  # as the callback has it
    parser.add_argument("--chains", type=bl.Chains)
    made = parser.instantiate_classes(parser.parse_object(yaml.safe_load((app / "found.yaml").read_text())))
    callback = bl.BIFCallback(train=[0, 1], sampler=made.sampler, chains=made.chains)
    assert callback.options.sampler.inverse_temperature >= 1e4


@pytest.mark.usefixtures("small_grid")
def test_a_configuration_of_lightning_cli_says_which_model_and_data(app: Path, capsys: Any) -> None:
    config = {
        "model": {"class_path": "calibrate_app.Net", "init_args": {"width": 6}},
        "data": {"class_path": "calibrate_app.Data"},
        "trainer": {"max_epochs": 3},
    }
    (app / "run.yaml").write_text(yaml.safe_dump(config))
    arguments = ["calibrate", "plain.pt", "--config", "run.yaml", "--loss", "calibrate_app.losses", "--json"]
    assert main([*arguments, "--accelerator", "cpu"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["sampler"]["kind"] == "SGLD"
    assert sum(cell["chosen"] for cell in answer["grid"]) == 1
    chosen = next(cell for cell in answer["grid"] if cell["chosen"])
    assert chosen["sampler"] == answer["sampler"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.ckpt", "--model", "calibrate_app.Net", "--data", "calibrate_app.points"], "missing.ckpt"),
        (["calibrate_app.py", "--model", "calibrate_app.Net", "--data", "calibrate_app.points"], "weights_only=True"),
        (["last.ckpt", "--data", "calibrate_app.points"], "model is missing: give --model"),
        (["last.ckpt", "--model", "calibrate_app.Net"], "data is missing: give --data"),
        (["last.ckpt", "--model", "calibrate_app.None_", "--data", "calibrate_app.points"], "cannot be imported"),
        (
            ["last.ckpt", "--model", "calibrate_app.points", "--data", "calibrate_app.points"],
            "is not a LightningModule",
        ),
        (["last.ckpt", "--model", "calibrate_app.Net", "--data", "calibrate_app.number"], "number is a int"),
        (["last.ckpt", "--config", "calibrate_app.py"], "mapping"),
        (["last.ckpt", "--model", "calibrate_app.Net", "--data", "calibrate_app.points", "--out", "no/x"], "a folder;"),
    ],
)
def test_what_cannot_work_is_said_in_a_line(app: Path, capsys: Any, arguments: list[str], words: str) -> None:
    assert main(["calibrate", *arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert words in said[-1]


def test_another_models_checkpoint_is_refused(app: Path, capsys: Any) -> None:
    torch.save({"net.0.weight": torch.zeros(2, 2)}, app / "other.pt")
    arguments = ["other.pt", "--model", "calibrate_app.Net", "--data", "calibrate_app.points"]
    assert main(["calibrate", *arguments]) == 2
    assert "does not fit Net" in capsys.readouterr().err


@pytest.mark.slow
def test_calibrate_in_python_does_not_touch_the_model(app: Path) -> None:
    import calibrate_app  # type: ignore[import-not-found]

    torch.manual_seed(1)
    net = calibrate_app.Net()
    before = [p.detach().clone() for p in net.parameters()]
    seen = list[tuple[int, int]]()
    found = bl.calibrate(net, calibrate_app.losses, calibrate_app.points()[0], progress=lambda *done: seen.append(done))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert seen[-1] == (36, 36)
    assert any(cell.diverged for cell in found.cells)
    framed = [cell for cell in found.cells if cell.chosen]
    assert [cell.sampler for cell in framed] == [found.resolved.sampler]
    assert np.isfinite(framed[0].rise).all()
    assert len(found.plot().axes) == 36
