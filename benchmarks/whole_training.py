"""Influence over a whole training: which snapshots, how many, how sure, and why a sum of them predicts more.

    python benchmarks/whole_training.py > table.md                # all tasks but the GPT
    python benchmarks/whole_training.py --task tabular --part moments --part why

The truth is that of lds.py, which has the peers. The reference training is repeated with snapshots, bitwise. Each row
is the score of one matrix, and its difference to that of the last snapshot on the same subsets and queries.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import bif_lightning as bl
from bif_lightning.config import Subspace
from retraining.leave_out import losses_without
from retraining.over_training import account, by_logarithm, evenly, late, models, squares, summed
from retraining.score import ceiling, difference, lds_with_error
from retraining.tasks import TASKS, Task
from retraining.training import learning_rate
from retraining.truth import Truth, load
from retraining.unrolled import unrolled

PULLS = 0.25, 0.5, 1.0, 2.0, 4.0
SEEDS = 0, 1, 2, 3
"""Of the reference trainings; 0 is the one whose checkpoint other benchmarks look at."""


@dataclass
class Study:
    """A task, its truth, and the influences that were computed along its reference trainings."""

    task: Task
    truth: Truth
    known: dict[tuple[int, int, float], Tensor] = field(default_factory=dict[tuple[int, int, float], Tensor])

    @property
    def steps(self) -> int:
        return self.task.recipe.steps

    def at(self, step: int, seed: int = 0, pull: float = 1.0) -> Tensor:
        """The default estimator's influence at a step of a training, with its own pull or a multiple of it."""
        key = step, seed, pull
        if key not in self.known:
            print(f"{self.task.name}: seed {seed}, step {step}, pull x {pull:g}", file=sys.stderr)
            self.known[key] = subspace(self.task, models(self.task, (step,), seed)[0], pull).double().nan_to_num()
        return self.known[key]

    def along(self, steps: Sequence[int], seed: int = 0) -> list[Tensor]:
        """The same at some steps."""
        return [self.at(step, seed) for step in steps]


def subspace(task: Task, model: nn.Module, pull: float = 1.0) -> Tensor:
    """The closed form, with its own pull or a multiple of it."""
    train, query = task.data()
    estimate = partial(bl.estimate, model, task.losses, train, query)
    found = estimate(sampler=Subspace())
    if pull != 1:
        own = found.sampler
        assert isinstance(own, Subspace)
        assert own.localization
        found = estimate(
            sampler=Subspace(inverse_temperature=own.inverse_temperature, localization=pull * own.localization)
        )
    return torch.from_numpy(found.influence)


def moments(study: Study, count: int) -> Iterator[str]:
    """Which moments, and how many."""
    yield from _head("sum over", "LDS", "less the last snapshot's")
    last, singles = study.at(study.steps), squares(study.steps, count)
    yield _row(study, "the last snapshot alone", last)
    best = max(singles, key=lambda step: lds_with_error(study.at(step), study.truth, resamples=0)[0])
    yield _row(study, f"the best single of {count}, chosen on the answer: step {best}", study.at(best))
    for spacing in (squares, evenly, by_logarithm):
        words = (spacing.__doc__ or "").partition(":")[0].partition(",")[0].removeprefix("Moments ").rstrip(".")
        for number in sorted({3, 5, count, 2 * count}):
            yield _row(study, f"{number} {words}", summed(study.along(spacing(study.steps, number))))
    rates = [learning_rate(study.task.recipe, step - 1) for step in singles]
    gaps = [float(here - before) for before, here in zip([0, *singles], singles, strict=False)]
    both = [rate * gap for rate, gap in zip(rates, gaps, strict=True)]
    matrices, words = study.along(singles), f"the same {count} at equal distances of √t, weighted by"
    yield _row(study, f"{words} the learning rate", summed(matrices, rates))
    yield _row(study, f"{words} the steps since the one before", summed(matrices, gaps))
    yield _row(study, f"{words} both", summed(matrices, both))


