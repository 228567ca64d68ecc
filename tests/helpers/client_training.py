"""A training of another library, without the callback and with it: what both share, and what the dumps say."""

import inspect
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

import bif_lightning as bl

Fit = Callable[[list[Any], dict[str, Any]], nn.Module]
"""Trains with these callbacks and these settings of a Trainer, and returns what was trained."""


@dataclass(frozen=True)
class Trained:
    """What a training leaves: bytes of each weight and buffer, the next random numbers; and its processor seconds."""

    state: Mapping[str, Any]
    seconds: float


class Timed(bl.BIFCallback):
    """The callback, with the processor seconds of each snapshot. Libraries copy callbacks: one list is for all."""

    seconds: ClassVar[list[float]] = []

    def _take(self, *arguments: Any, **options: Any) -> None:
        start = time.process_time()
        super()._take(*arguments, **options)
        self.seconds.append(time.process_time() - start)


def settings(folder: Path) -> dict[str, Any]:
    """Of a quiet Trainer on the CPU, of either package of Lightning."""
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return {"accelerator": "cpu", "devices": 1, "default_root_dir": str(folder), **quiet}


def trained(fit: Fit, callbacks: list[Any], folder: Path) -> Trained:
    """Seed and train."""
    L.seed_everything(3, verbose=False)
    start = time.process_time()
    module = fit(callbacks, settings(folder))
    seconds = time.process_time() - start
    state: dict[str, Any] = {
        name: value.detach().numpy().tobytes() for name, value in module.state_dict().items() if torch.is_tensor(value)
    }
    assert len(state) > 1
    state |= {"torch": torch.rand(2).tolist(), "numpy": np.random.rand(2).tolist(), "random": random.random()}
    return Trained(state, seconds)


def compare(
    folder: Path, fit: Fit, *, train: Any, query: Any, labels: Sequence[int] | None = None, **options: Any
) -> dict[str, str]:
    """Assert that training is bitwise untouched, and that the ranking makes sense.

    Args:
        folder: for all files.
        fit: the training.
        train, query: as of the callback; the queries are the first train examples.
        labels: of the train examples; their losses move with those of the same label, rather than of others.
        options: of the callback, as a user of the library has to give them.

    Returns:
        What the table of the documentation says: the options, the verdict, and seconds.
    """
    plain = trained(fit, [], folder / "plain")
    Timed.seconds.clear()
    bif = Timed(train=train, query=query, num_snapshots=2, dirpath=folder / "bif", **options)
    watched = trained(fit, [bif], folder / "watched")
    changed = [name for name in plain.state | watched.state if plain.state.get(name) != watched.state.get(name)]
    assert not changed, f"the callback changed {changed}"
    run = bl.open_run(folder / "bif")
    assert run.sizes["step"] == 2, "a snapshot in mid-training, and one after it"
    check_ranking(run)
    if labels is not None:
        check_labels(run.correlation.values[-1], np.asarray(labels))
    return {
        "given": "row numbers" if isinstance(train, range) else "sets",
        "added": written(options),
        "verdict": str(run.verdict.values[-1]),
        "training": f"{plain.seconds:.1f}",
        "watched": f"{watched.seconds:.1f}",
        "snapshot": f"{max(Timed.seconds):.1f}",
    }


def check_ranking(run: Any) -> None:
    """A query that is a train example too helps itself, and no other example's loss moves with it as closely."""
    assert np.isfinite(run.influence.values).all()
    for row in range(run.sizes["query"]):
        best = bl.top(run, row, k=1, by="correlation").iloc[0]
        assert (best.train, best.effect) == (row, "helps")
        table = bl.top(run, row, k=run.sizes["train"])
        assert row in set(table.train[table.effect == "helps"])


def check_labels(correlation: np.ndarray, labels: np.ndarray) -> None:
    """[train, query]"""
    queries = correlation.shape[1]
    same = labels[:, None] == labels[None, :queries]
    others = ~np.eye(len(labels), queries, dtype=bool)
    assert correlation[same & others].mean() > correlation[~same].mean()


def written(options: Mapping[str, Any]) -> str:
    """What a user writes beyond `train` and `query`: each option, and the lines of a function of a test."""
    said: list[str] = []
    for name, value in options.items():
        own = inspect.isfunction(value) and "test_" in value.__module__
        lines = len(inspect.getsource(value).strip().splitlines()) if own else 1
        said.append(f"`{name}`" + (f" ({lines} lines)" if lines > 1 else ""))
    return ", ".join(said) or "nothing"


class Module(L.LightningModule):
    """For libraries of networks without Trainer modules: a network, and its step as their documentation has it."""

    def __init__(self, net: nn.Module, step: Callable[[nn.Module, Any], Tensor], rate: float = 1e-3) -> None:
        super().__init__()
        self.net, self.step, self.rate = net, step, rate

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(self.net, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.rate)
