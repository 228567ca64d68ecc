"""Each way to set up a Trainer, its data and its other callbacks trains bitwise as without the callback."""

import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics.classification import MulticlassAccuracy

import zoo
from matrix_run import CLASSES, Case, Classifier, check, loader, losses, points

pytestmark = [pytest.mark.trainer, pytest.mark.bitwise]


class Noisy(Dataset[Any]):
    """Examples moved by generators of every kind, its own ones among them, and counted."""

    def __init__(self) -> None:
        self.data = points()
        self.reads = 0
        self.numpy, self.torch = np.random.default_rng(5), torch.Generator().manual_seed(6)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads += 1
        shared = np.random.rand() + random.random() + torch.rand(()).item()
        own = self.numpy.random() + torch.rand((), generator=self.torch).item()
        x, y = self.data[index]
        return x + 0.1 * (shared + own), y


class Data(L.LightningDataModule):
    """A data module whose hook changes batches."""

    def train_dataloader(self) -> Any:
        return loader()

    def val_dataloader(self) -> Any:
        return loader(points(8, 4), shuffle=False)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * 1.5, batch[1]]


class Validated(Classifier):
    """BatchNorm, and a validation step whose loss can stop the training."""

    def __init__(self) -> None:
        super().__init__(zoo.mlp(nn.BatchNorm1d(8), nn.Dropout(0.2)))
        self.accuracy = MulticlassAccuracy(CLASSES)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self.body(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]))
        self.accuracy(logits, batch[1])
        self.log("val_accuracy", self.accuracy)


