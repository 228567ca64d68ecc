"""A run that can be stopped anywhere and resumed, with nothing in it that Lightning does not restore."""

import os
import signal
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bif_lightning as bl
from resuming import resuming


def points(size: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(size) % 3
    return TensorDataset(torch.randn(size, 4, generator=generator) + label[:, None], label)


class Plain(L.LightningModule):
    """BatchNorm, Adam, a scheduler; no dropout and no shuffling, whose generators Lightning does not restore."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.body(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.8), "interval": "step"}]


class Resumable(DataLoader[Any]):
    """Goes on in the middle of an epoch, as Lightning asks of a loader with a state; a plain one would start again."""

    served = 0

    def __iter__(self) -> Any:
        self.served %= len(self)
        for batch in list(super().__iter__())[self.served :]:
            self.served += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"served": self.served % len(self)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.served = state_dict["served"]


class Kill(ModelCheckpoint):
    """Saves every step, and kills the process at a hook: before or after the snapshot, or half-way in a checkpoint."""

    def __init__(self, folder: Path, hook: str | None = None, step: int = 0) -> None:
        super().__init__(folder / "ckpt", filename="{step}", every_n_train_steps=1, save_top_k=-1)
        self.hook, self.step = hook, step

    def _kill(self, trainer: Any, hook: str) -> None:
        if hook == self.hook and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self._kill(trainer, "next batch")

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self._kill(trainer, "before checkpoint")  # Lightning puts checkpoints last: the dump is written
        super().on_train_batch_end(trainer, *args)

    def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self._kill(trainer, "after checkpoint")


def run(folder: Path, *, hook: str | None = None, step: int = 0, resume: Path | None = None, **settings: Any) -> Any:
    """Eight steps in two epochs, a snapshot at every second; the Trainer. At a hook of a step, it kills its process."""
    L.seed_everything(11, verbose=False)
    defaults: dict[str, Any] = {
        "train": points(7, 2), "query": points(4, 3), "dirpath": folder / "bif", "every_n_train_steps": 2, "log": False,
        "chains": bl.Chains(num_chains=2, num_draws=3, batch_size=8, common_random_numbers=False),
    }  # fmt: skip
    callback = bl.BIFCallback(**(defaults | settings))
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[callback, Kill(folder, hook, step)], logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = Resumable(points(32, 1), batch_size=8)
        trainer.fit(Plain(), loader, **resuming(resume))
    return trainer
