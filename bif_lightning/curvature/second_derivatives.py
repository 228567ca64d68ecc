"""Whether the second derivatives that autograd gives of a model are those of its gradient.

They are not where a function saves its gradient in the forward pass (fused losses), or computes outside of autograd:
what was saved counts as a constant. So one product H·v is compared, on a few examples, with

    (∇L(w* + h·v) − ∇L(w* − h·v)) / 2h.

In double precision h can be so small that no kink of a ReLU lies between the two ends. Where the model does not run in
it, products are wrong only if differences of several h agree with each other and none with the product.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bif_lightning.curvature.hessian import check_twice, plain_attention
from bif_lightning.losses.problem import Minibatch, Problem
from bif_lightning.model.devices import raise_unrelated
from bif_lightning.model.functional import FunctionalBackend
from bif_lightning.rng import GLOBAL, seed_global, stream_seed

DIFFERENCES = (
    "the curvature is by differences of gradients, since second derivatives of this model are not those of its "
    "gradient (a loss that makes its gradient in the forward pass, or a function outside of autograd)"
)
"""Of estimates whose curvature is not by second derivatives, in their notes."""

_MOST_WEIGHTS = 1 << 26
_EXAMPLES = 4
_STEPS_IN_DOUBLE, _STEPS = (1e-6, 1e-7, 1e-8, 1e-9, 1e-10), (1e-2, 3e-3, 1e-3, 3e-4)
_ENOUGH_IN_DOUBLE, _ENOUGH, _ALIKE = 0.01, 0.3, 0.1
_TRIES, _SAME = 3, 0.01

Gradient = Callable[[Sequence[Tensor]], Tensor]
"""Weights -> the gradient of the mean loss there, in one vector."""


def second_derivatives_hold(problem: Problem, backend: FunctionalBackend, seed: int) -> bool:
    """Whether products with the Hessian by second derivatives are right, as far as differences of gradients tell.

    Also where there are none: `Hessian` then takes differences by itself.
    """
    count = min(_EXAMPLES, len(problem.training))
    minibatch = problem.minibatch(torch.linspace(0, len(problem.training) - 1, count, device="cpu").long().unique())
    if backend.layout.num_weights <= _MOST_WEIGHTS:
        try:
            return _hold_in_double(problem, backend, minibatch, seed)
        except UndecidedError:
            pass
        except Exception as error:  # a kernel or a line of the model that takes single precision only
            raise_unrelated(error)
    if not backend.twins:
        return True
    try:
        return _hold_in_single(problem, backend, minibatch, seed)
    except Exception as error:  # no second derivative
        raise_unrelated(error)
        return True


class UndecidedError(Exception):
    """The model does not compute in double precision."""


def in_double(problem: Problem, backend: FunctionalBackend, minibatch: Minibatch, seed: int) -> "Comparison":
    """The mean loss of a minibatch in double precision.

    Raises:
        UndecidedError: the model does not compute in it, or gives another loss there.
    """
    module, leaves = backend.in_dtype(torch.float64)
    comparison = Comparison(problem, module, leaves, tree_map(_in_double, minibatch.batch), seed)
    found, expected = comparison.loss(), problem.mean_loss(backend.bind(backend.weights(tracked=False)), minibatch)
    if found.dtype != torch.float64 or abs(float(found.detach()) - expected) > _SAME * abs(expected):
        raise UndecidedError
    return comparison


def _hold_in_double(problem: Problem, backend: FunctionalBackend, minibatch: Minibatch, seed: int) -> bool:
    comparison = in_double(problem, backend, minibatch, seed)
    for attempt in range(_TRIES):
        direction = comparison.direction(attempt)
        product = comparison.product(direction)
        if product is None:
            return True
        found = [comparison.difference(direction, h) for h in _STEPS_IN_DOUBLE]
        if min(_apart(product, each) for each in found) < _ENOUGH_IN_DOUBLE:
            return True
    return False


def _hold_in_single(problem: Problem, backend: FunctionalBackend, minibatch: Minibatch, seed: int) -> bool:
    weights = backend.weights()
    module, leaves = backend.bind(weights).call(lambda module: module), weights.leaves
    comparison = Comparison(problem, module, leaves, minibatch.batch, seed)
    direction = comparison.direction(0)
    product = comparison.product(direction)
    if product is None:
        return True
    found = [comparison.difference(direction, h) for h in _STEPS]
    alike = any(_apart(a, b) < _ALIKE for a, b in pairwise(found))
    return not alike or min(_apart(product, each) for each in found) < _ENOUGH


class Comparison:
    """The mean loss of a few examples as a function of leaves, its derivatives and differences."""

    def __init__(self, problem: Problem, module: nn.Module, leaves: Sequence[Tensor], batch: Any, seed: int) -> None:
        self.problem, self.module, self.leaves, self.batch, self.seed = problem, module, leaves, batch, seed
        self.start = [leaf.detach().clone() for leaf in leaves]
        self.size = max(float(torch.cat([leaf.flatten() for leaf in self.start]).norm()), 1e-3)

    def loss(self) -> Tensor:
        self.problem.tick()
        if self.problem.stochastic:
            seed_global(self.leaves[0].device, stream_seed(self.seed, GLOBAL))
        return self.problem.objective(self.module, self.batch)

    def direction(self, seed: int) -> list[Tensor]:
        """Of norm about 1: half along the gradient, where a loss is curved, half at random."""
        gradient = torch.autograd.grad(self.loss(), self.leaves, materialize_grads=True)
        generator = torch.Generator(self.leaves[0].device).manual_seed(seed)
        noise = [torch.empty_like(leaf).normal_(generator=generator) for leaf in self.start]
        one, other = (_norm(part) for part in (gradient, noise))
        return [(g / max(one, 1e-30) + n / other) / 2**0.5 for g, n in zip(gradient, noise, strict=True)]

    def product(self, direction: Sequence[Tensor]) -> Tensor | None:
        """H·v by second derivatives; None where there are none."""
        try:
            with plain_attention():
                slopes = torch.autograd.grad(self.loss(), self.leaves, create_graph=True, materialize_grads=True)
                curved = [(s, v) for s, v in zip(slopes, direction, strict=True) if s.grad_fn is not None]
                check_twice([slope for slope, _ in curved])
                if not curved:
                    return torch.cat([torch.zeros_like(leaf).flatten() for leaf in self.leaves])
                outputs, along = zip(*curved, strict=True)
                found = torch.autograd.grad(outputs, self.leaves, along, materialize_grads=True)
        except (RuntimeError, NotImplementedError) as error:
            raise_unrelated(error)
            return None
        return torch.cat([each.flatten() for each in found])

    def difference(self, direction: Sequence[Tensor], step: float) -> Tensor:
        """(∇L(w + h·v) − ∇L(w − h·v))/2h, h = step·‖w‖."""
        return self._central(self.gradient, direction, step)

    def slope(self, direction: Sequence[Tensor], step: float) -> float:
        """(L(w + h·v) − L(w − h·v))/2h, h = step·‖w‖."""
        return float(self._central(lambda: self.loss().detach(), direction, step))

    def gradient(self) -> Tensor:
        """∇L(w), in one vector."""
        found = torch.autograd.grad(self.loss(), self.leaves, materialize_grads=True)
        return torch.cat([each.flatten() for each in found])

    def _central(self, function: Callable[[], Tensor], direction: Sequence[Tensor], step: float) -> Tensor:
        h, ends = step * self.size, list[Tensor]()
        for sign in (1.0, -1.0):
            with torch.no_grad():
                for leaf, start, along in zip(self.leaves, self.start, direction, strict=True):
                    leaf.copy_(start + sign * h * along)
            ends.append(function())
        with torch.no_grad():
            for leaf, start in zip(self.leaves, self.start, strict=True):
                leaf.copy_(start)
        return (ends[0] - ends[1]) / (2 * h)


def _in_double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _norm(parts: Sequence[Tensor]) -> float:
    return float(torch.stack([part.norm() for part in parts]).norm())


def _apart(one: Tensor, other: Tensor) -> float:
    """|a − b| over the larger norm; 0 for two zeros."""
    size = max(float(one.norm()), float(other.norm()))
    return float((one - other).norm()) / size if size > 0 else 0.0