class Two(Classifier):
    """Trains on two loaders at once."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = sum(F.cross_entropy(self.body(x), y) for x, y in batch.values())
        assert isinstance(loss, Tensor)
        self.log("loss", loss)
        return loss


class Resampled(L.LightningDataModule):
    """A loader made anew for each epoch."""

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        return loader(points(), generator=torch.Generator().manual_seed(self.trainer.current_epoch))


class Descending(Classifier):
    """Trained by plain descent: Adam divides by less than float16 can tell from 0."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class OfList(Classifier):
    """Its batches come in a list, as those of a list of loaders do."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch[0], batch_idx)


def noisy(**options: Any) -> Case:
    """Data with generators of its own: no two minibatches of a chain are alike, so that nothing compares."""
    build = lambda: Classifier(zoo.mlp(nn.Dropout(0.2)))  # noqa: E731
    return Case(
        build=build, data=lambda: loader(Noisy(), **options), losses=None, extra=lambda t, m: reads(t.train_dataloader)
    )


def scaled() -> Any:
    """Half precision with the scaler of the CPU, which Lightning does not make by itself."""
    return [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2))]


def overflowing() -> Any:
    """A scale at which the first steps are skipped."""
    return [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**24))]


def reads(dataloader: Any) -> Any:
    """How often the data of this process was read, and what its generators give next."""
    data = dataloader.dataset
    return data.reads, data.numpy.random(), torch.rand((), generator=data.torch).item()


def validated() -> Any:
    return loader(), loader(points(8, 4), shuffle=False)


def two() -> dict[str, Any]:
    return {"one": loader(), "other": loader(points(16, 7))}


def stops(folder: Path) -> list[Any]:
    return [EarlyStopping("val_loss", patience=1, min_delta=10.0)]


def saves(folder: Path) -> list[Any]:
    return [ModelCheckpoint(folder / "ckpt", save_last=True, save_top_k=2, monitor="loss_step", every_n_train_steps=2)]


def averages(folder: Path) -> list[Any]:
    return [EMAWeightAveraging(decay=0.5)]


def swa(folder: Path) -> list[Any]:
    return [StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=1)]


with_norm = lambda: Classifier(zoo.mlp(nn.BatchNorm1d(8)))  # noqa: E731
validation = {"build": Validated, "data": validated}

TRAINERS = {
    "accumulation": Case(trainer={"accumulate_grad_batches": 2, "max_epochs": 3}),
    "accumulation by epoch": Case(
        trainer={"max_epochs": 3}, callbacks=lambda folder: [GradientAccumulationScheduler({0: 2, 1: 1})]
    ),
    "clipping by norm": Case(trainer={"gradient_clip_val": 0.1}),
    "clipping by value": Case(trainer={"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"}),
    "deterministic": Case(build=with_norm, trainer={"deterministic": True}),
    "simple profiler": Case(trainer={"profiler": "simple"}),
    "advanced profiler": Case(trainer={"profiler": "advanced"}),
    "barebones": Case(trainer={"barebones": True}),
    "anomaly detection": Case(trainer={"detect_anomaly": True}),
    "overfit batches": Case(trainer={"overfit_batches": 2, "max_epochs": 3}, drawn=16),
    "limited batches": Case(trainer={"limit_train_batches": 2}),
    "no epochs, only steps": Case(trainer={"max_epochs": -1, "max_steps": 5}),
    "validation": Case(**validation),
    "validation inside an epoch": Case(**validation, trainer={"val_check_interval": 1, "num_sanity_val_steps": 2}),
    "validation every 2 steps": Case(
        **validation, trainer={"val_check_interval": 2, "check_val_every_n_epoch": None}
    ),
    "early stopping": Case(**validation, callbacks=stops, trainer={"max_epochs": 9}),
    "early stopping first": Case(**validation, callbacks=stops, bif_first=False, trainer={"max_epochs": 9}),
    "learning rates watched": Case(callbacks=lambda folder: [LearningRateMonitor("step")]),
    "checkpoints": Case(callbacks=saves, trainer={"enable_checkpointing": True}),
    "weights averaged": Case(**validation, callbacks=averages),
    "weights averaged first": Case(**validation, callbacks=averages, bif_first=False),
    "stochastic weight averaging": Case(build=with_norm, callbacks=swa, trainer={"max_epochs": 3}),
    "stochastic weight averaging first": Case(
        build=with_norm, callbacks=swa, bif_first=False, trainer={"max_epochs": 3}
    ),
    "data module": Case(build=Validated, data=Data, losses=lambda m, b: losses(m, [b[0] * 1.5, b[1]])),
    "loaders made anew": Case(data=Resampled, trainer={"reload_dataloaders_every_n_epochs": 1}),
    "two loaders": Case(build=Two, data=two, loss_fn=losses, losses=None),
    "list of one loader": Case(
        build=OfList, data=lambda: [loader()], losses=None, loss_fn=lambda m, b: losses(m, b[0])
    ),
    "noisy data": noisy(),
    "noisy data, own indices": Case(
        data=lambda: loader(Noisy()), bif={"train": range(9), "query": [1, 4]}, losses=None, loss_fn=losses,
        extra=lambda t, m: reads(t.train_dataloader),
    ),
    "noisy data, one worker": noisy(num_workers=1),
    "64-true": Case(trainer={"precision": "64-true"}, losses=None),
    "bf16-mixed": Case(trainer={"precision": "bf16-mixed"}, losses=None),
    "bf16-mixed, BatchNorm": Case(build=with_norm, trainer={"precision": "bf16-mixed"}, losses=None),
    "16-mixed": Case(build=with_norm, trainer={"plugins": scaled}, losses=None),
    "16-mixed, overflowing": Case(build=with_norm, trainer={"plugins": overflowing}, losses=None),
    "bf16-true": Case(trainer={"precision": "bf16-true"}, losses=None),
    "16-true": Case(build=Descending, trainer={"precision": "16-true"}, losses=None),
}  # fmt: skip

TRAINERS |= {
    "noisy data, two persistent workers": noisy(num_workers=2, persistent_workers=True),
    "noisy data, two workers": noisy(num_workers=2),
}
SLOW = {"noisy data, two persistent workers", "noisy data, two workers", "accumulation by epoch", "clipping by value"}
SLOW |= {"advanced profiler", "anomaly detection", "limited batches", "validation", "validation every 2 steps"}
SLOW |= {"early stopping first", "weights averaged", "stochastic weight averaging first", "64-true", "bf16-mixed"}
SLOW |= {"learning rates watched", "noisy data, own indices", "no epochs, only steps", "checkpoints", "deterministic"}
SLOW |= {"simple profiler", "overfit batches", "validation inside an epoch", "weights averaged first", "two loaders"}
SLOW |= {"loaders made anew", "list of one loader", "noisy data, one worker", "bf16-mixed, BatchNorm", "16-mixed"}
"""Each has a near relative that always runs."""

NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in TRAINERS]


@pytest.mark.parametrize("name", NAMES)
def test_trainer(tmp_path: Path, name: str) -> None:
    try:
        check(TRAINERS[name], tmp_path)
    finally:
        torch.use_deterministic_algorithms(False)
