"""The effective dimension: the number of directions in which the loss is curved more than the pull, and its inverse."""

from math import exp, log
from typing import cast

from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor

_LEAST = 1e-14  # share of the largest eigenvalue; smaller ones are rounding errors


def effective_dimension(curvature: Float[Tensor, " direction"], ridge: float) -> float:
    """Compute Σ h_k/(h_k + λ) over eigenvalues h_k ≥ 0, with λ = γ/nβ.

    >>> import torch
    >>> effective_dimension(torch.tensor([3.0, 1.0, 0.0]), 1.0)
    1.25
    """
    return float((curvature / (curvature + ridge)).sum())


def ridge_for(curvature: Float[Tensor, " direction"], dimension: float) -> float:
    """Find the λ for which Σ h_k/(h_k + λ) = dimension, in the unit of h_k; at least 1e-14 of the largest h_k.

    Raises:
        ValueError: no λ gives this dimension, since there are at most so many directions of positive curvature.
    """
    positive = curvature.double()[curvature > 0]
    if not 0 < dimension < len(positive):
        raise ValueError(
            f"an effective dimension of {dimension:g} needs more directions of positive curvature, but there are only "
            f"{len(positive)}; raise num_directions, or give localization"
        )
    top = float(positive.max())
    low, high = top * _LEAST, top * len(positive) / dimension
    if effective_dimension(positive, low) <= dimension:
        return low

    def excess(log_ridge: float) -> float:
        return effective_dimension(positive, exp(log_ridge)) - dimension

    return exp(cast(float, brentq(excess, log(low), log(high), xtol=1e-15)))