def why(study: Study, count: int) -> Iterator[str]:
    """What is averaged: each sum's score from that of one of its members and how far they agree."""
    yield from _head("sum over", "one alone", "agreement of two", "together", "LDS", "less the last snapshot's")
    end = study.steps
    own = study.along(squares(end, count))
    ends = [study.at(end, seed) for seed in SEEDS]
    everything = [each for seed in SEEDS for each in study.along(squares(end, count), seed)]
    sums = {
        f"{count} moments at equal distances of √t": own,
        f"{count} moments in the last 5 %": study.along(late(end, count)),
        f"the last snapshot at {len(PULLS)} pulls, λ/4 to 4λ": [study.at(end, pull=pull) for pull in PULLS],
        f"the ends of {len(SEEDS)} trainings": ends,
        f"{count} moments of each of {len(SEEDS)} trainings": everything,
    }
    if study.task.recipe.optimizer == "sgd":
        exact = [unrolled(study.task, seed) for seed in SEEDS]
        sums["the exact derivative of one training"] = exact[:1]
        sums[f"the exact derivatives of {len(SEEDS)} trainings"] = exact
    for name, matrices in sums.items():
        found = account(matrices, study.truth)
        agreement = "" if len(matrices) == 1 else f"{found.agreement:.2f}"
        yield _row(study, f"{name} | {found.alone:.3f} | {agreement} | {found.together:.3f}", summed(matrices))


def seeds(study: Study, count: int) -> Iterator[str]:
    """The same gain for other reference trainings: the truth is of none of them in particular."""
    yield from _head("reference training", "the last snapshot", f"sum over {count}", "gain")
    gains = list[float]()
    for seed in SEEDS:
        last, whole = study.at(study.steps, seed), summed(study.along(squares(study.steps, count), seed))
        (one, _), (other, _) = (lds_with_error(each, study.truth) for each in (last, whole))
        gap, error = difference(whole, last, study.truth)
        gains.append(gap)
        yield f"| seed {seed} | {one:.3f} | {other:.3f} | {gap:+.3f} ± {error:.3f} |"
    error = statistics.stdev(gains) / math.sqrt(len(gains))
    yield f"| mean, and standard error over trainings | | | {statistics.mean(gains):+.3f} ± {error:.3f} |"


def leave_out(study: Study, count: int, queries: int = 30) -> Iterator[str]:
    """Loss of queries after retraining without what helps them most, less that without random examples."""
    yield from _head("left out", "by the last snapshot", f"by the sum over {count}", "difference")
    task, steps = study.task, study.steps
    columns = torch.arange(study.truth.losses.shape[2])[:queries]
    ways = study.at(steps), summed(study.along(squares(steps, count)))
    for fraction in (0.01, 0.05):
        runs = [101, 102, 103]
        base = losses_without(task, None, columns, fraction, runs)
        last, whole = (losses_without(task, way, columns, fraction, runs).double() - base for way in ways)
        cells = " | ".join(_mean(rise.mean(1)) for rise in (last, whole, whole - last))
        yield f"| {fraction:.0%} | {cells} |"


def _mean(values: Tensor) -> str:
    return f"{float(values.mean()):+.4f} ± {float(values.std() / math.sqrt(len(values))):.4f}"


def _row(study: Study, name: str, matrix: Tensor) -> str:
    score, error = lds_with_error(matrix, study.truth)
    last = study.at(study.steps)
    gap, of_gap = (0.0, 0.0) if matrix is last else difference(matrix, last, study.truth)
    return f"| {name} | {score:.3f} ± {error:.3f} | {f'{gap:+.3f} ± {of_gap:.3f}' if of_gap else ''} |"


def _head(*columns: str) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"


PARTS = {"moments": moments, "seeds": seeds, "why": why, "leave-out": leave_out}


def table(study: Study, parts: Sequence[str], count: int) -> Iterator[str]:
    """Lines of the task's tables."""
    yield f"### {study.task.name}, {study.steps} steps, ceiling {ceiling(study.truth):.3f}"
    for part in parts:
        yield f"\n{PARTS[part].__doc__}\n"
        yield from PARTS[part](study, count)
    yield ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=sorted(TASKS), help="default: all but bytes_gpt")
    parser.add_argument("--part", action="append", choices=sorted(PARTS), help="default: all")
    parser.add_argument("--count", type=int, default=8, help="snapshots of a training")
    parser.add_argument("--cache", type=Path, help="folder of the truth; default $BIF_CACHE or the user's cache")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for name in options.task or (each for each in TASKS if each != "bytes_gpt"):
        study = Study(TASKS[name], load(TASKS[name], options.cache))
        for line in table(study, options.part or list(PARTS), options.count):
            print(line, flush=True)


if __name__ == "__main__":
    main()
