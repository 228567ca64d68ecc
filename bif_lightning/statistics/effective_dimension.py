"""How many directions the data pins down more than the pull does, and the pull for a given number of them."""

from jaxtyping import Float
from torch import Tensor

_STEPS = 60  # of a bisection over 16 decades: further ones change no digit


def effective_dimension(curvature: Float[Tensor, " direction"], ridge: float) -> float:
    """Σ h_k/(h_k + λ) over eigenvalues h_k ≥ 0, with λ = γ/nβ."""
    return float((curvature / (curvature + ridge)).sum())


def ridge_for(curvature: Float[Tensor, " direction"], dimension: float) -> float:
    """The λ for which Σ h_k/(h_k + λ) = dimension (bisection in log λ).

    Raises:
        ValueError: no more directions are curved than `dimension`, so that no λ gives it.
    """
    positive = curvature.double()[curvature > 0]
    if not 0 < dimension < len(positive):
        raise ValueError(
            f"an effective dimension of {dimension:g} needs more directions of positive curvature than the "
            f"{len(positive)} there are; raise num_directions, or give localization"
        )
    top = float(positive.max())
    low, high = top * 1e-14, top * len(positive) / dimension
    for _ in range(_STEPS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if effective_dimension(positive, middle) > dimension else (low, middle)
    return high
