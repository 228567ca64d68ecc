"""The metric M of the pull γ/2·(w − w*)ᵀM(w − w*), a Kronecker-factored second moment of the train gradients.

Each parameter is taken as a matrix a x b: further dimensions join b, and a vector has a = 1. With G_i the gradient of
train example i with respect to it,

    M ∝ (U ⊗ V)·diag(Λ + mean Λ)·(U ⊗ V)ᵀ,   Λ_kl = mean over i of (u_kᵀ G_i v_l)²,

where U and V are the eigenvectors of Σ_i G_i·G_iᵀ and Σ_i G_iᵀ·G_i. This approximates the curvature of the loss. The
factors come from gradients as in Shampoo (Gupta, Koren & Singer 2018, Sec. 3), the second moments in their eigenbasis
as in EK-FAC (George et al. 2018, Sec. 3), and each layer is damped by its mean. M is scaled to keep the mean square
norm of the train gradients.

In the coordinates u = M^½·w the pull is isotropic, γ/2·|u − u*|². Gradients there are M^(−½)·g, and a direction q of u
is the direction M^(−½)·q in weight space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.distributed.threads import on_threads
from bif_lightning.model.devices import now

Places = Sequence[tuple[int, torch.Size]]
"""The first element of each parameter in the flat vector, and its shape."""

LONGEST_SIDE = 2048
"""Longer sides of a parameter (such as a vocabulary) are not rotated: M is diagonal along them."""

_ROWS, _NUMBERS = 64, 1 << 24  # largest chunk
_FEW = 4
_LEAST = 1e-6  # share of the mean curvature, for parameters where every train gradient is 0


@dataclass(frozen=True)
class Factor:
    """The eigenbases U and V of one parameter.

    Attributes:
        start: first element of the parameter in the flat vector.
        rows, columns: shape of the parameter as a matrix.
        left, right: U and V, as columns; None for a side that is not rotated.
    """

    start: int
    rows: int
    columns: int
    left: Float[Tensor, "row row"] | None
    right: Float[Tensor, "column column"] | None

    def of(self, vectors: Float[Tensor, "vector weight"]) -> Float[Tensor, "vector row column"]:
        """View of the parameter's part of each vector."""
        return vectors.narrow(1, self.start, self.rows * self.columns).unflatten(1, (self.rows, self.columns))

    def rotate(self, vectors: Float[Tensor, "vector weight"], *, back: bool = False) -> None:
        """Rotate the parameter's part G of each vector in place: UᵀGV, or with `back` UGVᵀ."""
        for some in _chunks(self.of(vectors)):
            rotated = some if self.left is None else (self.left if back else self.left.mT) @ some
            some.copy_(rotated if self.right is None else rotated @ (self.right.mT if back else self.right))


@dataclass(frozen=True)
class KroneckerPreconditioner:
    """The metric M, stored as M^(−½); without factors M = I.

    Attributes:
        factors: eigenbases of each parameter.
        scale: diagonal of M^(−½) in the rotated bases.
    """

    factors: tuple[Factor, ...] = ()
    scale: Float[Tensor, " weight"] | None = None

    @classmethod
    def whitening(
        cls, gradients: Float[Tensor, "train weight"], places: Places, workers: int = 1
    ) -> "KroneckerPreconditioner":
        """Compute the metric of the train gradients, and whiten them in place to M^(−½)·g.

        Args:
            gradients: gradients of the train examples, nats per weight unit. They take most of the memory, so they are
                overwritten.
            places: places of the parameters in the flat vector.
            workers: threads; their number changes no bit.
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
            factor.rotate(gradients)
        if self.scale is not None:
            gradients *= self.scale

    def to_weight_space(self, directions: Float[Tensor, "direction weight"]) -> Float[Tensor, "direction weight"]:
        """M^(−½)·q in the weights, of each row q in the coordinates in which the pull is isotropic."""
        if self.scale is None:
            return directions
        found = directions * self.scale
        for factor in self.factors:
            factor.rotate(found, back=True)
        return found

    def squared_length(self, displacement: Float[Tensor, " weight"]) -> float:
        """δᵀMδ of a displacement of the weights."""
        found = displacement[None].clone()
        for factor in self.factors:
            factor.rotate(found)
        return float((found if self.scale is None else found / self.scale).square().sum(dtype=torch.float64))


def seconds_for_whitening(places: Places, like: Tensor, examples: int, workers: int) -> float:
    """Estimate how long `whitening` and `whiten` take, by timing them on made-up gradients.

    Args:
        places: places of the parameters in the flat vector.
        like: a vector with the size, dtype and device of the flat vector.
        examples: number of gradients to whiten.
    """

    def of(count: int) -> float:
        rows = like.new_ones(count, len(like))
        started = now()
        KroneckerPreconditioner.whitening(rows, places, workers)
        return now() - started

    least, most = min(_FEW, examples), min(_ROWS, examples)
    few, more = of(least), of(most)
    return few + (examples - least) * max(more - few, 0.0) / max(most - least, 1)


def metric_bytes(places: Places, item: int) -> int:
    """Bytes that a metric takes, with `item` bytes a number."""
    sides = [side for _, shape in places for side in _sides(shape) if 1 < side <= LONGEST_SIDE]
    return item * (sum(side**2 for side in sides) + sum(shape.numel() for _, shape in places))


def _chunks(vectors: Tensor) -> Sequence[Tensor]:
    return vectors.split(max(1, min(_ROWS, _NUMBERS // max(vectors[0].numel(), 1))))


def _sides(shape: torch.Size) -> tuple[int, int]:
    """Rows and columns of a parameter as a matrix."""
    rows = shape[0] if len(shape) > 1 else 1
    return rows, shape.numel() // max(rows, 1)


def _factor(gradients: Tensor, place: tuple[int, torch.Size]) -> Factor:
    """Compute the factor of a parameter, and rotate the gradients into its bases."""
    start, (rows, columns) = place[0], _sides(place[1])
    own = Factor(start, rows, columns, None, None).of(gradients)
    found = Factor(start, rows, columns, _basis(own), _basis(own.mT))
    found.rotate(gradients)
    return found


def _basis(gradients: Float[Tensor, "example row column"]) -> Float[Tensor, "row row"] | None:
    """Eigenvectors of Σ_i G_i·G_iᵀ, as columns; None for a side that is not rotated."""
    side = gradients.shape[1]
    if not 1 < side <= LONGEST_SIDE:
        return None
    total = torch.zeros(side, side, dtype=torch.float64, device=gradients.device)
    for some in _chunks(gradients):
        wide = some.transpose(0, 1).flatten(1)
        total += (wide @ wide.mT).double()
    # `strongest_directions` refuses gradients that are not finite.
    return torch.linalg.eigh(total).eigenvectors.to(gradients) if bool(total.isfinite().all()) else None
