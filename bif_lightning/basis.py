"""What gradients at the snapshot tell before the first draw: strong directions, and the posterior of `Subspace`."""

from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from bif_lightning.config import SGLD, Chains, Sampler, Subspace
from bif_lightning.directional import hessians_along, seconds_for_hessians
from bif_lightning.gradients import column_gradients, seconds_for_gradients, train_gradients, why_no_gradients
from bif_lightning.linear import Linear
from bif_lightning.placement import Placement
from bif_lightning.problem import Problem
from bif_lightning.subspace import Normal, ridge_for, strongest_directions, turned
from bif_lightning.weights import Host

_LEAST_INVERSE_TEMPERATURE = 1e5
_REACH = 0.02
_LEAST_NORM = 1e-3  # where all weights are 0
_OF_EXAMPLES = 0.1
_OF_DIRECTIONS = 0.7


@dataclass(frozen=True)
class Surroundings:
    """What a sampler knows of the snapshot's surroundings before it draws: see `chain.Plan`."""

    directions: Float[Tensor, "direction weight"] | None = None
    linear: Linear | None = None

    def settled(self, sampler: Sampler) -> Sampler:
        """The sampler with the localization that was found for this snapshot."""
        if self.linear is None or not isinstance(sampler, Subspace):
            return sampler
        found = self.linear.normal
        return replace(sampler, inverse_temperature=found.inverse_temperature, localization=found.localization)


def look_around(problem: Problem, host: Host, sampler: Sampler, workers: int, placement: Placement) -> Surroundings:
    """What this sampler needs to know, as far as it needs anything. Collective.

    Raises:
        ValueError: the gradients cannot be held, or the loss is curved in too few directions.
    """
    if isinstance(sampler, Subspace):
        return Surroundings(linear=linear_of(problem, host, sampler, workers, placement))
    if isinstance(sampler, SGLD) and sampler.num_directions is not None:
        with placement.together("the gradients at the snapshot"):
            return Surroundings(directions=directions_of(problem, host, sampler.num_directions, workers))
    return Surroundings()


def seconds_for(problem: Problem, host: Host, sampler: Sampler, workers: int, placement: Placement) -> float:
    """About how long `look_around` will take. Collective."""
    count = sampler.num_directions if isinstance(sampler, Subspace | SGLD) else None
    if count is None:
        return 0.0
    with placement.together("timing the gradients at the snapshot"):
        _check(problem)
        found = seconds_for_gradients(problem, host, workers)
        if isinstance(sampler, Subspace):
            count = min(count, problem.num_train)
            found += seconds_for_hessians(problem, host, count, workers, placement.world_size)
        return found


def directions_of(problem: Problem, host: Host, count: int, workers: int) -> Float[Tensor, "direction weight"]:
    """The `count` strongest directions of the train examples' gradients, orthonormal.

    Raises:
        ValueError: the gradients cannot be held.
    """
    _check(problem)
    return strongest_directions(train_gradients(problem, host, workers), count, workers)


def linear_of(problem: Problem, host: Host, sampler: Subspace, workers: int, placement: Placement) -> Linear:
    """Gradients of all that is measured, and the Gaussian posterior around the snapshot. Collective.

    Args:
        sampler: where its localization is None, the label-free rule gives one (`label_free_ridge`).

    Raises:
        ValueError: the gradients cannot be held, or the loss is curved in too few directions.
    """
    with placement.together("the gradients at the snapshot"):
        _check(problem)
        train = train_gradients(problem, host, workers)
        directions = strongest_directions(train, sampler.num_directions, workers)
        norm = max(host.norm(host.center), _LEAST_NORM)
        span = sampler.span * norm
        columns = column_gradients(problem, host, workers, train, directions, span)
    hessians = hessians_along(problem, host, directions, span, workers, placement)
    normal, turn = Normal.of(directions, hessians.mean(0), 1.0, 1.0)
    normal = _tempered(normal, sampler, problem.num_train, reach=_REACH * norm)
    return Linear.of(normal, turned(hessians, turn), train, columns)


def _tempered(normal: Normal, sampler: Subspace, num_train: int, reach: float) -> Normal:
    """The posterior at the sampler's nβ and γ, or at those of the rules: γ = nβ·λ by `label_free_ridge`, and an nβ with
    which Σ_k v_k, the mean squared distance of the draws, is at most reach²."""
    if sampler.localization is not None:
        nb = sampler.inverse_temperature or _LEAST_INVERSE_TEMPERATURE
        return replace(normal, inverse_temperature=nb, localization=sampler.localization)
    ridge = label_free_ridge(normal.curvature, num_train)
    local = float((1 / (normal.curvature + ridge)).sum()) / reach**2
    nb = sampler.inverse_temperature or max(_LEAST_INVERSE_TEMPERATURE, local)
    return replace(normal, inverse_temperature=nb, localization=nb * ridge)


def label_free_ridge(curvature: Float[Tensor, " direction"], num_train: int) -> float:
    """λ = γ/nβ for which d_eff = Σ h_k/(h_k + γ/nβ) is the smaller of n/10 and 0.7 of the directions that are curved.

    n/10 came near the best retraining score of three networks without looking at it (benchmarks/lds.py); beyond 0.7·K
    the directions left out would matter.
    """
    curved = int((curvature > 0).sum())
    return ridge_for(curvature, min(_OF_EXAMPLES * num_train, _OF_DIRECTIONS * curved))


def default_sampler(problem: Problem, chains: Chains | None) -> Subspace | Literal["auto"]:
    """`Subspace` where the gradients of all examples can be held and no chains are asked for; else "auto".

    On every network tried it predicted retraining better than draws of any kind, in less time (benchmarks/lds.py).
    """
    return Subspace() if chains is None and why_no_gradients(problem) is None else "auto"


def _check(problem: Problem) -> None:
    if why := why_no_gradients(problem):
        raise ValueError(f"the sampler works with the gradient of every example, and {why}; or sample with SGLD")
