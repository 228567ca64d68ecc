"""Does influence over a whole training predict retraining better than that of its last snapshot, and why?

    python benchmarks/whole_training.py > table.md               # all tasks; the GPT takes most of the time
    python benchmarks/whole_training.py --task tabular --part moments --part peers

The truth is that of lds.py. The reference training is repeated with snapshots, bitwise the one that the truth holds.
Each row is the score of one matrix, and its difference to that of the last snapshot on the same subsets and queries.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import bif_lightning as bl
from bif_lightning.config import Subspace
from bif_lightning.results.integrated import IntegratedInfluence
from retraining import gradients
from retraining.ekfac import ekfac
from retraining.score import ceiling, difference, lds_with_error
from retraining.tasks import TASKS, Task
from retraining.training import Weights, learning_rate, trajectory
from retraining.truth import Truth, load

Matrix = Callable[[nn.Module], Tensor]
PULLS = 0.25, 0.5, 1.0, 2.0, 4.0
SEEDS = 1, 2, 3


def squares(steps: int, count: int) -> list[int]:
    """Moments at equal distances of √t: T·(k/K)²."""
    return sorted({max(1, round(steps * (k / count) ** 2)) for k in range(1, count + 1)})


def evenly(steps: int, count: int) -> list[int]:
    """Moments at equal distances of t: T·k/K."""
    return sorted({max(1, round(steps * k / count)) for k in range(1, count + 1)})


def by_logarithm(steps: int, count: int, first: float = 0.01) -> list[int]:
    """Moments at equal distances of log t, from a share of the training on."""
    return sorted({max(1, round(steps * first ** (1 - k / (count - 1)))) for k in range(count)})


def late(steps: int, count: int, share: float = 0.05) -> list[int]:
    """Moments within the last share of the training."""
    return sorted({round(steps * (1 - share * (1 - k / (count - 1)))) for k in range(count)})


def summed(matrices: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """The sum of matrices, each column on its own scale; the integrated influence where there are no weights."""
    parts = [IntegratedInfluence.zeros(*matrices[0].shape) for _ in matrices]
    for step, (part, matrix) in enumerate(zip(parts, matrices, strict=True)):
        part.push(step, matrix.numpy(), torch.zeros_like(matrix).numpy())
    scaled = [torch.from_numpy(part.influence).nan_to_num() for part in parts]
    return sum(
        (weight * each for weight, each in zip(weights or [1.0] * len(scaled), scaled, strict=True)), 0 * scaled[0]
    )


@dataclass
class Study:
    """A task with its reference training, and the matrices that were made of it."""

    task: Task
    truth: Truth
    path: dict[int, Weights] = field(init=False)
    known: dict[tuple[str, int], Tensor] = field(default_factory=dict[tuple[str, int], Tensor])

    def __post_init__(self) -> None:
        self.path = trajectory(self.task, seed=0)

    @property
    def steps(self) -> int:
        return self.task.recipe.steps

    def at(self, name: str, matrix: Matrix, step: int) -> Tensor:
        """A matrix of a method at a step, made once."""
        if (name, step) not in self.known:
            print(f"{self.task.name}: {name}, step {step}", file=sys.stderr)
            self.known[name, step] = matrix(module(self.task, self.path[step])).double().nan_to_num()
        return self.known[name, step]

    def all(self, name: str, matrix: Matrix, steps: Sequence[int]) -> list[Tensor]:
        """The same at some steps."""
        return [self.at(name, matrix, step) for step in steps]


def module(task: Task, weights: Weights) -> nn.Module:
    """The model with the only weights of a stack of one."""
    found = task.build()
    found.load_state_dict({name: value[0] for name, value in weights.items()})
    return found.eval()


def subspace(task: Task, model: nn.Module, pull: float = 1.0) -> Tensor:
    """The default estimator, with its own pull or a multiple of it."""
    train, query = task.data()
    sampler = Subspace()
    if pull != 1:
        own = bl.estimate(model, task.losses, train, query, sampler=sampler).sampler
        assert isinstance(own, Subspace)
        assert own.localization
        sampler = Subspace(inverse_temperature=own.inverse_temperature, localization=pull * own.localization)
    return torch.from_numpy(bl.estimate(model, task.losses, train, query, sampler=sampler).influence)


def moments(study: Study, count: int) -> Iterator[tuple[str, Tensor]]:
    """Which moments, and how many."""
    of, steps = partial(study.all, "Subspace", partial(subspace, study.task)), study.steps
    singles = {step: of([step])[0] for step in squares(steps, count)}
    best = max(singles, key=lambda step: lds_with_error(singles[step], study.truth, resamples=0)[0])
    yield f"best single of {count} (chosen on the answer): step {best}", singles[best]
    for spacing in (squares, evenly, by_logarithm):
        words = (spacing.__doc__ or "").partition(":")[0].partition(",")[0].removeprefix("Moments ").rstrip(".")
        for number in sorted({3, 5, count, 2 * count}):
            yield f"sum of {number} {words}", summed(of(spacing(steps, number)))
    at = squares(steps, count)
    rates = [learning_rate(study.task.recipe, step - 1) for step in at]
    gaps = [float(here - before) for before, here in zip([0, *at], at, strict=False)]
    yield "by squares, weighted by the learning rate", summed(of(at), rates)
    yield "by squares, weighted by the steps since the one before", summed(of(at), gaps)
    yield "by squares, weighted by both", summed(of(at), [r * g for r, g in zip(rates, gaps, strict=True)])


def controls(study: Study, count: int) -> Iterator[tuple[str, Tensor]]:
    """Is it the averaging of something else: of noise in the weights, of temperatures, of seeds?"""
    task, end = study.task, study.steps
    of = partial(study.all, "Subspace", partial(subspace, task))
    yield f"sum of {count} in the last 5 %", summed(of(late(end, count)))
    pulls = [study.at(f"pull x {pull}", partial(subspace, task, pull=pull), end) for pull in PULLS]
    yield f"the last snapshot at {len(PULLS)} pulls", summed(pulls)
    others = [subspace(task, module(task, trajectory(task, seed)[end])).double() for seed in SEEDS]
    yield f"ends of {len(SEEDS) + 1} trainings", summed([*of([end]), *others])


def peers(study: Study, count: int) -> Iterator[tuple[str, Tensor]]:
    """Other methods at the end, and summed over the same moments."""
    task, at = study.task, squares(study.steps, count)
    dots = study.all("dot", lambda model: gradients.dot(task, model)(0), at)
    yield "gradient dot product, at the end", dots[-1]
    yield f"gradient dot product, sum of {count}", summed(dots)
    rates = [learning_rate(task.recipe, step - 1) for step in at]
    yield (
        f"TracIn: {count} dot products by learning rate",
        sum((rate * dot for rate, dot in zip(rates, dots, strict=True)), 0 * dots[0]),
    )
    for words, damping in (("damping 1e-8", 1e-8), ("heuristic damping", 0.0)):
        name = f"EK-FAC, {words}"
        of = study.all(name, lambda model, damping=damping: ekfac(task, model)(damping), at)
        yield f"{name}, at the end", of[-1]
        yield f"{name}, sum of {count}", summed(of)


PARTS = {"moments": moments, "controls": controls, "peers": peers}


def table(study: Study, parts: Sequence[str], count: int) -> Iterator[str]:
    """Lines of the task's table."""
    last = study.at("Subspace", partial(subspace, study.task), study.steps)
    yield f"### {study.task.name}, {study.steps} steps, ceiling {ceiling(study.truth):.3f}\n"
    yield "| matrix | LDS | less the last snapshot's |\n|---|---|---|"
    score, error = lds_with_error(last, study.truth)
    yield f"| the last snapshot | {score:.3f} ± {error:.3f} | |"
    for part in parts:
        try:
            for name, matrix in PARTS[part](study, count):
                score, error = lds_with_error(matrix, study.truth)
                gap, of_gap = difference(matrix, last, study.truth)
                yield f"| {name} | {score:.3f} ± {error:.3f} | {gap:+.3f} ± {of_gap:.3f} |"
        except ImportError as error:
            yield f"| {part} | not installed: pip install {str(error.name).partition('.')[0]} | |"
    yield ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=sorted(TASKS), help="default: all")
    parser.add_argument("--part", action="append", choices=sorted(PARTS), help="default: all")
    parser.add_argument("--count", type=int, default=8, help="snapshots of a training")
    parser.add_argument("--cache", type=Path, help="folder of the truth; default $BIF_CACHE or the user's cache")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for name in options.task or TASKS:
        study = Study(TASKS[name], load(TASKS[name], options.cache))
        for line in table(study, options.part or list(PARTS), options.count):
            print(line, flush=True)


if __name__ == "__main__":
    main()
