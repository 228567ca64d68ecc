"""Whether the gradient that autograd gives of a loss is its derivative, in directions that do not follow the gradient.

A `.detach()` within a loss (stopped gradients of self-supervised learning, straight-through estimators) leaves out a
part of the derivative. Where that part is orthogonal to the gradient, the slope along the gradient is right all the
same. So slopes along a few random directions are compared, in double precision.
"""

import torch
from torch import Tensor

from bif_lightning.curvature.second_derivatives import Comparison, UndecidedError, in_double
from bif_lightning.losses.problem import Minibatch, Problem
from bif_lightning.model.devices import raise_unrelated
from bif_lightning.model.functional import FunctionalBackend

MOST_ERROR = 0.1
"""Largest relative error of the slopes of a gradient that is that of its loss."""

_MOST_WEIGHTS = 1 << 26
_DIRECTIONS = 4
_STEPS = (1e-5, 1e-6, 1e-7)
_ROUNDING = 1e-7  # of the loss, a unit of the norm of the weights: smaller slopes are not told from rounding


def gradient_error(problem: Problem, backend: FunctionalBackend, minibatch: Minibatch, seed: int) -> float:
    """Relative error of the slopes of the loss along random directions, as its gradient gives them.

    0 where they cannot be told: for models that do not compute in double precision, or give another loss at each call.
    """
    if backend.layout.num_weights > _MOST_WEIGHTS:
        return 0.0
    try:
        comparison = in_double(problem, backend, minibatch, seed)
        if not torch.equal(comparison.loss(), comparison.loss()):
            return 0.0
        gradient = comparison.gradient()
        return min(_error(comparison, gradient, step, seed) for step in _STEPS)
    except UndecidedError:
        return 0.0
    except Exception as error:  # a kernel or a line of the model that takes single precision only
        raise_unrelated(error)
        return 0.0


def _error(comparison: Comparison, gradient: Tensor, step: float, seed: int) -> float:
    expected, found = list[float](), list[float]()
    for number in range(_DIRECTIONS):
        direction = _direction(comparison, seed + number)
        expected.append(float(gradient @ torch.cat([part.flatten() for part in direction])))
        found.append(comparison.slope(direction, step))
    one, other = torch.tensor([expected, found], dtype=torch.float64, device="cpu")
    least = _ROUNDING * abs(float(comparison.loss().detach())) / comparison.size
    size = max(float(one.norm()), float(other.norm()))
    return float((one - other).norm()) / size if size > least else 0.0


def _direction(comparison: Comparison, seed: int) -> list[Tensor]:
    """At random, of norm 1."""
    generator = torch.Generator(comparison.leaves[0].device).manual_seed(seed)
    noise = [torch.empty_like(leaf).normal_(generator=generator) for leaf in comparison.start]
    norm = torch.stack([part.norm() for part in noise]).norm()
    return [part / norm for part in noise]
