"""Antithetic draws of a Gaussian around the snapshot: w* + δ and w* − δ, independent from pair to pair.

δ = σ·ξ for the isotropic sampler `Pairs`, δ = Σ^½·ξ for the posterior of `Subspace`, ξ ~ N(0, I). What is odd in δ, as
the linear part of a loss, cancels from the mean of a pair exactly, and what is even from its half difference.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bif_lightning.sampling.sampler import ChainState

Color = Callable[[Tensor], Tensor]
"""Makes a displacement of standard normal numbers: Σ^½."""


def draw_antithetic(state: ChainState, draw: int, color: Color) -> None:
    """Put a chain at one draw: draws 2k and 2k + 1 have the same number with two signs.

    Args:
        draw: index of the recorded draw, from 0.
    """
    backend = state.context.backend
    standard = torch.zeros_like(backend.center)
    for parameter, piece in enumerate(backend.layout.pieces(standard)):
        backend.fill_normal(piece, parameter, state.noise.normals(draw // 2, parameter))
    with torch.no_grad():
        out = color(standard)
        state.put(out if draw % 2 == 0 else -out)
