"""Dumps of one training: small estimates whose influence grows by orders, with a constant column at one step."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from archive_examples import make_estimate, make_influence, make_samples
from bif_lightning.archive.write import write_dump, write_samples
from bif_lightning.results.estimate import Estimate

STEPS = 10, 20, 30, 300, 500
N, QUERIES = 12, 3


def make_estimates(rng) -> dict[int, Estimate]:
    """An estimate a step; at step 30 the column of query 1 is constant."""
    found: dict[int, Estimate] = {}
    for step in STEPS:
        accuracy = make_influence(rng, N, 2, name="accuracy", unit="1", columns=("cat", "dog"))
        estimate = make_estimate(rng, N, QUERIES, observables=(accuracy,))
        influence = estimate.losses.influence * step
        if step == 30:
            influence[:, 1] = 0.5
        losses = dataclasses.replace(estimate.losses, influence=influence.astype("f4"))
        found[step] = dataclasses.replace(estimate, losses=losses)
    return found


def write_training(folder: Path, estimates: Mapping[int, Estimate]) -> Path:
    """The dumps of these estimates, and the samples file."""
    folder.mkdir(exist_ok=True)
    train, query = make_samples("train", N, classes=("cat", "dog")), make_samples("query", QUERIES)
    write_samples(folder, train, query)
    for step, estimate in estimates.items():
        write_dump(folder, estimate, step=step, epoch=step // 100, train=train, query=query)
    return folder
