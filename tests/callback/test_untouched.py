"""Promise 1: training is bitwise what it is without the callback."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from bif_lightning.losses.observables import PerExample
from bif_lightning.trainer.guard.fingerprint import difference, fingerprint
from tiny_run import Leaky, Points, bif, fit

pytestmark = [pytest.mark.trainer, pytest.mark.bitwise]


def outcome(trainer: Any, module: Any) -> dict[str, Any]:
    """Everything that a training run leaves, and the random numbers that would come next."""
    return {
        "fingerprint": fingerprint(trainer, module),
        "weights": [p.detach().clone() for p in module.parameters()],
        "losses": module.losses,
        "calls": module.calls,
        "next": (torch.rand(3).tolist(), np.random.rand(3).tolist()),
        "logged": {k: float(v) for k, v in trainer.callback_metrics.items()},
        "csv": (Path(trainer.logger.log_dir) / "metrics.csv").read_text(),
        "data": trainer.train_dataloader.dataset.reads,
    }


def same(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Names of what differs."""
    found = difference(left["fingerprint"], right["fingerprint"])
    found += [name for name in left if name not in ("fingerprint", "weights") and left[name] != right[name]]
    pairs = zip(left["weights"], right["weights"], strict=True)
    return found + (["weights"] if not all(torch.equal(a, b) for a, b in pairs) else [])


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_training_is_bitwise_untouched(tmp_path: Path, precision: str, accumulate: int) -> None:
    options = {"precision": precision, "accumulate_grad_batches": accumulate}
    plain = outcome(*fit(tmp_path / "plain", [], **options))
    callback = bif(tmp_path, every_n_train_steps=1, at_start=True, log=False, verify_restore="always")
    watched = outcome(*fit(tmp_path / "watched", [callback], **options))
    assert len(list((tmp_path / "bif").glob("step=*.h5"))) == (7 if accumulate == 1 else 5)
    assert same(plain, watched) == []


@pytest.mark.slow
def test_training_is_untouched_with_the_trainers_own_data_and_workers(tmp_path: Path) -> None:
    def loader() -> DataLoader:
        return DataLoader(Points(), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)

    plain = outcome(*fit(tmp_path / "plain", [], data=loader()))
    callback = bif(tmp_path, train=[0, 3, 5], query=range(6, 10), every_n_train_steps=1, log=False)
    assert same(plain, outcome(*fit(tmp_path / "watched", [callback], data=loader()))) == []


def test_training_is_untouched_when_every_snapshot_fails(tmp_path: Path) -> None:
    def fails_late(module: Any, batch: Any) -> torch.Tensor:
        if module.trainer.global_step > 0:
            raise RuntimeError("no such observable")
        return module.net(batch[0])[:, 0]

    plain = outcome(*fit(tmp_path / "plain", []))
    callback = bif(
        tmp_path, every_n_train_steps=2, observables=[PerExample("fails", fails_late)], on_error="warn", log=False
    )
    with pytest.warns(UserWarning, match="no such observable"):
        watched = outcome(*fit(tmp_path / "watched", [callback]))
    assert same(plain, watched) == []
    assert not list((tmp_path / "bif").glob("step=*.h5"))


def test_training_goes_on_as_it_was_after_an_interrupt(tmp_path: Path) -> None:
    """KeyboardInterrupt inside a snapshot leaves the weights of training, not those of a chain."""

    def interrupted(module: Any, batch: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    module = Leaky()
    callback = bif(tmp_path, every_n_train_steps=1, observables=[PerExample("stop", interrupted)])
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, [callback], module=module)
    assert all(p.isfinite().all() for p in module.parameters())
    assert "log" not in vars(module)
    assert module.training or not any(m.training for m in module.modules())


def test_a_step_that_the_guard_cannot_undo_is_found(tmp_path: Path) -> None:
    """The run-time check is real: a loss_fn that writes to the live weights stops training with a clear error."""
    module = Leaky()
    bias = module.net[4].bias

    def vandal(twin: Any, batch: Any) -> torch.Tensor:
        with torch.no_grad():
            bias.add_(0.1)
        return torch.nn.functional.cross_entropy(twin.net(batch[0]), batch[1], reduction="none")

    callback = bif(tmp_path, every_n_train_steps=1, loss_fn=vandal, on_error="warn")
    with pytest.raises(RuntimeError, match=r"wrote into net\.4\.bias, and so changed the training"):
        fit(tmp_path, [callback], module=module)
