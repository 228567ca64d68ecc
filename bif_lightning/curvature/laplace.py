"""The posterior at the snapshot: strong directions of the gradients, the curvature along them, and the pull by rule."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from bif_lightning.config import Subspace
from bif_lightning.curvature.closed_form import LinearizedPosterior
from bif_lightning.curvature.gaussian import SubspaceGaussian, rotate, strongest_directions
from bif_lightning.curvature.gradients import (
    column_gradients,
    seconds_for_gradients,
    train_gradients,
    why_no_gradients,
)
from bif_lightning.curvature.kronecker import KroneckerPreconditioner, seconds_for_whitening
from bif_lightning.curvature.subsample import GROUPS, hessians_along, seconds_for_hessians
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.distributed.threads import Progress, Steps, offset_progress
from bif_lightning.losses.problem import Problem
from bif_lightning.model.weights import WeightBackend, norm_of_snapshot, span_along
from bif_lightning.statistics.effective_dimension import ridge_for

_LEAST_INVERSE_TEMPERATURE = 1e5
_REACH = 0.02
_OF_EXAMPLES = 0.1
_OF_DIRECTIONS = {"kronecker": 0.3, "euclidean": 0.7}


def steps_of_linear(problem: Problem, settings: Subspace, ranks: Ranks) -> tuple[int, int]:
    """Steps of `linear_of` on this rank: gradients and slopes, and products with a Hessian."""
    directions = min(settings.num_directions, problem.num_train)
    slopes = directions if problem.observables else 0
    groups = range(ranks.rank, min(GROUPS, len(problem.training)), ranks.world_size)
    return problem.num_train + problem.num_further_queries + slopes, directions * len(groups)


def seconds_for_linear(
    problem: Problem, backend: WeightBackend, settings: Subspace, workers: int, ranks: Ranks
) -> float:
    """About how long `linear_of` takes, timed on parts of it. Collective."""
    with ranks.collective("timing the gradients at the snapshot"):
        _check(problem)
        found = seconds_for_gradients(problem, backend, workers)
        if settings.metric == "kronecker":
            examples = problem.num_train + problem.num_further_queries
            found += seconds_for_whitening(backend.layout.places, backend.center, examples, workers)
        count = min(settings.num_directions, problem.num_train)
        return found + seconds_for_hessians(problem, backend, count, workers, ranks.world_size)


def seconds_for_directions(problem: Problem, backend: WeightBackend, workers: int, ranks: Ranks) -> float:
    """About how long `directions_of` takes, timed on a few gradients. Collective."""
    with ranks.collective("timing the gradients at the snapshot"):
        _check(problem)
        return seconds_for_gradients(problem, backend, workers)


def directions_of(
    problem: Problem, backend: WeightBackend, count: int, workers: int, steps: Steps | None = None
) -> Float[Tensor, "direction weight"]:
    """The `count` strongest directions of the train examples' gradients, orthonormal.

    Raises:
        ValueError: the gradients cannot be held.
    """
    _check(problem)
    return strongest_directions(train_gradients(problem, backend, workers, steps), count, workers)


def linear_of(
    problem: Problem,
    backend: WeightBackend,
    sampler: Subspace,
    workers: int,
    ranks: Ranks,
    progress: Progress | None = None,
) -> LinearizedPosterior:
    """Gradients of all that is measured, and the Gaussian posterior around the snapshot. Collective.

    Args:
        sampler: where its localization is None, the label-free rule gives one (`rule_ridge`).

    Raises:
        ValueError: the gradients cannot be held, or the loss is curved in too few directions.
    """
    gradients, products = steps_of_linear(problem, sampler, ranks)
    with ranks.collective("the gradients at the snapshot") as meeting:
        _check(problem)
        steps = Steps(gradients, meeting.watched(offset_progress(progress, after=products)))
        train = train_gradients(problem, backend, workers, steps)
        metric = (
            KroneckerPreconditioner.whitening(train, backend.layout.places, workers)
            if sampler.metric == "kronecker"
            else KroneckerPreconditioner()
        )
        directions = strongest_directions(train, sampler.num_directions, workers)
        lowered = metric.to_weight_space(directions)
        span = span_along(backend, lowered, sampler.span)
        columns = column_gradients(problem, backend, workers, train, metric, directions, span, steps)
    during = offset_progress(progress, before=gradients)
    hessians = hessians_along(problem, backend, lowered, span, workers, ranks, during)
    normal, turn = SubspaceGaussian.of(directions, hessians.mean(0), 1.0, 1.0, metric)
    squares = (turn.mT.to(lowered) @ lowered).square().sum(1)
    normal = _tempered(normal, squares, sampler, problem.num_train, reach=_REACH * norm_of_snapshot(backend))
    return LinearizedPosterior.of(normal, rotate(hessians, turn), train, columns)


def _tempered(
    normal: SubspaceGaussian, squares: Float[Tensor, " direction"], sampler: Subspace, num_train: int, reach: float
) -> SubspaceGaussian:
    """The posterior at the sampler's nβ and γ, or at those of the rules: γ = nβ·λ by `rule_ridge`, and an nβ with
    which Σ_k v_k·|d_k|², the mean squared distance of the draws, is at most reach².

    Args:
        squares: |d_k|², of the directions in the weights.
    """
    if sampler.localization is not None:
        nb = sampler.inverse_temperature or _LEAST_INVERSE_TEMPERATURE
        return replace(normal, inverse_temperature=nb, localization=sampler.localization)
    ridge = rule_ridge(normal.curvature, num_train, _OF_DIRECTIONS[sampler.metric])
    local = float((squares / (normal.curvature + ridge)).sum()) / reach**2
    nb = sampler.inverse_temperature or max(_LEAST_INVERSE_TEMPERATURE, local)
    return replace(normal, inverse_temperature=nb, localization=nb * ridge)


def rule_ridge(curvature: Float[Tensor, " direction"], num_train: int, share: float) -> float:
    """λ = γ/nβ for which d_eff = Σ h_k/(h_k + γ/nβ) is the smaller of n/10 and a share of the curved directions.

    Both came near the best retraining scores of four networks (docs/evidence/retraining.md). Beyond 0.7·K the
    directions left out would matter; with a metric, 0.3·K makes γ·M about as strong as the curvature it stands for.
    """
    curved = int((curvature > 0).sum())
    return ridge_for(curvature, min(_OF_EXAMPLES * num_train, share * curved))


def _check(problem: Problem) -> None:
    if why := why_no_gradients(problem):
        raise ValueError(f"the sampler works with the gradient of every example, and {why}; or sample with SGLD")
