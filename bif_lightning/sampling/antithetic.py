"""Antithetic draws of a Gaussian around the snapshot: w* + δ and w* − δ, independent from pair to pair.

δ = σ·ξ for the isotropic sampler `Pairs`, δ = Σ^½·ξ for the posterior of `Subspace`, ξ ~ N(0, I). What is odd in δ, as
the linear part of a loss, cancels from the mean of a pair exactly, and what is even from its half difference.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.model.weights import WeightBackend
from bif_lightning.rng import Noise

Color = Callable[[Tensor], Tensor]
"""Makes a displacement of standard normal numbers."""


def displacement(backend: WeightBackend, noise: Noise, draw: int, color: Color) -> Float[Tensor, " weight"]:
    """δ of one draw: of draws 2k and 2k + 1 the same number with two signs.

    Args:
        noise: of the chain.
        draw: index of the recorded draw, from 0.
        color: Σ^½.
    """
    standard = torch.zeros_like(backend.center)
    for parameter, piece in enumerate(backend.layout.pieces(standard)):
        backend.fill_normal(piece, parameter, noise.normals(draw // 2, parameter))
    out = color(standard)
    return out if draw % 2 == 0 else -out
