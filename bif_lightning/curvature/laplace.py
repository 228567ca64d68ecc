"""What gradients at the snapshot tell before the first draw: strong directions, and the posterior of `Subspace`."""

from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from bif_lightning.config import SGLD, Chains, Sampler, Subspace
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


@dataclass(frozen=True)
class PreparedSampler:
    """What a sampler knows of the snapshot's surroundings before it draws: see `chain.ChainContext`."""

    directions: Float[Tensor, "direction weight"] | None = None
    linear: LinearizedPosterior | None = None

    def settled(self, sampler: Sampler) -> Sampler:
        """The sampler with the localization that was found for this snapshot."""
        if self.linear is None or not isinstance(sampler, Subspace):
            return sampler
        found = self.linear.normal
        return replace(sampler, inverse_temperature=found.inverse_temperature, localization=found.localization)


def prepare(
    problem: Problem,
    backend: WeightBackend,
    sampler: Sampler,
    workers: int,
    ranks: Ranks,
    progress: Progress | None = None,
) -> PreparedSampler:
    """What this sampler needs to know, as far as it needs anything. Collective.

    Args:
        progress: told of `steps_of` steps.

    Raises:
        ValueError: the gradients cannot be held, or the loss is curved in too few directions.
    """
    if isinstance(sampler, Subspace):
        return PreparedSampler(linear=linear_of(problem, backend, sampler, workers, ranks, progress))
    if isinstance(sampler, SGLD) and sampler.num_directions is not None:
        with ranks.collective("the gradients at the snapshot") as meeting:
            steps = Steps(steps_of(problem, sampler, ranks), meeting.watched(progress))
            return PreparedSampler(directions=directions_of(problem, backend, sampler.num_directions, workers, steps))
    return PreparedSampler()


def steps_of(problem: Problem, sampler: Sampler, ranks: Ranks) -> int:
    """Steps of `prepare` on this rank: gradients and slopes, and products with a Hessian."""
    if isinstance(sampler, Subspace):
        return sum(_steps_of_subspace(problem, sampler, ranks))
    return problem.num_train if isinstance(sampler, SGLD) and sampler.num_directions is not None else 0


def _steps_of_subspace(problem: Problem, sampler: Subspace, ranks: Ranks) -> tuple[int, int]:
    directions = min(sampler.num_directions, problem.num_train)
    slopes = directions if problem.observables else 0
    groups = range(ranks.rank, min(GROUPS, len(problem.training)), ranks.world_size)
    return problem.num_train + problem.num_further_queries + slopes, directions * len(groups)


def seconds_for(problem: Problem, backend: WeightBackend, sampler: Sampler, workers: int, ranks: Ranks) -> float:
    """About how long `prepare` will take. Collective."""
    count = sampler.num_directions if isinstance(sampler, Subspace | SGLD) else None
    if count is None:
        return 0.0
    with ranks.collective("timing the gradients at the snapshot"):
        _check(problem)
        found = seconds_for_gradients(problem, backend, workers)
        if isinstance(sampler, Subspace):
            count = min(count, problem.num_train)
            if sampler.metric == "kronecker":
                examples = problem.num_train + problem.num_further_queries
                found += seconds_for_whitening(backend.layout.places, backend.center, examples, workers)
            found += seconds_for_hessians(problem, backend, count, workers, ranks.world_size)
        return found


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
    gradients, products = _steps_of_subspace(problem, sampler, ranks)
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
    told = offset_progress(progress, before=gradients)
    hessians = hessians_along(problem, backend, lowered, span, workers, ranks, told)
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


def default_sampler(problem: Problem, chains: Chains | None) -> Subspace | Literal["auto"]:
    """`Subspace` where the gradients of all examples can be held and no chains are asked for; else "auto".

    On every network tried it predicted retraining better than draws of any kind, in less time (benchmarks/lds.py).
    """
    return Subspace() if chains is None and why_no_gradients(problem) is None else "auto"


def _check(problem: Problem) -> None:
    if why := why_no_gradients(problem):
        raise ValueError(f"the sampler works with the gradient of every example, and {why}; or sample with SGLD")
