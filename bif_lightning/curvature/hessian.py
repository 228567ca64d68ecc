"""Products with the Hessian H of the mean loss at the snapshot: the one way to its curvature.

By second derivatives (Pearlmutter 1994): the gradient of a minibatch is taken once with its graph, and H·v is the
gradient of its slope along v. Where there are none (an operation that can be differentiated only once, a module in
shards), by differences of gradients,

    H·v = (∇L(w* + h·v) − ∇L(w* − h·v)) / 2h,

which count the kinks of piecewise linear networks as curvature.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bif_lightning.data.dataset import spread_rows
from bif_lightning.losses.problem import Minibatch, Problem
from bif_lightning.model.weights import BoundModule, WeightBackend, Weights, norm_of_snapshot
from bif_lightning.rng import GLOBAL, seed_global, stream_seed

EXAMPLES = 512
"""Training examples behind the curvature of the whole space, spread over the set; all where there are fewer."""

_RELATIVE_STEP = 1e-3
_COPIES = 4
_BLOCK = 16  # products that are held at once
_ONCE_ONLY = (RuntimeError, NotImplementedError)

WeightedBatch = tuple[Minibatch, float]
"""A minibatch, and the weight of its mean loss in the loss whose Hessian is meant."""

Slopes = Sequence[tuple[Tensor, int]]
"""Derivatives of a loss that depend on the weights, with their graph, each with its place among the parameters."""


class Hessian:
    """The Hessian of Σ share·(mean loss of a minibatch) at the snapshot.

    Args:
        problem, backend: whose loss, and whose snapshot.
        parts: minibatches and their shares.
        step: h of differences, in weight units; None for 1e-3·‖w*‖.
        key: of the model's own randomness, where it has any.
        weights, bound: to compute with, left at the snapshot; None for fresh ones.
    """

    def __init__(
        self,
        problem: Problem,
        backend: WeightBackend,
        parts: Sequence[WeightedBatch],
        *,
        step: float | None = None,
        key: int = 0,
        weights: Weights | None = None,
        bound: BoundModule | None = None,
    ) -> None:
        self.problem, self.backend, self.parts = problem, backend, parts
        self.step = _RELATIVE_STEP * norm_of_snapshot(backend) if step is None else step
        self.key = key
        self.weights: Weights = weights or backend.weights()
        self.bound: BoundModule = bound or backend.bind(self.weights)
        self._once_only = backend.sharded
        # One graph serves all products, where it is one and nobody else moves its weights.
        self._keeps, self._kept = len(parts) == 1 and weights is None, list[Slopes]()

    @classmethod
    def of_training(
        cls, problem: Problem, backend: WeightBackend, *, rows: Tensor | None = None, chunk: int = 64, key: int = 0
    ) -> "Hessian":
        """Of the mean loss of these rows of the training data; of `EXAMPLES` spread over it where there are none.

        Args:
            chunk: examples in one pass.
        """
        chosen = spread_rows(len(problem.training), EXAMPLES) if rows is None else rows
        parts = [(problem.minibatch(part), len(part) / len(chosen)) for part in chosen.split(chunk)]
        return cls(problem, backend, parts, key=key)

    def times(
        self,
        directions: Float[Tensor, "direction weight"],
        seen: Callable[[Tensor], Tensor] = lambda products: products,
    ) -> Float[Tensor, "direction value"]:
        """`seen` of H·q for each row q, of norm 1; by default H·q itself, nats per squared weight unit.

        Args:
            seen: of a few products, as rows, which need not all be held at once.
        """
        if not self._once_only:
            exact = self._second_derivatives(directions, seen)
            if exact is not None:
                return exact
            self._once_only = True
            self._kept.clear()
        return torch.cat([seen(torch.stack([self._difference(q) for q in some])) for some in directions.split(_BLOCK)])

    def _second_derivatives(self, directions: Tensor, seen: Callable[[Tensor], Tensor]) -> Tensor | None:
        """None where the model cannot be differentiated twice."""
        try:
            with _plain_attention():
                found = [self.bound.call(partial(self._part, part, directions, seen)) for part in self.parts]
        except _ONCE_ONLY:
            return None
        total = torch.stack(found).sum(0) if len(found) > 1 else found[0]
        return total if bool(total.isfinite().all()) else None

    def _part(
        self, part: WeightedBatch, directions: Tensor, seen: Callable[[Tensor], Tensor], module: nn.Module
    ) -> Tensor:
        minibatch, share = part
        slopes = self._kept[0] if self._kept else self._slopes(minibatch, module)
        if self._keeps and not self._kept:
            self._kept.append(slopes)
        blocks = [seen(self._products(slopes, some)) for some in directions.split(_BLOCK)]
        return torch.cat(blocks) * (share * minibatch.weight / self.problem.loss_scale)

    def _slopes(self, minibatch: Minibatch, module: nn.Module) -> Slopes:
        self._key_global()
        loss = self.problem.objective(module, minibatch.batch) * self.problem.loss_scale
        slopes = torch.autograd.grad(loss, self.weights.leaves, create_graph=True, materialize_grads=True)
        curved = [(slope, place) for place, slope in enumerate(slopes) if slope.grad_fn is not None]
        _check_twice([slope for slope, _ in curved])
        return curved

    def _products(self, slopes: Slopes, directions: Tensor) -> Tensor:
        """H·q for each row q."""
        out, layout = torch.zeros_like(directions), self.backend.layout
        for direction, row in zip(directions, out, strict=True) if slopes else ():
            along = layout.pieces(direction)
            products = torch.autograd.grad(
                [slope for slope, _ in slopes],
                self.weights.leaves,
                [along[place].to(slope.dtype) for slope, place in slopes],
                retain_graph=True,
                materialize_grads=True,
            )
            for piece, product in zip(layout.pieces(row), products, strict=True):
                piece.copy_(product)
        return out

    def _difference(self, direction: Tensor) -> Tensor:
        ahead, behind = (self._gradient(direction, sign * self.step) for sign in (1.0, -1.0))
        with torch.no_grad():
            self.weights.flat.copy_(self.backend.center)
        return (ahead - behind) / (2 * self.step)

    def _gradient(self, direction: Tensor, distance: float) -> Tensor:
        with torch.no_grad():
            torch.add(self.backend.center, direction, alpha=distance, out=self.weights.flat)
        self._key_global()
        self.problem.gradient(self.backend, self.weights, self.bound, self.parts)
        return self.weights.gradient.clone()

    def _key_global(self) -> None:
        if self.problem.stochastic:
            seed_global(self.backend.device, stream_seed(self.key, GLOBAL))


def examples_in_a_pass(batch_size: int) -> int:
    """So few that second derivatives, which hold several copies of all activations, take about the memory of a gradient
    of so large a minibatch."""
    return max(1, batch_size // _COPIES)


def _check_twice(slopes: Sequence[Tensor]) -> None:
    """Refuse slopes through what is marked as differentiable once.

    Raises:
        NotImplementedError: there is such a function. Autograd knows it by a node that raises, but leaves the node out
            where only derivatives with respect to leaves are computed, and with it, silently, a part of the Hessian.
    """
    nodes: list[Any] = [slope.grad_fn for slope in slopes]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if node.name().endswith("::Error"):
            raise NotImplementedError("a function of the model is marked with @once_differentiable")
        further = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= further
        nodes.extend(further)


class _ProcessWide:
    """A setting of the whole process, made when the first thread needs it and put back when none does any more."""

    def __init__(self) -> None:
        self._lock, self._users, self._entered = threading.Lock(), 0, ExitStack()

    @contextmanager
    def __call__(self) -> Generator[None]:
        with self._lock:
            self._users += 1
            if self._users == 1:
                # Fused attention has no second derivative; the plain one is the same function.
                self._entered.enter_context(sdpa_kernel(SDPBackend.MATH))
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._entered.close()


_plain_attention = _ProcessWide()
