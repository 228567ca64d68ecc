"""A run that is large enough to be slow: dumps of made-up numbers, with classes, standard errors and diagnostics."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bif_lightning.archive.write import write_dump, write_samples
from bif_lightning.config import SGLD, Chains
from bif_lightning.results.estimate import Cost, Diagnostics, Estimate, Influence
from bif_lightning.results.examples import Samples

WRITTEN, DRAWS, CLASSES = 10, 400, 10


def make(folder: Path, train: int, query: int, steps: int) -> None:
    """The run, where it is not there yet."""
    if len(list(folder.glob("step=*.h5"))) == steps:
        return
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    sides = [_samples(side, size, rng) for side, size in (("train", train), ("query", query))]
    write_samples(folder, *sides)
    traces = [_traces(side, rng) for side in sides]
    who: dict[str, Any] = {"train": sides[0], "query": sides[1], "precision": "10bit", "epoch": 0}
    written = [
        write_dump(folder, _estimate(traces, number, rng), step=100 * (number + 1), **who)
        for number in range(min(WRITTEN, steps))
    ]
    for number in range(len(written), steps):
        copy = folder / ".copy"
        shutil.copy(written[number % WRITTEN], copy)
        with h5py.File(copy, "r+") as file:
            file.attrs["global_step"] = np.int64(100 * (number + 1))
        copy.rename(folder / f"step={100 * (number + 1):09d}.h5")


def warm(folder: Path) -> None:
    """Read every file once."""
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def _samples(side: str, size: int, rng: np.random.Generator) -> Samples:
    names = tuple(f"class {label}" for label in range(CLASSES))
    ids = tuple(f"{side} {row}" for row in range(size))
    return Samples(ids=ids, index=np.arange(size), labels=rng.integers(0, CLASSES, size), label_names=names)


def _traces(samples: Samples, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors that are alike within a class."""
    assert samples.labels is not None
    values = (
        rng.standard_normal((len(samples), DRAWS), np.float32) + 12 * np.eye(DRAWS, dtype=np.float32)[samples.labels]
    )
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def _estimate(traces: Sequence[np.ndarray], number: int, rng: np.random.Generator) -> Estimate:
    weight = (1 + 0.5 * np.sin(number / 2 + np.arange(DRAWS) / 50)).astype(np.float32)
    correlation = np.clip((traces[0] * weight) @ traces[1].T, -1, 1)
    error = np.round(rng.normal(0.05, 0.005, correlation.shape), 3).astype(np.float32)
    scale = np.float32(2**-10)
    losses = Influence(
        name="loss", unit="nat", columns=None, correlation=correlation, correlation_standard_error=error,
        influence=-scale * correlation, influence_standard_error=scale * error,
        mean=np.ones(correlation.shape[1]), std=np.ones(correlation.shape[1]),
    )  # fmt: skip
    return Estimate(
        losses=losses, observables={}, train_loss=np.ones(len(correlation)), train_std=np.ones(len(correlation)),
        snapshot_loss=0.3, chain_ids=(0, 1, 2, 3), loss_trace=0.4 + rng.random((4, 100)) / 10,
        distance_trace=rng.random((4, 100)), divergences=(),
        diagnostics=Diagnostics(rhat=1.0, ess=200.0, llc=5.0, llc_standard_error=0.1, drift=0.0, score_agreement=0.9),
        cost=Cost(seconds=60.0, steps=4000, workers=1, extra_bytes=1 << 20),
        sampler=SGLD(step_size=1e-5, inverse_temperature=1000.0, localization=100.0),
        chains=Chains(num_chains=4, num_draws=100), parameters=("weight",), num_weights=10**6,
    )  # fmt: skip
