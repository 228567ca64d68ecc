"""The Laplace approximation at the snapshot: gradient directions, the curvature along them, and the default pull."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from jaxtyping import Float, Float64
from torch import Tensor

from bif_lightning.config import ControlledSGLD, Subspace
from bif_lightning.curvature.closed_form import LinearizedPosterior
from bif_lightning.curvature.gaussian import SubspaceGaussian, rotate, strongest_directions
from bif_lightning.curvature.gradients import (
    column_gradients,
    seconds_for_gradients,
    train_gradients,
    why_no_gradients,
)
from bif_lightning.curvature.kronecker import KroneckerPreconditioner, metric_bytes, seconds_for_whitening
from bif_lightning.curvature.strata import OfExamples
from bif_lightning.curvature.subsample import GROUPS, hessians_along, seconds_for_hessians
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.distributed.threads import Progress, Steps, offset_progress
from bif_lightning.losses.problem import Problem
from bif_lightning.model.weights import WeightBackend, norm_of_snapshot, span_along
from bif_lightning.statistics.effective_dimension import effective_dimension, ridge_for

_LEAST_INVERSE_TEMPERATURE = 1e5
_REACH = 0.02
_OF_EXAMPLES = 0.1
_OF_DIRECTIONS = {"kronecker": 0.3, "euclidean": 0.7}


def steps_to_linearize(problem: Problem, settings: Subspace | ControlledSGLD, ranks: Ranks) -> tuple[int, int]:
    """Steps of `linearize` on this rank: gradients with slopes, and Hessian-vector products."""
    directions = min(settings.num_directions, problem.num_train)
    slopes = directions if problem.observables else 0
    groups = range(ranks.rank, min(GROUPS, len(problem.training)), ranks.world_size)
    return problem.num_train + problem.num_further_queries + slopes, directions * len(groups)


def seconds_to_linearize(
    problem: Problem,
    backend: WeightBackend,
    settings: Subspace | ControlledSGLD,
    workers: int,
    ranks: Ranks,
    curvature: Callable[[], float] | None = None,
) -> float:
    """Estimate how long `linearize` takes, by timing parts of it. Collective.

    Args:
        curvature: seconds for the curvature; None for products with the Hessian.
    """
    with ranks.collective("timing the gradients at the snapshot"):
        _check(problem)
        found = seconds_for_gradients(problem, backend, workers)
        if settings.metric == "kronecker":
            examples = problem.num_train + problem.num_further_queries
            found += seconds_for_whitening(backend.layout.places, backend.center, examples, workers)
        count = min(settings.num_directions, problem.num_train)
        if curvature is not None:
            return found + curvature()
        return found + seconds_for_hessians(problem, backend, count, workers, ranks.world_size)


def seconds_for_directions(problem: Problem, backend: WeightBackend, workers: int, ranks: Ranks) -> float:
    """Estimate how long `directions_of` takes, by timing a few gradients. Collective."""
    with ranks.collective("timing the gradients at the snapshot"):
        _check(problem)
        return seconds_for_gradients(problem, backend, workers)


def directions_of(
    problem: Problem, backend: WeightBackend, count: int, workers: int, steps: Steps | None = None
) -> Float[Tensor, "direction weight"]:
    """An orthonormal basis of the `count` strongest directions of the train gradients.

    Raises:
        ValueError: the gradients cannot be held.
    """
    _check(problem)
    return strongest_directions(train_gradients(problem, backend, workers, steps), count, workers)


@dataclass(frozen=True)
class SurrogatePosterior:
    """The posterior whose chains run beside those of the true loss (`sampling.controlled`).

    Attributes:
        posterior: with the gradients of all that is measured, or sketches of them.
        directions: its most curved directions, in weight space; the last of `posterior.normal`.
        examples: what is known of single training examples.
    """

    posterior: LinearizedPosterior
    directions: Float[Tensor, "direction weight"]
    examples: OfExamples

    @property
    def along(self) -> Float64[Tensor, " direction"]:
        """h, the curvature along the directions."""
        return self.posterior.normal.curvature[-len(self.directions) :].double().cpu()

    @property
    def effective_dimension(self) -> float:
        """Σ h/(h + γ/nβ) over the directions."""
        normal = self.posterior.normal
        return effective_dimension(self.along, normal.localization / normal.inverse_temperature)

    def tensors(self) -> list[Tensor]:
        """The tensors that take most of the memory."""
        return [*self.posterior.tensors(), self.directions]


class Curvature(Protocol):
    """Measures the curvature of the mean training loss along directions. Collective."""

    def __call__(
        self, directions: Float[Tensor, "direction weight"], span: float, progress: Progress | None
    ) -> Float[Tensor, "group direction direction"]:
        """Q·H_g·Qᵀ of groups of training examples, whose mean over groups is that of all.

        Args:
            directions: Q, rows in weight space.
            span: length of differences along them, in units of the rows' length.
            progress: called after each step of this rank.
        """
        ...


def linearize(
    problem: Problem,
    backend: WeightBackend,
    sampler: Subspace | ControlledSGLD,
    workers: int,
    ranks: Ranks,
    progress: Progress | None = None,
    curvature: Curvature | None = None,
    curvature_steps: int = 0,
) -> LinearizedPosterior:
    """Linearize all losses and observables at the snapshot, under the Gaussian posterior around it. Collective.

    Args:
        sampler: settings; if its localization is None, `rule_ridge` sets it.
        curvature: how the curvature is measured; None for products with the Hessian (`hessians_along`).
        curvature_steps: steps of progress that it reports on this rank.

    Raises:
        ValueError: the gradients cannot be held, or the loss is curved in too few directions.
    """
    gradients, products = steps_to_linearize(problem, sampler, ranks)
    if curvature is not None:
        products = curvature_steps
    with ranks.collective("the gradients at the snapshot") as section:
        _check(problem)
        steps = Steps(gradients, section.watched(offset_progress(progress, after=products)))
        train = train_gradients(problem, backend, workers, steps)
        metric = (
            KroneckerPreconditioner.whitening(train, backend.layout.places, workers)
            if sampler.metric == "kronecker"
            else KroneckerPreconditioner()
        )
        directions = strongest_directions(train, sampler.num_directions, workers)
        in_weights = metric.to_weight_space(directions)
        span = span_along(backend, in_weights, sampler.span)
        columns = column_gradients(problem, backend, workers, train, metric, directions, span, steps)
    during = offset_progress(progress, before=gradients)
    if curvature is None:
        hessians = hessians_along(problem, backend, in_weights, span, workers, ranks, during)
    else:
        hessians = curvature(in_weights, span, during).to(in_weights.device)
    normal, eigenvectors = SubspaceGaussian.of(directions, hessians.mean(0), 1.0, 1.0, metric)
    squares = (eigenvectors.mT.to(in_weights) @ in_weights).square_().sum(1)
    normal = tempered(normal, squares, sampler, problem.num_train, norm_of_snapshot(backend))
    return LinearizedPosterior.of(normal, rotate(hessians, eigenvectors), train, columns)


def linearized_bytes(problem: Problem, backend: WeightBackend, settings: Subspace | ControlledSGLD) -> int:
    """Bytes that `linearize` will hold: gradients of all that is measured, directions, and the metric."""
    item, layout = backend.center.element_size(), backend.layout
    others = 0 if problem.query is problem.train else sum(problem.column_counts)
    directions = min(settings.num_directions, problem.num_train)
    gradients = (problem.num_train + others + directions) * layout.size * item
    metric = metric_bytes(layout.places, item) if settings.metric == "kronecker" else 0
    return gradients + metric + passing_bytes(backend, directions, settings.metric)


def passing_bytes(backend: WeightBackend, directions: int, metric: str) -> int:
    """Bytes that `linearize` holds for a while beside what it returns: directions before they are rotated to the
    eigenvectors, in weight space where that is another one, and rotated there."""
    vectors = 3 if metric == "kronecker" else 2
    return vectors * directions * backend.layout.size * backend.center.element_size()


def tempered(
    normal: SubspaceGaussian,
    squares: Float[Tensor, " direction"],
    sampler: Subspace | ControlledSGLD,
    num_train: int,
    norm: float,
) -> SubspaceGaussian:
    """Set nβ and γ of the posterior, from the settings or by default rules.

    By rule γ = nβ·λ, with λ of `rule_ridge`, and nβ is large enough that the mean squared distance of the draws from
    the snapshot, Σ_k v_k·|d_k|², is at most (0.02·‖w*‖)².

    Args:
        squares: |d_k|², squared lengths of the directions in weight space.
        norm: ‖w*‖.
    """
    if sampler.localization is not None:
        nb = sampler.inverse_temperature or _LEAST_INVERSE_TEMPERATURE
        return replace(normal, inverse_temperature=nb, localization=sampler.localization)
    ridge = rule_ridge(normal.curvature, num_train, _OF_DIRECTIONS[sampler.metric])
    local = float((squares / (normal.curvature + ridge)).sum()) / (_REACH * norm) ** 2
    nb = sampler.inverse_temperature or max(_LEAST_INVERSE_TEMPERATURE, local)
    return replace(normal, inverse_temperature=nb, localization=nb * ridge)


def rule_ridge(curvature: Float[Tensor, " direction"], num_train: int, share: float) -> float:
    """The λ = γ/nβ at which d_eff = Σ h_k/(h_k + γ/nβ) is min(n/10, share · number of curved directions).

    The rule came close to the best retraining scores of four networks (docs/evidence/retraining.md). Above 0.7·K the
    omitted directions would matter. With a Kronecker metric, 0.3·K makes γ·M about as strong as the curvature that M
    approximates.
    """
    curved = int((curvature > 0).sum())
    return ridge_for(curvature, min(_OF_EXAMPLES * num_train, share * curved))


def _check(problem: Problem) -> None:
    if why := why_no_gradients(problem):
        raise ValueError(f"the sampler needs the gradient of every example, but {why}; or sample with SGLD")
