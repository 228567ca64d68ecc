"""Transition kernels of SGLD and RMSprop-SGLD.

A kernel receives a gradient and a source of noise and moves the weights; where the gradient comes from, and on
which machine, is not its business. A chain owns its weights, so a kernel works in place.

The localized, tempered posterior  p(w) ∝ exp(−U(w)),  U(w) = nβ·L(w) + (γ/2)·‖w − w*‖².

L is the mean loss, nβ the inverse temperature, γ the localization, w* the snapshot (arXiv 2509.26544, Sec. 3.1).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.config import SGLD


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


FillNormal = Callable[[Tensor], None]
"""Fills a flat tensor of the size of the weights with N(0, 1) numbers (0 where there is no weight)."""


@dataclass
class Preconditioner:
    """RMSprop's running mean of squared gradients (Hitchcock & Hoogland 2025, arXiv 2507.21449, Alg. 3).

    v_t = a·v_{t−1} + (1 − a)·g²,   v̂ = v_t / (1 − a^{t+1}),   ε_t = ε / (√v̂ + δ), elementwise.

    The g here is the minibatch gradient at the chain's weights, also where the chain moves by a control
    variate: the preconditioner measures the scale of gradients, which a difference that starts at 0 has not.
    """

    second_moment: Float[Tensor, " weight"]
    updates: int = 0

    def update(self, gradient: Float[Tensor, " weight"], sampler: SGLD, scale: float = 1.0) -> None:
        """Take in the gradient of the mean loss of one minibatch, multiplied by `scale`."""
        decay = sampler.rmsprop_decay
        self.second_moment.mul_(decay).addcmul_(gradient, gradient, value=(1 - decay) / scale**2)
        self.updates += 1

    def step_sizes(self, sampler: SGLD) -> Float[Tensor, " weight"]:
        """ε_t for every weight."""
        correction = 1 - sampler.rmsprop_decay**self.updates
        scale = (self.second_moment / correction).sqrt_().add_(sampler.rmsprop_stability)
        return scale.reciprocal_().mul_(sampler.step_size)


def preconditioner_for(weights: Float[Tensor, " weight"], sampler: SGLD) -> Preconditioner | None:
    """A fresh preconditioner, or None for plain SGLD."""
    return None if sampler.preconditioner is None else Preconditioner(torch.zeros_like(weights))


def step_(
    weights: Float[Tensor, " weight"],
    drift: Float[Tensor, " weight"],
    fill_normal: FillNormal,
    sampler: SGLD,
    preconditioner: Preconditioner | None = None,
) -> None:
    """w ← w − (ε_t/2)·∇U + √ε_t·ξ,  ξ ~ N(0, I), in place (ε_t = ε without a preconditioner).

    Args:
        weights: w, moved in place.
        drift: ∇U(w) = nβ·g + γ·(w − w*); used up, since its memory then holds the noise.
        fill_normal: source of ξ.
        preconditioner: gives ε_t; its update with this step's gradient must have been made.
    """
    if preconditioner is None:
        weights.add_(drift, alpha=-0.5 * sampler.step_size)
        fill_normal(drift)
        weights.add_(drift, alpha=math.sqrt(sampler.step_size))
        return
    step_sizes = preconditioner.step_sizes(sampler)
    weights.addcmul_(drift, step_sizes, value=-0.5)
    fill_normal(drift)
    weights.addcmul_(drift, step_sizes.sqrt_())
