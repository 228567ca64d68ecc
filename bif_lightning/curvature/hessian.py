"""Hessian-vector products of the mean loss at the snapshot.

They use second derivatives (Pearlmutter 1994): the gradient of a minibatch is computed once with its graph, and H·v is
the gradient of its slope along v. Where second derivatives do not exist (an operation that can be differentiated only
once, a sharded module), they use finite differences of gradients,

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

from bif_lightning.curvature.example_weights import example_weights
from bif_lightning.data.dataset import spread_rows
from bif_lightning.losses.problem import Minibatch, Problem
from bif_lightning.model.devices import raise_unrelated
from bif_lightning.model.weights import BoundModule, WeightBackend, Weights, norm_of_snapshot
from bif_lightning.rng import GLOBAL, seed_global, stream_seed

EXAMPLES = 512
"""Training examples that the curvature of the whole space is averaged over, evenly spaced; all if there are fewer."""

ONCE_ONLY = "the curvature is by differences of gradients, since this model cannot be differentiated twice"
"""Of such estimates, in their notes."""

_RELATIVE_STEP = 1e-3
_COPIES = 4
_BLOCK = 16  # products held at once
_ONCE_ONLY = (RuntimeError, NotImplementedError)

WeightedBatch = tuple[Minibatch, float]
"""A minibatch, and the weight of its mean loss in the total loss."""

Slopes = Sequence[tuple[Tensor, int]]
"""Gradients of a loss with their graph, each with the index of its parameter; constant gradients are left out."""


class Hessian:
    """The Hessian of Σ share·(mean loss of a minibatch) at the snapshot.

    Args:
        problem, backend: the loss and the snapshot.
        parts: minibatches and their shares.
        step: h of finite differences, in weight units; None for 1e-3·‖w*‖.
        key: seed of the model's own random numbers, if it draws any.
        weights, bound: weights to compute with, left at the snapshot; None for fresh ones.
        tick: called before every pass, beside that of the problem; may raise to stop.
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
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.problem, self.backend, self.parts = problem, backend, parts
        self.step = _RELATIVE_STEP * norm_of_snapshot(backend) if step is None else step
        self.key, self.tick = key, tick
        self.weights: Weights = weights or backend.weights()
        self.bound: BoundModule = bound or backend.bind(self.weights)
        self._once_only = backend.sharded or problem.by_differences
        # One graph serves all products if there is one minibatch and no caller moves the weights.
        self._keeps, self._kept = len(parts) == 1 and weights is None, list[Slopes]()

    @classmethod
    def of_training(
        cls, problem: Problem, backend: WeightBackend, *, rows: Tensor | None = None, chunk: int = 64, key: int = 0
    ) -> "Hessian":
        """The Hessian of the mean training loss.

        Args:
            rows: training examples to average over; None for `EXAMPLES` evenly spaced ones.
            chunk: examples in one pass.
        """
        chosen = spread_rows(len(problem.training), EXAMPLES) if rows is None else rows
        weights = example_weights(problem, backend, chosen)
        shares = torch.ones(len(chosen), device="cpu") if weights is None else weights
        chunks = zip(chosen.split(chunk), shares.split(chunk), strict=True)
        parts = [(problem.minibatch(part), float(share.sum()) / len(chosen)) for part, share in chunks]
        return cls(problem, backend, parts, key=key)

    def times(
        self,
        directions: Float[Tensor, "direction weight"],
        project: Callable[[Tensor], Tensor] = lambda products: products,
    ) -> Float[Tensor, "direction value"]:
        """Compute `project(H·q)` for each row q of norm 1; by default H·q itself, nats per squared weight unit.

        Args:
            project: function of a few products as rows; with it, not all products are held in memory at once.
        """
        if not self._once_only:
            exact = self._second_derivatives(directions, project)
            if exact is not None:
                return exact
            self._once_only = True
            self._kept.clear()
            self.problem.remarks.setdefault("curvature", ONCE_ONLY)
        return torch.cat(
            [project(torch.stack([self._difference(q) for q in some])) for some in directions.split(_BLOCK)]
        )

    def _second_derivatives(self, directions: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Products by second derivatives; None if the model cannot be differentiated twice."""
        try:
            with plain_attention():
                first, *others = self.parts
                total = self.bound.call(partial(self._part, first, directions, project))
                for part in others:  # added up in place: a product for each pass would take the most memory of all
                    total += self.bound.call(partial(self._part, part, directions, project))
        except _ONCE_ONLY as error:
            raise_unrelated(error)
            return None
        return total if bool(total.isfinite().all()) else None

    def _part(
        self, part: WeightedBatch, directions: Tensor, project: Callable[[Tensor], Tensor], module: nn.Module
    ) -> Tensor:
        minibatch, share = part
        slopes = self._kept[0] if self._kept else self._slopes(minibatch, module)
        if self._keeps and not self._kept:
            self._kept.append(slopes)
        blocks = [project(self._products(slopes, some)) for some in directions.split(_BLOCK)]
        return torch.cat(blocks) * (share * minibatch.weight / self.problem.loss_scale)

    def _slopes(self, minibatch: Minibatch, module: nn.Module) -> Slopes:
        self._tick()
        self._key_global()
        loss = self.problem.objective(module, minibatch.batch) * self.problem.loss_scale
        slopes = torch.autograd.grad(loss, self.weights.leaves, create_graph=True, materialize_grads=True)
        curved = [(slope, place) for place, slope in enumerate(slopes) if slope.grad_fn is not None]
        check_twice([slope for slope, _ in curved])
        return curved

    def _products(self, slopes: Slopes, directions: Tensor) -> Tensor:
        """H·q for each row q."""
        out, layout = torch.zeros_like(directions), self.backend.layout
        for direction, row in zip(directions, out, strict=True) if slopes else ():
            self._tick()
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
        self.tick()
        self._key_global()
        self.problem.gradient(self.backend, self.weights, self.bound, self.parts)
        return self.weights.gradient.clone()

    def _tick(self) -> None:
        self.problem.tick()
        self.tick()

    def _key_global(self) -> None:
        if self.problem.stochastic:
            seed_global(self.backend.device, stream_seed(self.key, GLOBAL))


def examples_in_a_pass(batch_size: int) -> int:
    """Examples in one pass of second derivatives.

    Second derivatives hold several copies of all activations. With so few examples they take about the memory of the
    gradient of a minibatch of `batch_size`.
    """
    return max(1, batch_size // _COPIES)


def check_twice(slopes: Sequence[Tensor]) -> None:
    """Check that every function in the graph of the gradients can be differentiated again.

    Raises:
        NotImplementedError: a function is marked as once-differentiable. Autograd puts a node that raises in its place,
            but skips this node when it differentiates with respect to leaves only, and so would silently drop a part of
            the Hessian.
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
    """A process-wide setting, entered when the first thread needs it and left when the last one is done."""

    def __init__(self) -> None:
        self._lock, self._users, self._entered = threading.Lock(), 0, ExitStack()

    @contextmanager
    def __call__(self) -> Generator[None]:
        with self._lock:
            self._users += 1
            if self._users == 1:
                # Fused attention has no second derivative; the math backend computes the same function.
                self._entered.enter_context(sdpa_kernel(SDPBackend.MATH))
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._entered.close()


plain_attention = _ProcessWide()
