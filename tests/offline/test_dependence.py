"""Losses that depend on where training is: dumps of checkpoints are bitwise the callback's, or it is refused."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bif_lightning as bl

pytestmark = [pytest.mark.trainer, pytest.mark.bitwise]

G = torch.Generator().manual_seed(0)
DATA = TensorDataset(
    torch.randn(40, 6, generator=G), torch.randint(3, (40,), generator=G), torch.randn(40, 6, generator=G)
)
ROWS: Any = {"train": range(12), "query": range(20, 24)}


class Annealed(L.LightningModule):
    """Weighs its second term by something of the training."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encode, self.classify, self.rebuild = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 6)

    def weight(self) -> float:
        return self.current_epoch / 4

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hidden = torch.tanh(self.encode(batch[0]))
        fit, copy = F.cross_entropy(self.classify(hidden), batch[1]), F.mse_loss(self.rebuild(hidden), batch[2])
        return fit + self.weight() * copy

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class ByStep(Annealed):
    def weight(self) -> float:
        return self.global_step / 40


class ByShare(Annealed):
    def weight(self) -> float:
        return self.global_step / self.trainer.estimated_stepping_batches


class ByLogging(Annealed):
    """Reads the limits and the learning rate, but only to log them."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("share", self.global_step / (self.trainer.max_epochs or 1))
        self.log("lr", self.optimizers().param_groups[0]["lr"])
        return super().training_step(batch, batch_idx)


class InHook(Annealed):
    def on_train_epoch_start(self) -> None:
        self.kept = self.current_epoch / 4

    def weight(self) -> float:
        return getattr(self, "kept", 0.0)


class InBuffer(InHook):
    """The remedy of the message for the one above: checkpoints hold buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept_there", torch.zeros(()))

    def on_train_epoch_start(self) -> None:
        self.kept_there.fill_(self.current_epoch / 4)

    def weight(self) -> Any:
        return float(self.kept_there)


class ByRate(Annealed):
    def weight(self) -> float:
        return self.optimizers().param_groups[0]["lr"]


class BySchedulerRate(Annealed):
    def weight(self) -> float:
        return self.lr_schedulers().get_last_lr()[0]


class AfterBatches(InHook):
    """Its state changes after each batch, by way of a method."""

    def on_train_epoch_start(self) -> None:
        pass

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.advance(0.01)

    def advance(self, much: float) -> None:
        self.kept = getattr(self, "kept", 0.0) + much


class Schedule:
    def __init__(self) -> None:
        self.value = 0.0

    def advance(self) -> None:
        self.value += 0.1


class AfterEpochs(Annealed):
    """Its state is that of an object of its own, and changes where a validation ends."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule()

    def on_validation_epoch_end(self) -> None:
        self.schedule.advance()

    def weight(self) -> float:
        return self.schedule.value


class Unused(AfterBatches):
    """Keeps a state that its loss does not use."""

    def weight(self) -> float:
        return 0.5


class InCheckpoint(AfterBatches):
    """The remedy of the message: it saves its state."""

    def on_save_checkpoint(self, checkpoint: Any) -> None:
        checkpoint["kept"] = self.kept

    def on_load_checkpoint(self, checkpoint: Any) -> None:
        self.kept = checkpoint["kept"]


class OnItsWay(Annealed):
    """A hook that prepares batches by the epoch, as growing pictures are."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * (1 + self.current_epoch), *batch[1:]]


class ByDivisor(Annealed):
    def weight(self) -> float:
        return 1 / self.trainer.accumulate_grad_batches


class Late(Annealed):
    def weight(self) -> float:
        return 1.0 if self.current_epoch >= 50 else 0.5


def trainer(**more: Any) -> L.Trainer:
    settings: Any = {
        "max_epochs": 3, "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "accelerator": "cpu",
    }  # fmt: skip
    return L.Trainer(**(settings | more))


def train(folder: Path, kind: Any, **options: Any) -> None:
    bif = bl.BIFCallback(**ROWS, dirpath=folder / "bif", every_n_epochs=1, at_end=False, **options)
    saves = ModelCheckpoint(folder / "saved", save_top_k=-1)
    trainer(callbacks=[bif, saves]).fit(kind(), DataLoader(DATA, batch_size=8))


def assert_same(one: Path, other: Path) -> None:
    there, here = bl.open_run(one), bl.open_run(other)
    assert list(there.step.values) == list(here.step.values) == [5, 10, 15]
    assert np.array_equal(there.influence.values, here.influence.values)


