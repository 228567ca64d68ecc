"""Chains that ran away from the posterior: the energy of a draw, and how much of it is too much."""

import math

from jaxtyping import Float
from torch import Tensor

from bif_lightning.config import Sampler


def energy(mean_loss: float, squared_distance: float, sampler: Sampler) -> float:
    """U(w) = nβ·L(w) + (γ/2)·‖w − w*‖², in nats.

    Args:
        mean_loss: L(w), nats.
        squared_distance: ‖w − w*‖², squared weight units, in the metric of the pull.
    """
    return (sampler.inverse_temperature or 0.0) * mean_loss + 0.5 * (sampler.localization or 0.0) * squared_distance


def left_posterior(
    train: Float[Tensor, " train"],
    columns: Float[Tensor, " column"],
    squared_distance: float,
    snapshot_loss: float,
    num_weights: int,
    sampler: Sampler,
) -> str | None:
    """Why a draw is none of the posterior; None if it may be one.

    Not finite, or of an energy U(w) − U(w*) above 1000·(d + 100) nats. Near a minimum the posterior's own energy
    is about d/2 ± √(d/2), for SGLD times 1/(1 − ελ/4), so only a chain that runs away gets there.
    """
    if not bool(train.isfinite().all()) or not math.isfinite(squared_distance):
        return "a train loss is no longer finite"
    if not bool(columns.isfinite().all()):
        return "an observable of the queries is no longer finite"
    rise = energy(float(train.double().mean()) - snapshot_loss, squared_distance, sampler)
    limit = 1000.0 * (num_weights + 100)
    if rise > limit:
        return f"its energy is {rise:.3g} nats above the snapshot's, where about d/2 = {num_weights / 2:g} is expected"
    return None
