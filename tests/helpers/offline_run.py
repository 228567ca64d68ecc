"""A small training run with the callback, and attribution of what it left; shared by the tests of this folder."""

import json
from pathlib import Path
from typing import Any

import h5py
import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bif_lightning as bl

SAMPLER = bl.SGLD(step_size=1e-3, inverse_temperature=50.0, localization=50.0)
CHAINS = bl.Chains(num_chains=2, num_draws=6, batch_size=8)
STEPS = [2, 5, 8]
OF_THE_RUN = ("cost", "provenance_json", "metrics")


class Net(L.LightningModule):
    """With BatchNorm, whose buffers a checkpoint has to bring along."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 3))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def points() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(40) % 3
    return TensorDataset(torch.randn(40, 4, generator=generator) + y[:, None], y)


class Keep(L.Callback):
    """A checkpoint at each of the steps, as ModelCheckpoint writes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step in STEPS:
            trainer.save_checkpoint(self.folder / f"at-{trainer.global_step}.ckpt")


def train(folder: Path, **settings: Any) -> Path:
    """Ten steps with the callback; the folder of its dumps. Checkpoints lie in folder / "saved"."""
    L.seed_everything(3, verbose=False)
    settings = {"dirpath": folder / "bif"} | settings
    bif = bl.BIFCallback(train=range(10), query=range(30, 36), at_steps=STEPS, at_end=False, log=False, **settings)
    trainer = L.Trainer(
        max_steps=10, accelerator="cpu", callbacks=[bif, Keep(folder / "saved")], default_root_dir=folder, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Net(), DataLoader(points(), batch_size=8))
    assert bif.directory is not None
    return bif.directory


def attribute(folder: Path, **more: Any) -> bl.AttributionReport:
    settings: dict[str, Any] = {"sampler": SAMPLER, "chains": CHAINS, "log": False} | more
    module, checkpoints = settings.pop("module", None) or Net(), settings.pop("checkpoints", folder / "saved")
    loader = DataLoader(points(), batch_size=8)
    return bl.attribute(
        module, checkpoints, range(10), range(30, 36), data=loader, dirpath=folder / "later" / "bif", **settings
    )


def watch(directory: Path, **more: Any) -> bl.AttributionReport:
    return bl.watch(Net(), directory, data=DataLoader(points(), batch_size=8), **more)


def work(directory: Path, counts: Path) -> None:
    """Watch as a process of its own; how many dumps were written, and how many snapshots failed, go to a file."""
    torch.set_num_threads(1)
    done = watch(directory, idle=20)
    counts.write_text(json.dumps([len(done.written), len(done.failed)]))


def _paths(file: h5py.File) -> list[str]:
    found = list[str]()
    file.visit(found.append)
    return found


def assert_same_dumps(one: Path, other: Path) -> None:
    """Every dataset bit for bit, but for what a training run alone has."""
    names = sorted(path.name for path in one.glob("step=*.h5"))
    assert names == sorted(path.name for path in other.glob("step=*.h5"))
    assert len(names) == len(STEPS)
    for name in names:
        with h5py.File(one / name) as first, h5py.File(other / name) as second:
            found = _paths(first)
            assert len(found) > 30
            for path in found:
                if path.startswith(OF_THE_RUN) or not isinstance(first[path], h5py.Dataset):
                    continue
                np.testing.assert_array_equal(second[path][()], first[path][()], err_msg=f"{name} {path}")
            assert first.attrs["global_step"] == second.attrs["global_step"]
            assert first.attrs["epoch"] == second.attrs["epoch"]
    if all((folder / "integrated.h5").exists() for folder in (one, other)):  # not where its room was taken
        with h5py.File(one / "integrated.h5") as first, h5py.File(other / "integrated.h5") as second:
            for path in set(first) - {"created_utc"}:
                np.testing.assert_array_equal(second[path][()], first[path][()], err_msg=path)
