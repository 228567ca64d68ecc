"""When snapshots are taken, and that a resumed run takes the same ones."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

import bif_lightning as bl
from bif_lightning.calibration import find
from bif_lightning.trainer.session import Session
from tiny_run import Leaky, Points, bif, fit

pytestmark = pytest.mark.trainer


NOTHING = {"every_n_epochs": None}
"""No interval at all: `bif` would take every epoch if it were not named."""


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps at which snapshots were due, which are not taken: the tests below have dumps."""
    due = list[int]()
    monkeypatch.setattr(Session, "snapshot", lambda self, trainer, module: due.append(trainer.global_step))
    return due


def loss_fn(module: Any, batch: Any) -> Tensor:
    return F.cross_entropy(module.net(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize(
    ("triggers", "trainer", "expected"),
    [
        (NOTHING, {}, [1, 2, 3, 5, 6]),
        (NOTHING, {"max_epochs": 20}, [1, 4, 8, 15, 23, 34, 46, 60]),
        (NOTHING, {"max_epochs": 20, "max_steps": 16}, [1, 2, 4, 6, 9, 12, 16]),
        (NOTHING, {"max_epochs": -1, "max_steps": 16}, [1, 2, 4, 6, 9, 12, 16]),
        (NOTHING, {"max_epochs": 8, "accumulate_grad_batches": 3}, [1, 2, 3, 4, 6, 8]),
        (NOTHING | {"at_end": False, "at_start": True}, {}, [0, 1, 2, 3, 5, 6]),
        ({"every_n_epochs": 1}, {}, [3, 6]),
        ({"every_n_epochs": 2}, {"max_epochs": 3}, [6, 9]),
        ({"every_n_train_steps": 2}, {}, [2, 4, 6]),
        ({"every_n_train_steps": 4, "at_end": False}, {}, [4]),
        ({"at_steps": [0, 1, 5], "at_end": False}, {}, [0, 1, 5]),
        ({"at_steps": [2], "at_start": True}, {}, [0, 2, 6]),
        ({"at_steps": [1, 2]}, {"accumulate_grad_batches": 3}, [1, 2]),
        ({"at_steps": [1]}, {"max_epochs": 5, "max_steps": 4}, [1, 4]),
        ({"at_steps": []}, {}, [6]),
        ({"num_snapshots": 3}, {}, [1, 3, 6]),
        ({"num_snapshots": 2, "at_end": False}, {"max_epochs": 5, "max_steps": 8}, [2, 8]),
        ({"num_snapshots": 2}, {"accumulate_grad_batches": 3}, [1, 2]),
        ({"at_steps": [100], "at_end": False}, {}, []),
    ],
)
def test_snapshots_are_taken_when_due(
    tmp_path: Path, moments: list[int], triggers: Any, trainer: Any, expected: Any
) -> None:
    fit(tmp_path, [bif(tmp_path, **triggers)], **trainer)
    assert moments == expected


def test_a_training_without_an_end_has_no_share_of_it(tmp_path: Path) -> None:
    with pytest.raises(
        MisconfigurationException, match="num_snapshots is 4, but the number of training steps is unknown"
    ):
        fit(tmp_path, [bif(tmp_path, num_snapshots=4)], max_epochs=-1, max_time="00:00:01:00")


class Stream(IterableDataset):
    """Examples whose number nobody knows."""

    def __iter__(self) -> Any:
        return iter(Points(augment=False))


class Stop(L.Callback):
    """Ends a training that has no end."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = trainer.current_epoch == 2


UNKNOWN: dict[str, Any] = {
    "no end": {"max_epochs": -1},
    "a stream": {"max_epochs": 3, "data": DataLoader(Stream(), batch_size=8)},
    "accumulation that changes": {"max_epochs": 3, "accumulates": {0: 1, 2: 3}},
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_where_the_length_is_not_known_each_epoch_ends_with_a_snapshot(
    tmp_path: Path, moments: list[int], case: str
) -> None:
    trainer = dict(UNKNOWN[case])
    accumulates = [GradientAccumulationScheduler(each)] if (each := trainer.pop("accumulates", None)) else []
    fit(tmp_path, [bif(tmp_path, **NOTHING), Stop(), *accumulates], **trainer)
    assert moments == ([3, 6, 7] if accumulates else [3, 6, 9])


def test_a_training_that_ends_early_ends_with_a_snapshot(tmp_path: Path, moments: list[int]) -> None:
    """By Trainer.should_stop, as early stopping and max_time do: the moments of the rest are not taken."""
    fit(tmp_path, [bif(tmp_path, **NOTHING), Stop()], max_epochs=20)
    assert moments == [1, 4, 8, 9]


@pytest.mark.parametrize(("epochs", "later"), [(20, [8, 15, 23, 34, 46, 60]), (10, [8, 12, 17, 23, 30])])
def test_a_resumed_training_has_the_moments_of_its_whole_length(
    tmp_path: Path, moments: list[int], epochs: int, later: list[int]
) -> None:
    """With another max_epochs, those that are still to come are spread over the new length."""
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=6, save_top_k=-1)
    fit(tmp_path, [bif(tmp_path, **NOTHING), keep, Stop()], enable_checkpointing=True, max_epochs=20)
    moments.clear()
    fit(tmp_path, [bif(tmp_path, **NOTHING)], ckpt=tmp_path / "step=6.ckpt", max_epochs=epochs)
    assert moments == later


def test_the_default_moments_leave_training_as_it_was(tmp_path: Path) -> None:
    _, plain = fit(tmp_path / "plain", [], max_epochs=4)
    _, watched = fit(tmp_path / "watched", [bif(tmp_path, **NOTHING, verify_restore="always")], max_epochs=4)
    assert plain.losses == watched.losses
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True)
    )


def test_several_optimizers_cross_steps(tmp_path: Path, moments: list[int]) -> None:
    """Two optimizers advance the step by two a batch: 5 and 9 are crossed, never met."""

    class Two(Leaky):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(loss_fn(self, batch).mean())
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.net[i].parameters(), lr=0.1) for i in (0, 4)]

    fit(tmp_path, [bif(tmp_path, at_steps=[5, 9], at_end=False, loss_fn=loss_fn)], module=Two())
    assert moments == [6, 10]
    moments.clear()
    fit(tmp_path, [bif(tmp_path, dirpath=tmp_path / "default", **NOTHING, loss_fn=loss_fn)], module=Two())
    assert moments == [6, 12], "the number of steps is not known: at each epoch's end"


def test_early_stopping_ends_with_a_snapshot(tmp_path: Path, moments: list[int]) -> None:
    stop = EarlyStopping("loss_epoch", patience=1, mode="max", check_on_train_epoch_end=True)
    trainer, _ = fit(tmp_path, [bif(tmp_path, at_steps=[1]), stop], max_epochs=50)
    assert trainer.global_step < 150
    assert moments == [1, trainer.global_step]


def test_a_resumed_run_writes_the_same_dumps(tmp_path: Path) -> None:
    """From the checkpoint of step 3, snapshots 4 and 6 are bitwise those of the uninterrupted run."""

    def run(folder: Path, ckpt: Any = None) -> Any:
        keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=3, save_top_k=-1, save_last=False)
        callback = bif(folder, every_n_train_steps=2, loss_fn=loss_fn)
        module = Leaky()
        module.net[3].p = 0.0  # Lightning does not restore the generators of dropout and shuffling
        data = DataLoader(Points(augment=False), batch_size=8)
        fit(folder, [callback, keep], ckpt=ckpt, enable_checkpointing=True, data=data, module=module)
        return bl.open_run(folder / "bif").load()

    whole = run(tmp_path / "whole")
    rest = run(tmp_path / "rest", ckpt=tmp_path / "whole" / "step=3.ckpt")
    assert rest.step.values.tolist() == [4, 6]
    for name in ("influence", "correlation", "influence_standard_error", "loss_trace"):
        assert np.array_equal(rest[name].values, whole[name].sel(step=[4, 6]).values, equal_nan=True)


def test_a_crash_between_dump_and_checkpoint_is_idempotent(tmp_path: Path, dumps: Any) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    fit(tmp_path, [bif(tmp_path, every_n_train_steps=2), keep], enable_checkpointing=True)
    fit(tmp_path, [bif(tmp_path, every_n_train_steps=2)], ckpt=tmp_path / "step=3.ckpt")
    assert dumps() == [2, 4, 6]


def test_other_settings_are_refused_at_resume(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    fit(tmp_path, [bif(tmp_path), keep], enable_checkpointing=True)
    changed = bif(tmp_path, sampler=bl.SGLD(step_size=2e-4, inverse_temperature=100.0, localization=10.0))
    with pytest.raises(L.fabric.utilities.exceptions.MisconfigurationException, match=r"sampler.*then.*now"):
        fit(tmp_path, [changed], ckpt=tmp_path / "step=3.ckpt")


def test_a_fast_dev_run_takes_one_tiny_snapshot_and_writes_nothing(tmp_path: Path) -> None:
    callback = bif(tmp_path)
    fit(tmp_path, [callback], fast_dev_run=True)
    assert callback.latest is not None
    assert callback.latest.loss_trace.shape == (1, 2)
    assert not (tmp_path / "bif").exists()


def test_two_callbacks_live_side_by_side(tmp_path: Path, dumps: Any) -> None:
    one = bif(tmp_path, dirpath=tmp_path / "one", name="one", at_steps=[1], at_end=False)
    two = bif(tmp_path, dirpath=tmp_path / "two", name="two", at_steps=[2], at_end=False)
    fit(tmp_path, [one, two])
    assert dumps("one") == [1]
    assert dumps("two") == [2]


@pytest.mark.slow
def test_auto_settles_once_and_stays_through_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "LASTING", -np.inf)  # whether settings last is by rounding, in so small a training
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    first = bif(tmp_path, sampler="auto", at_steps=[2])
    fit(tmp_path, [first, keep], enable_checkpointing=True)
    second = bif(tmp_path, sampler="auto", at_steps=[2])
    fit(tmp_path, [second], ckpt=tmp_path / "step=3.ckpt", max_epochs=3)
    assert first.latest is not None
    assert second.latest is not None
    assert first.latest.sampler.localization == second.latest.sampler.localization
    run = bl.open_run(tmp_path / "bif")
    how = [next(line for line in str(notes).splitlines() if "settings found" in line) for notes in run.notes.values]
    assert len(how) == 3  # steps 2, 6 and 9
    assert len(set(how)) == 1
    assert "largest curvature" in how[0]
