"""Sums over the snapshots of a training, and what follows from how far they agree."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from bif_lightning.results.integrated import IntegratedInfluence
from retraining import gradients
from retraining.gradients import Solve
from retraining.tasks import Task
from retraining.training import learning_rate, trajectory
from retraining.truth import Truth

COUNT = 8
"""Snapshots of a training, as many as the callback takes where nothing else is said."""

Prepare = Callable[[Task, nn.Module], Solve]


def squares(steps: int, count: int = COUNT) -> list[int]:
    """Moments at equal distances of √t: T·(k/K)²."""
    return sorted({max(1, round(steps * (k / count) ** 2)) for k in range(1, count + 1)})


def evenly(steps: int, count: int = COUNT) -> list[int]:
    """Moments at equal distances of t: T·k/K."""
    return sorted({max(1, round(steps * k / count)) for k in range(1, count + 1)})


def by_logarithm(steps: int, count: int = COUNT, first: float = 0.01) -> list[int]:
    """Moments at equal distances of log t, from a share of the training on."""
    return sorted({max(1, round(steps * first ** (1 - k / (count - 1)))) for k in range(count)})


def late(steps: int, count: int = COUNT, share: float = 0.05) -> list[int]:
    """Moments within the last share of the training."""
    return sorted({round(steps * (1 - share * (1 - k / (count - 1)))) for k in range(count)})


@lru_cache(maxsize=8)
def models(task: Task, steps: tuple[int, ...], seed: int = 0) -> list[nn.Module]:
    """The models after these steps of one training, in evaluation mode; seed 0 is that of the reference checkpoint."""
    path, found = trajectory(task, seed), list[nn.Module]()
    for step in steps:
        module = task.build()
        module.load_state_dict({name: value[0] for name, value in path[step].items()})
        found.append(module.eval())
    return found


def summed(matrices: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """The sum of matrices, each column on its own scale; the integrated influence where there are no weights."""
    parts = [IntegratedInfluence.zeros(*matrices[0].shape) for _ in matrices]
    for step, (part, matrix) in enumerate(zip(parts, matrices, strict=True)):
        part.push(step, matrix.double().numpy(), torch.zeros_like(matrix).numpy())
    scaled = [torch.from_numpy(part.influence).nan_to_num() for part in parts]
    return sum(
        (weight * each for weight, each in zip(weights or [1.0] * len(scaled), scaled, strict=True)), 0 * scaled[0]
    )


def over_training(prepare: Prepare, count: int = COUNT) -> Prepare:
    """The sum of a method's influences over the snapshots of the reference training, in place of one checkpoint's."""

    def prepare_all(task: Task, model: nn.Module) -> Solve:
        solves = [prepare(task, each) for each in models(task, tuple(squares(task.recipe.steps, count)))]
        return lambda knob: summed([solve(knob).double().nan_to_num() for solve in solves])

    return prepare_all


def tracin(task: Task, model: nn.Module) -> Solve:
    """TracIn (Pruthi et al. 2020): gradient dot products over the snapshots, by the learning rate of each."""
    at = squares(task.recipe.steps)
    dots = [gradients.dot(task, each)(0) for each in models(task, tuple(at))]
    rates = [learning_rate(task.recipe, step - 1) for step in at]
    return lambda _: sum((rate * dot for rate, dot in zip(rates, dots, strict=True)), 0 * dots[0])


@dataclass(frozen=True)
class Account:
    """What a sum of K matrices scores, from what one scores and how far they agree.

    With p_t[s, j] = Σ_{i∈s} z_t[i, j] the prediction of matrix t for subset s, of mean 0 and variance 1 over subsets,
    y the retrained losses likewise, ρ_t = corr(p_t, y) and c_{tu} = corr(p_t, p_u),

        corr(Σ_t p_t, y) = Σ_t ρ_t / √(Σ_tu c_tu) = ρ̄ / √((1 + (K − 1)·c̄)/K):

    an identity. What a sum gains over one of its members is the square root that their disagreement leaves.

    Attributes:
        alone: ρ̄, mean over matrices and queries.
        agreement: c̄, mean over pairs of different matrices and over queries; it needs no retraining.
        together: the correlation of the sum of predictions, mean over queries.
    """

    alone: float
    agreement: float
    together: float


def account(matrices: Sequence[Tensor], truth: Truth) -> Account:
    """The account of a sum; columns without variance are left out of the means."""
    subsets, retrained = truth.subsets.double(), _standard(truth.losses.mean(1).double())
    predicted = torch.stack([_standard(subsets @ summed([matrix])) for matrix in matrices])
    own = (predicted * retrained).mean(1)
    pairs = torch.einsum("tsq,usq->tuq", predicted, predicted) / len(subsets)
    count = len(matrices)
    others = (pairs.sum((0, 1)) - count) / max(count * (count - 1), 1)
    return Account(
        float(own.nanmean()), float(others.nanmean()), float((own.sum(0) / pairs.sum((0, 1)).sqrt()).nanmean())
    )


def _standard(values: Tensor) -> Tensor:
    return (values - values.mean(0)) / values.std(0, correction=0)
