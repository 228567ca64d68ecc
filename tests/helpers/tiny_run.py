"""A small LightningModule with everything that leaks, and a Trainer for it."""

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

from bif_lightning import SGLD, BIFCallback, Chains
from resuming import resuming

SAMPLER = SGLD(step_size=1e-4, inverse_temperature=100.0, localization=10.0)
CHAINS = Chains(num_chains=2, num_draws=4, batch_size=8)
RHYTHMS = {"every_n_train_steps", "every_n_epochs", "at_steps", "num_snapshots"}


class Points(Dataset):
    """Two classes of points, moved a little by generators of every kind each time they are read."""

    def __init__(self, size: int = 24, augment: bool = True) -> None:
        generator = torch.Generator().manual_seed(1)
        self.y = torch.arange(size) % 3
        self.x = torch.randn(size, 4, generator=generator) + self.y[:, None]
        self.augment, self.reads = augment, 0
        self.private = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads += 1
        noise = 0.0
        if self.augment:
            noise = 0.01 * (self.private.random() + np.random.rand() + torch.rand(()).item())
        return self.x[index] + noise, self.y[index]


class Leaky(L.LightningModule):
    """Dropout, BatchNorm, a metric, a growing list, logging."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
        self.accuracy = MulticlassAccuracy(3)
        self.losses: list[float] = []
        self.calls = {"training": 0}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self.net(x)
        loss = F.cross_entropy(logits, y)
        self.accuracy(logits, y)
        self.losses.append(float(loss.detach()))
        self.calls["training"] += 1
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("accuracy", self.accuracy, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]


def fit(
    tmp_path: Path,
    callbacks: Any,
    *,
    module: L.LightningModule | None = None,
    data: Any = None,
    ckpt: Any = None,
    **kwargs: Any,
) -> tuple[L.Trainer, L.LightningModule]:
    """Seed, train, return; two epochs of three batches unless told otherwise."""
    L.seed_everything(3, verbose=False)
    module = module or Leaky()
    settings = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    settings |= {"logger": CSVLogger(tmp_path, "csv"), "log_every_n_steps": 1, "enable_checkpointing": False}
    trainer = L.Trainer(callbacks=callbacks, **(settings | kwargs))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        warnings.filterwarnings("ignore", ".*deprecated.*", category=FutureWarning)
        loader = data if isinstance(data, DataLoader) else DataLoader(data or Points(), batch_size=8, shuffle=True)
        trainer.fit(module, loader, **resuming(ckpt))
    return trainer, module


def bif(tmp_path: Path, **kwargs: Any) -> BIFCallback:
    """A callback with tiny chains on fixed points; snapshots at each epoch's end where nothing says when."""
    settings = {"train": Points(12, augment=False), "query": Points(5, augment=False), "dirpath": tmp_path / "bif"}
    settings |= {"sampler": SAMPLER, "chains": CHAINS}
    if not RHYTHMS & kwargs.keys():
        settings["every_n_epochs"] = 1
    return BIFCallback(**(settings | kwargs))
