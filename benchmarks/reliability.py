"""Do the halves of a run foretell how much its score against retraining loses to few draws? As markdown.

    python benchmarks/reliability.py [--task digits_mlp] > table.md        # minutes

Eight chains of 200 draws, with the settings that "auto" finds, are cut into shorter runs. If halves agree at r, the
whole agrees with another like it at R = 2r/(1 + r), and has √R of the score that endless chains would have. So the
score over √R is to be the same for all lengths; what the longest run says of it foretells the others'.
"""

import argparse
import statistics
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

import bif_lightning as bl
from bif_lightning.results.verdict import reliability
from bif_lightning.statistics.diagnostics import group_agreement, score_agreement
from retraining.score import lds
from retraining.tasks import TASKS, Task
from retraining.truth import Truth, load

CHAINS, DRAWS = 8, 200
LENGTHS = ((2, 50), (4, 50), (8, 50), (8, 100), (8, 200))
"""Chains, and draws of each, of the shorter runs."""
FEASIBLE = ("digits_mlp", "digits_cnn", "tabular")


@dataclass(frozen=True)
class Length:
    """Means over all runs of one length: score against retraining, and agreements of their halves."""

    draws: int
    score: float
    groups: float
    ranks: float


def lengths(task: Task, truth: Truth) -> list[Length]:
    """Of a task, shortest first."""
    model, (train, query) = truth.reference(task), task.data()
    found = bl.estimate(model, task.losses, train, query, sampler="auto")
    chains = replace(found.chains, num_chains=CHAINS, num_draws=DRAWS)
    run = bl.estimate(model, task.losses, train, query, sampler=found.sampler, chains=chains, store_traces=True)
    assert run.traces is not None
    trains, queries = (torch.from_numpy(np.asarray(t)).double() for t in (run.traces.train, run.traces.columns["loss"]))
    return [_length(trains, queries, truth, *length) for length in LENGTHS]


def _length(train: Tensor, query: Tensor, truth: Truth, chains: int, draws: int) -> Length:
    scores, groups, ranks = list[float](), list[float](), list[float]()
    for first in range(0, CHAINS, chains):
        for start in range(0, DRAWS, draws):
            parts = [x[first : first + chains, start : start + draws] for x in (train, query)]
            early, late = (_influence(*(x.chunk(2)[half] for x in parts)) for half in (0, 1))
            scores.append(lds((early + late) / 2, truth))
            groups.append(group_agreement(early, late))
            ranks.append(score_agreement(early, late))
    return Length(chains * draws, *map(statistics.mean, (scores, groups, ranks)))


def _influence(train: Tensor, query: Tensor) -> Tensor:
    """Of chains with a mean each."""
    train, query = (x - x.mean(1, keepdim=True) for x in (train, query))
    return -torch.einsum("ctn,ctq->nq", train, query) / (train.shape[0] * (train.shape[1] - 1))


def main() -> None:
    """Print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=FEASIBLE, action="append", help="default: all")
    chosen = parser.parse_args().task or FEASIBLE
    warnings.simplefilter("ignore")
    for task in (TASKS[name] for name in chosen):
        found = lengths(task, load(task))
        print(f"\n### {task.name}\n\n| draws | LDS | foretold by groups | by ranks | halves: groups | ranks |")
        print("|---|---|---|---|---|---|")
        last = found[-1]
        for one in found:
            foretold = [
                last.score * (reliability(getattr(one, by)) / reliability(getattr(last, by))) ** 0.5
                for by in ("groups", "ranks")
            ]
            cells = (one.score, *foretold, one.groups, one.ranks)
            print(f"| {one.draws} | {' | '.join(f'{cell:.3f}' for cell in cells)} |", flush=True)
        endless = [last.score / reliability(value) ** 0.5 for value in (last.groups, last.ranks)]
        print(f"\nOf endless chains: {endless[0]:.3f} by groups, {endless[1]:.3f} by ranks")


if __name__ == "__main__":
    main()
