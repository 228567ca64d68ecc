"""The metric of the pull: how firmly each direction of the weights is held, from the gradients of single examples.

The localized posterior pulls to the snapshot by γ/2·(w − w*)ᵀM(w − w*). For each parameter, of shape a x b (with more
dimensions, b of all but the first; with one, a = 1), and the gradients G_i of the train examples in it,

    M ∝ (U ⊗ V)·diag(Λ + mean Λ)·(U ⊗ V)ᵀ,   Λ_kl = mean over i of (u_kᵀ G_i v_l)²,

with U and V the eigenvectors of Σ_i G_i·G_iᵀ and Σ_i G_iᵀ·G_i. That is a diagonal estimate of the loss's curvature in
Kronecker factors: factors from gradients as in Shampoo (Gupta, Koren & Singer 2018, Sec. 3), second moments in their
eigenbasis as in EK-FAC (George et al. 2018, Sec. 3), damped layer by layer. Its scale is such that train gradients keep
their mean square norm.

In coordinates u = M^½·w the pull is γ/2·|u − u*|² again, gradients are M^(−½)·g, and a direction q of u is M^(−½)·q in
the weights. All that is said of an isotropic pull holds there, word for word.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.distributed.threads import on_threads

Places = Sequence[tuple[int, torch.Size]]
"""Of parameters in the flat vector: the first element, and the shape."""

LONGEST_SIDE = 2048
"""Longer sides of a parameter (a vocabulary) are not turned: M is taken as diagonal along them."""

_ROWS, _NUMBERS = 64, 1 << 24  # that are worked on at once, at most
_FEW = 4
_LEAST = 1e-6  # of the mean curvature, for parameters in which no train example has a gradient


@dataclass(frozen=True)
class Factor:
    """One parameter's part of the flat vector, as a matrix, and the bases that it is turned into.

    Attributes:
        start: its first element.
        rows, columns: its shape.
        left, right: U and V, as columns; None for a side that is not turned.
    """

    start: int
    rows: int
    columns: int
    left: Float[Tensor, "row row"] | None
    right: Float[Tensor, "column column"] | None

    def of(self, vectors: Float[Tensor, "vector weight"]) -> Float[Tensor, "vector row column"]:
        """Its part of each vector, a view."""
        return vectors.narrow(1, self.start, self.rows * self.columns).unflatten(1, (self.rows, self.columns))

    def turn(self, vectors: Float[Tensor, "vector weight"], *, back: bool = False) -> None:
        """UᵀGV of its part G of each vector, or UGVᵀ, in place."""
        for some in _chunks(self.of(vectors)):
            turned = some if self.left is None else (self.left if back else self.left.mT) @ some
            some.copy_(turned if self.right is None else turned @ (self.right.mT if back else self.right))


@dataclass(frozen=True)
class KroneckerPreconditioner:
    """M, by its root's inverse; no factors stand for M = I.

    Attributes:
        factors: of the parameters.
        scale: diagonal of M^(−½) in the turned bases.
    """

    factors: tuple[Factor, ...] = ()
    scale: Float[Tensor, " weight"] | None = None

    @classmethod
    def whitening(
        cls, gradients: Float[Tensor, "train weight"], places: Places, workers: int = 1
    ) -> "KroneckerPreconditioner":
        """The metric of these gradients, which are left as M^(−½)·g: in place, since they take most of the memory.

        Args:
            gradients: of the train examples, nats per weight unit.
            places: of the parameters in them.
            workers: threads, which change no bit.
        """
        places = [(start, shape) for start, shape in places if shape.numel()]
        each = [partial(_factor, gradients, place) for place in places]
        factors = tuple(on_threads(each, workers, torch.get_num_threads()))
        squares = gradients.new_zeros(gradients.shape[1], dtype=torch.float64)
        for some in _chunks(gradients):
            squares += some.square().sum(0, dtype=torch.float64) / len(gradients)
        mean = float(squares.sum() / sum(shape.numel() for _, shape in places))
        curvature = torch.ones_like(squares)
        for factor in factors:
            own = slice(factor.start, factor.start + factor.rows * factor.columns)
            curvature[own] = squares[own] + (max(float(squares[own].mean()), _LEAST * mean) or 1.0)
        if mean > 0:
            curvature *= float((squares / curvature).sum() / squares.sum())
        scale = curvature.rsqrt().to(gradients)
        gradients *= scale
        return cls(factors, scale)

    def whiten(self, gradients: Float[Tensor, "example weight"]) -> None:
        """M^(−½)·g of further gradients, in place."""
        for factor in self.factors:
            factor.turn(gradients)
        if self.scale is not None:
            gradients *= self.scale

    def to_weight_space(self, directions: Float[Tensor, "direction weight"]) -> Float[Tensor, "direction weight"]:
        """M^(−½)·q in the weights, of each row q in the coordinates in which the pull is isotropic."""
        if self.scale is None:
            return directions
        found = directions * self.scale
        for factor in self.factors:
            factor.turn(found, back=True)
        return found

    def squared_length(self, displacement: Float[Tensor, " weight"]) -> float:
        """δᵀMδ of a displacement of the weights."""
        found = displacement[None].clone()
        for factor in self.factors:
            factor.turn(found)
        return float((found if self.scale is None else found / self.scale).square().sum(dtype=torch.float64))


def seconds_for_whitening(places: Places, like: Tensor, examples: int, workers: int) -> float:
    """About how long `whitening` and `whiten` take for the gradients of so many examples, timed on made-up ones.

    Args:
        places: of the parameters.
        like: the flat vector of weights, or one like it.
    """

    def of(count: int) -> float:
        rows = like.new_ones(count, len(like))
        started = time.perf_counter()
        KroneckerPreconditioner.whitening(rows, places, workers)
        return time.perf_counter() - started

    least, most = min(_FEW, examples), min(_ROWS, examples)
    few, more = of(least), of(most)
    return few + (examples - least) * max(more - few, 0.0) / max(most - least, 1)


def metric_bytes(places: Places, item: int) -> int:
    """Memory of the bases of a metric, of so many bytes a number."""
    sides = [side for _, shape in places for side in _sides(shape) if 1 < side <= LONGEST_SIDE]
    return item * (sum(side**2 for side in sides) + sum(shape.numel() for _, shape in places))


def _chunks(vectors: Tensor) -> Sequence[Tensor]:
    return vectors.split(max(1, min(_ROWS, _NUMBERS // max(vectors[0].numel(), 1))))


def _sides(shape: torch.Size) -> tuple[int, int]:
    """Of a parameter as a matrix."""
    rows = shape[0] if len(shape) > 1 else 1
    return rows, shape.numel() // max(rows, 1)


def _factor(gradients: Tensor, place: tuple[int, torch.Size]) -> Factor:
    """The factor of a parameter, into whose bases the gradients are turned."""
    start, (rows, columns) = place[0], _sides(place[1])
    own = Factor(start, rows, columns, None, None).of(gradients)
    found = Factor(start, rows, columns, _basis(own), _basis(own.mT))
    found.turn(gradients)
    return found


def _basis(gradients: Float[Tensor, "example row column"]) -> Float[Tensor, "row row"] | None:
    """Eigenvectors of Σ_i G_i·G_iᵀ, as columns; None for a side that is not turned."""
    side = gradients.shape[1]
    if not 1 < side <= LONGEST_SIDE:
        return None
    total = torch.zeros(side, side, dtype=torch.float64, device=gradients.device)
    for some in _chunks(gradients):
        wide = some.transpose(0, 1).flatten(1)
        total += (wide @ wide.mT).double()
    # Gradients that are not finite are refused by whoever looks for their directions.
    return torch.linalg.eigh(total).eigenvectors.to(gradients) if bool(total.isfinite().all()) else None
