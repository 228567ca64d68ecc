"""What gradients at the snapshot tell before the first draw: strong directions, and the posterior of `Subspace`."""

from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from bif_lightning.config import SGLD, Chains, Sampler, Subspace
from bif_lightning.gradients import column_gradients, hessians_along, train_gradients, why_no_gradients
from bif_lightning.linear import Linear
from bif_lightning.placement import Placement
from bif_lightning.problem import Problem
from bif_lightning.subspace import Normal, ridge_for, strongest_directions, turned
from bif_lightning.weights import Host

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
        return replace(sampler, localization=self.linear.normal.localization)


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


def directions_of(problem: Problem, host: Host, count: int, workers: int) -> Float[Tensor, "direction weight"]:
    """The `count` strongest directions of the train examples' gradients, orthonormal.

    Raises:
        ValueError: the gradients cannot be held.
    """
    _check(problem)
    return strongest_directions(train_gradients(problem, host, workers), count)


def linear_of(problem: Problem, host: Host, sampler: Subspace, workers: int, placement: Placement) -> Linear:
    """Gradients of all that is measured, and the Gaussian posterior around the snapshot. Collective.

    Args:
        sampler: where its localization is None, the label-free rule gives one (`label_free_localization`).

    Raises:
        ValueError: the gradients cannot be held, or the loss is curved in too few directions.
    """
    with placement.together("the gradients at the snapshot"):
        _check(problem)
        train = train_gradients(problem, host, workers)
        directions = strongest_directions(train, sampler.num_directions)
        span = sampler.span * max(host.norm(host.center), _LEAST_NORM)
        columns = column_gradients(problem, host, workers, train, directions, span)
    hessians = hessians_along(problem, host, directions, span, workers, placement)
    normal, turn = Normal.of(directions, hessians.mean(0), sampler.inverse_temperature, sampler.localization or 1.0)
    if sampler.localization is None:
        found = label_free_localization(normal.curvature, problem.num_train, sampler.inverse_temperature)
        normal = replace(normal, localization=found)
    return Linear.of(normal, turned(hessians, turn), train, columns)


def label_free_localization(
    curvature: Float[Tensor, " direction"], num_train: int, inverse_temperature: float
) -> float:
    """γ for which d_eff = Σ h_k/(h_k + γ/nβ) is the smaller of n/10 and 0.7 of the directions that are curved.

    n/10 came near the best retraining score of three networks without looking at it (benchmarks/lds.py); beyond 0.7·K
    the directions left out would matter.
    """
    curved = int((curvature > 0).sum())
    dimension = min(_OF_EXAMPLES * num_train, _OF_DIRECTIONS * curved)
    return inverse_temperature * ridge_for(curvature, dimension)


def default_sampler(problem: Problem, chains: Chains | None) -> Subspace | Literal["auto"]:
    """`Subspace` where the gradients of all examples can be held and no chains are asked for; else "auto".

    On every network tried it predicted retraining better than draws of any kind, in less time (benchmarks/lds.py).
    """
    return Subspace() if chains is None and why_no_gradients(problem) is None else "auto"


def _check(problem: Problem) -> None:
    if why := why_no_gradients(problem):
        raise ValueError(f"the sampler works with the gradient of every example, and {why}; or sample with SGLD")