def attributed(folder: Path, kind: Any, **options: Any) -> bl.AttributionReport:
    data = DataLoader(DATA, batch_size=8)
    return bl.attribute(kind(), folder / "saved", **ROWS, data=data, dirpath=folder / "later", log=False, **options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Annealed, ByStep, ByLogging, InBuffer, Unused, InCheckpoint, OnItsWay])
def test_the_loss_of_each_checkpoint_is_that_of_its_position(tmp_path: Path, kind: Any) -> None:
    train(tmp_path, kind)
    attributed(tmp_path, kind)
    assert_same(tmp_path / "bif", tmp_path / "later")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Annealed, InCheckpoint, OnItsWay])
def test_the_same_of_snapshots_that_are_watched(tmp_path: Path, kind: Any) -> None:
    train(tmp_path, kind)
    train(tmp_path / "other", kind, launch="snapshot")
    bl.watch(kind(), tmp_path / "other" / "bif", data=DataLoader(DATA, batch_size=8), log=False)
    assert_same(tmp_path / "bif", tmp_path / "other" / "bif")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ByShare, ByDivisor])
def test_limits_of_the_training_are_asked_for(tmp_path: Path, kind: Any) -> None:
    train(tmp_path, kind)
    with pytest.raises(ValueError, match=r"depends on trainer\..*pass a Trainer with the limits.*max_epochs"):
        attributed(tmp_path, kind)
    attributed(tmp_path, kind, trainer=trainer(enable_checkpointing=False))
    assert_same(tmp_path / "bif", tmp_path / "later")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (InHook, "on_train_epoch_start sets something that the loss"),
        (ByRate, "depends on the learning rate"),
        (BySchedulerRate, "depends on the learning rate"),
        (AfterBatches, r"depends on self\.kept, which on_train_batch_end sets"),
        (AfterEpochs, r"depends on self\.schedule\.value, which on_validation_epoch_end sets"),
    ],
)
def test_what_no_checkpoint_tells_is_refused(tmp_path: Path, kind: Any, match: str) -> None:
    train(tmp_path, kind)
    with pytest.raises(ValueError, match=match + ".*buffer"):
        attributed(tmp_path, kind)


@pytest.mark.slow
def test_a_checkpoint_without_its_epoch_is_refused_where_the_loss_uses_it(tmp_path: Path) -> None:
    torch.save(Annealed().state_dict(), tmp_path / "step=5.ckpt")
    done = bl.attribute(Annealed(), tmp_path / "step=5.ckpt", **ROWS, data=DATA, dirpath=tmp_path / "bif", log=False)
    assert "does not say of which it is" in str(done)
    torch.save({"state_dict": Annealed().state_dict(), "global_step": 5, "epoch": 0}, tmp_path / "step=5.ckpt")
    done = bl.attribute(Annealed(), tmp_path / "step=5.ckpt", **ROWS, data=DATA, dirpath=tmp_path / "bif", log=False)
    assert done.written == (5,)
    torch.save(ByStep().state_dict(), tmp_path / "step=5.ckpt")
    done = bl.attribute(ByStep(), tmp_path / "step=5.ckpt", **ROWS, data=DATA, dirpath=tmp_path / "by step", log=False)
    assert done.written == (5,)


def test_an_epoch_that_matters_only_late_is_asked_for(tmp_path: Path) -> None:
    torch.save(Late().state_dict(), tmp_path / "step=5.ckpt")
    done = bl.attribute(Late(), tmp_path / "step=5.ckpt", **ROWS, data=DATA, dirpath=tmp_path / "bif", log=False)
    assert "does not say of which it is" in str(done)


def test_a_checkpoint_that_lacks_what_the_module_reads_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": Annealed().state_dict(), "global_step": 5, "epoch": 0}, tmp_path / "step=5.ckpt")
    done = bl.attribute(
        InCheckpoint(), tmp_path / "step=5.ckpt", **ROWS, data=DATA, dirpath=tmp_path / "bif", log=False
    )
    assert "on_load_checkpoint of InCheckpoint failed" in str(done)
    assert "KeyError: 'kept'" in str(done)


def test_only_what_can_be_read_is_kept_in_a_snapshot(tmp_path: Path) -> None:
    class Odd(Annealed):
        def on_save_checkpoint(self, checkpoint: Any) -> None:
            checkpoint |= {"object": Schedule(), "numbers": [1, 2.0], "tensor": torch.ones(2), "global_step": -1}

    train(tmp_path, Odd, launch="snapshot")
    found = torch.load(tmp_path / "bif" / "snapshots" / "step=000000005.ckpt", weights_only=True)
    assert "object" not in found
    assert found["numbers"] == [1, 2.0]
    assert torch.equal(found["tensor"], torch.ones(2))
    assert found["global_step"] == 5
