"""The methods of the retraining test: this package's estimators and their peers, at the end and over a training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

import bif_lightning as bl
from bif_lightning.config import SGLD, Chains, ControlledSGLD, Sampler, Subspace
from bif_lightning.config import Pairs as PairDraws
from bif_lightning.exceptions import ChainsDivergedError
from models import Pairs
from retraining import gradients
from retraining.devinterp_peer import devinterp
from retraining.ekfac import ekfac
from retraining.gradients import Solve
from retraining.over_training import over_training, tracin
from retraining.tasks import Task
from retraining.unrolled import unrolled


@dataclass(frozen=True)
class Method:
    """A way to compute influences at the reference checkpoint.

    Attributes:
        prepare: (task, model) -> a function of the method's knob that gives the influence, [n, q].
        settings: what the knob is set to without looking at the answer, by the words that say so: a row each.
        search: more values; the best of all on the retraining itself makes one further row, which says so.
    """

    name: str
    prepare: Callable[[Task, nn.Module], Solve]
    settings: tuple[tuple[str, float], ...] = (("", 0.0),)
    search: tuple[float, ...] = ()


def estimator(
    sampler: Sampler | Literal["auto"] | None,
    chains: Chains | None = None,
    *,
    conditioned: bool = False,
    training_data: Pairs | None = None,
) -> Callable[[Task, nn.Module], Solve]:
    """One of this package's estimators: its influence, or its conditioned influence.

    Args:
        sampler, chains, training_data: of `bif_lightning.estimate`.
        conditioned: give the conditioned influence.
    """

    def prepare(task: Task, model: nn.Module) -> Solve:
        train, query = task.data()

        def solve(_: float) -> Tensor:
            try:
                found = bl.estimate(
                    model, task.losses, train, query, sampler=sampler, chains=chains, training_data=training_data
                ).losses
            except (ValueError, ChainsDivergedError) as error:  # as the paper's settings on some tasks
                raise NotImplementedError(str(error)) from error
            matrix = found.conditioned if conditioned else found.influence
            if matrix is None:
                raise NotImplementedError("it made no conditioned influence")
            return torch.from_numpy(matrix)

        return solve

    return prepare


PAPER = SGLD(step_size=5e-5, inverse_temperature=200.0, localization=1e4, gradient="minibatch")
PAPER_CHAINS = Chains(num_chains=4, num_draws=100, batch_size=256, centring="pooled")
DAMPINGS = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 0.3, 1.0, 3.0)

METHODS = (
    Method("gradient dot product", gradients.dot),
    Method("gradient cosine", gradients.cosine),
    Method("TRAK, one checkpoint", gradients.trak, (("k = 128", 128),), (32, 64, 256, 512)),
    Method("empirical Fisher, exact", gradients.empirical_fisher, (("d_eff = n/10", 0.0),), DAMPINGS),
    Method("Gauss-Newton, exact", gradients.gauss_newton, (("d_eff = n/10", 0.0),), DAMPINGS),
    Method(
        "EK-FAC (kronfluence)", ekfac, (("default damping 1e-8", 1e-8), ("heuristic damping", 0.0)), DAMPINGS
    ),
    Method("devinterp", devinterp, (("step 5e-5", 5e-5),)),
    Method("paper: SGLD, pooled", estimator(PAPER, PAPER_CHAINS)),
    Method("paper: SGLD, conditioned", estimator(PAPER, PAPER_CHAINS, conditioned=True)),
    Method("SGLD auto", estimator("auto")),
    Method("SGLD auto, conditioned", estimator("auto", conditioned=True)),
    Method("Pairs 4 x 100, conditioned", estimator(PairDraws(), Chains(num_draws=100), conditioned=True)),
    Method("Subspace 32", estimator(Subspace(num_directions=32))),
    Method("Subspace 64", estimator(Subspace(num_directions=64))),
    Method("Subspace 128", estimator(Subspace())),
    Method("controlled SGLD, the default", estimator(None)),
    Method("controlled SGLD, alpha = 1", estimator(ControlledSGLD(alpha=1.0))),
    Method("controlled SGLD, alpha = 0", estimator(ControlledSGLD(alpha=0.0))),
    Method("Subspace 128, Euclidean", estimator(Subspace(metric="euclidean"))),
    Method("Subspace 256", estimator(Subspace(num_directions=256))),
    Method("sum over 8 snapshots of gradient dot products", over_training(gradients.dot)),
    Method("TracIn over 8 snapshots", tracin),
    Method("sum over 8 snapshots of EK-FAC, heuristic damping", over_training(ekfac), (("", 0.0),)),
    Method("sum over 8 snapshots of Subspace 128", over_training(estimator(Subspace()))),
    Method("exact derivative of the training", lambda task, model: lambda _: unrolled(task)),
)  # fmt: skip
