"""The localized, tempered posterior  p(w) ∝ exp(−U(w)),  U(w) = nβ·L(w) + (γ/2)·‖w − w*‖².

L is the mean loss, nβ the inverse temperature, γ the localization, w* the snapshot (arXiv 2509.26544, Sec. 3.1).
"""

from jaxtyping import Float
from torch import Tensor

from bif_lightning.config import SGLD, Sampler


def energy(mean_loss: float, squared_distance: float, sampler: Sampler) -> float:
    """U(w) = nβ·L(w) + (γ/2)·‖w − w*‖², in nats.

    Args:
        mean_loss: L(w), nats.
        squared_distance: ‖w − w*‖², squared weight units, in the metric of the pull.
    """
    return (sampler.inverse_temperature or 0.0) * mean_loss + 0.5 * (sampler.localization or 0.0) * squared_distance


def drift_(
    loss_gradient: Float[Tensor, " weight"],
    weights: Float[Tensor, " weight"],
    center: Float[Tensor, " weight"],
    sampler: SGLD,
) -> Float[Tensor, " weight"]:
    """∇U(w) = nβ·∇L(w) + γ·(w − w*), written over `loss_gradient`."""
    loss_gradient.mul_(sampler.inverse_temperature)
    loss_gradient.add_(weights, alpha=sampler.localization)
    return loss_gradient.sub_(center, alpha=sampler.localization)
