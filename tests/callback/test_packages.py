"""`pytorch_lightning` is another package than `lightning`, with classes of its own: the callback serves both."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger as OldCSVLogger
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

import zoo
from matrix_run import CLASSES, Case, callback, check, fit, loader, losses, points, steps

pytestmark = [pytest.mark.trainer, pytest.mark.bitwise]


class OfOldName(pl.LightningModule):
    """A module of `pytorch_lightning`: BatchNorm, dropout, a metric, logging, a growing list."""

    def __init__(self) -> None:
        super().__init__()
        self.body = zoo.mlp(nn.BatchNorm1d(8), nn.Dropout(0.2))
        self.accuracy = MulticlassAccuracy(CLASSES)
        self.seen: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self.body(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.accuracy(logits, batch[1])
        self.log("accuracy", self.accuracy)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.seen.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.body(batch[0]), batch[1]))

    def on_train_epoch_end(self) -> None:
        self.log("mean", sum(self.seen) / len(self.seen))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]


class Manual(OfOldName):
    """Optimized by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss, optimizer = losses(self, batch).mean(), self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.seen.append(float(loss.detach()))


def others(folder: Path) -> list[Any]:
    checkpoint = ModelCheckpoint(folder / "ckpt", save_last=True, every_n_train_steps=2)
    return [EarlyStopping("val_loss", patience=1, min_delta=10.0), EMAWeightAveraging(decay=0.5), checkpoint]


def validated() -> Any:
    return loader(), loader(points(8, 4), shuffle=False)


old: Any = {"package": pl, "build": OfOldName}
CASES = {
    "plain": Case(**old),
    "accumulation": Case(**old, trainer={"accumulate_grad_batches": 2, "max_epochs": 3}),
    "by hand": Case(package=pl, build=Manual, loss_fn=losses),
    "other callbacks": Case(
        **old, data=validated, callbacks=others, trainer={"max_epochs": 9, "enable_checkpointing": True}
    ),
    "bf16-mixed": Case(**old, trainer={"precision": "bf16-mixed"}, losses=None),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in ("accumulation", "bf16-mixed") else []) for name in CASES],
)
def test_pytorch_lightning(tmp_path: Path, name: str) -> None:
    check(CASES[name], tmp_path)
    assert steps(tmp_path)[0] == 3


@pytest.mark.slow
def test_its_loggers_get_the_numbers(tmp_path: Path) -> None:
    for package, logger in ((pl, OldCSVLogger), (L, CSVLogger)):
        folder = tmp_path / package.__name__
        log = logger(folder, "numbers")
        case = Case(package=package, build=OfOldName if package is pl else zoo.Measured, trainer={"logger": log})
        fit(case, folder, callback(folder, log=True))
        assert "bif/llc" in (Path(log.log_dir) / "metrics.csv").read_text()
