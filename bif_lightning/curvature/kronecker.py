"""The metric M of the pull γ/2·(w − w*)ᵀM(w − w*), a Kronecker-factored second moment of the train gradients.

Each parameter is taken as a matrix a x b: further dimensions join b, and a vector has a = 1. Where the b of a
convolution is above `LONGEST_PATCH`, its channels and its kernel are sides by themselves, and there are three bases.
With G_i the gradient of train example i with respect to a parameter,

    M ∝ (U ⊗ V)·diag(Λ + mean Λ)·(U ⊗ V)ᵀ,   Λ_kl = mean over i of (u_kᵀ G_i v_l)²,

where U and V are the eigenvectors of Σ_i G_i·G_iᵀ and Σ_i G_iᵀ·G_i. This approximates the curvature of the loss. The
factors come from gradients as in Shampoo (Gupta, Koren & Singer 2018, Sec. 3), the second moments in their eigenbasis
as in EK-FAC (George et al. 2018, Sec. 3), and each layer is damped by its mean. M is scaled to keep the mean square
norm of the train gradients.

In the coordinates u = M^½·w the pull is isotropic, γ/2·|u − u*|². Gradients there are M^(−½)·g, and a direction q of u
is the direction M^(−½)·q in weight space.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from bif_lightning.distributed.threads import on_threads
from bif_lightning.model.devices import now

Places = Sequence[tuple[int, torch.Size]]
"""The first element of each parameter in the flat vector, and its shape."""

LONGEST_SIDE = 2048
"""Longer sides of a parameter (such as a vocabulary) are not rotated: M is diagonal along them."""

LONGEST_PATCH = 1024
"""Longest side that joins the input channels and the kernel of a convolution; above it they are rotated one by one."""

_ROWS, _NUMBERS = 64, 1 << 24  # largest chunk
_FEW = 4
_LEAST = 1e-6  # share of the mean curvature, for parameters where every train gradient is 0


@dataclass(frozen=True)
class Factor:
    """The eigenbases of one parameter.

    Attributes:
        start: first element of the parameter in the flat vector.
        sides: shape of the parameter as an array.
        bases: U, V, ... as columns, one for each side; None for a side that is not rotated.
    """

    start: int
    sides: tuple[int, ...]
    bases: tuple[Float[Tensor, "side side"] | None, ...]

    @property
    def place(self) -> slice:
        """Of the parameter in the flat vector."""
        return slice(self.start, self.start + math.prod(self.sides))

    def rotate(self, vectors: Float[Tensor, "vector weight"], *, back: bool = False) -> None:
        """Rotate the parameter's part G of each vector in place: UᵀGV, or with `back` UGVᵀ."""
        for some in _chunks(as_arrays(vectors, self.start, self.sides)):
            rotated = some
            for side, basis in enumerate(self.bases):
                if basis is not None:
                    rotated = _along(rotated, side, basis if back else basis.mT)
            some.copy_(rotated)


def _along(arrays: Tensor, side: int, matrix: Tensor) -> Tensor:
    """The product of a matrix with one side of each array."""
    if side == arrays.ndim - 2:
        return (arrays.flatten(1, -2) @ matrix.mT).view(arrays.shape)
    if side == 0:
        return (matrix @ arrays.flatten(2)).view(arrays.shape)
    moved = arrays.movedim(1 + side, -1)  # one large product, where a small one for each row would be slow
    return (moved.reshape(-1, moved.shape[-1]) @ matrix.mT).view(moved.shape).movedim(-1, 1 + side)


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
        found = cls.of(factors, squares, gradients.dtype)
        assert found.scale is not None
        gradients *= found.scale
        return found

    @classmethod
    def of(
        cls, factors: tuple[Factor, ...], squares: Float64[Tensor, " weight"], dtype: torch.dtype
    ) -> "KroneckerPreconditioner":
        """The metric with these bases, from the mean squares Λ of the train gradients in them."""
        mean = float(squares.sum() / sum(math.prod(factor.sides) for factor in factors))
        curvature = torch.ones_like(squares)
        for factor in factors:
            own = squares[factor.place]
            curvature[factor.place] = own + (max(float(own.mean()), _LEAST * mean) or 1.0)
        if mean > 0:
            curvature *= float((squares / curvature).sum() / squares.sum())
        return cls(factors, curvature.rsqrt().to(dtype))

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
    sides = [side for _, shape in places for side in sides_of(shape) if is_rotated(side)]
    return item * (sum(side**2 for side in sides) + sum(shape.numel() for _, shape in places))


def _chunks(vectors: Tensor) -> Sequence[Tensor]:
    return vectors.split(max(1, min(_ROWS, _NUMBERS // max(vectors[0].numel(), 1))))


def sides_of(shape: torch.Size) -> tuple[int, ...]:
    """Sides of a parameter as an array.

    >>> sides_of(torch.Size([10])), sides_of(torch.Size([64, 3, 3, 3])), sides_of(torch.Size([512, 256, 3, 3]))
    ((1, 10), (64, 27), (512, 256, 9))
    """
    rows = shape[0] if len(shape) > 1 else 1
    columns = shape.numel() // max(rows, 1)
    if len(shape) > 2 and columns > LONGEST_PATCH and columns > shape[1]:
        return rows, shape[1], columns // shape[1]
    return rows, columns


def is_rotated(side: int) -> bool:
    """Whether a side has a basis of eigenvectors."""
    return 1 < side <= LONGEST_SIDE


def as_arrays(vectors: Float[Tensor, "vector weight"], start: int, sides: tuple[int, ...]) -> Tensor:
    """View of one parameter's part of each vector."""
    return vectors.narrow(1, start, math.prod(sides)).unflatten(1, sides)


def _factor(gradients: Tensor, place: tuple[int, torch.Size]) -> Factor:
    """Compute the factor of a parameter, and rotate the gradients into its bases."""
    start, sides = place[0], sides_of(place[1])
    own = as_arrays(gradients, start, sides)
    found = Factor(start, sides, tuple(_basis(own, side) for side in range(len(sides))))
    found.rotate(gradients)
    return found


def _basis(arrays: Float[Tensor, "example row ..."], side: int) -> Float[Tensor, "side side"] | None:
    """Eigenvectors of one side of the gradients, as columns; None for a side that is not rotated."""
    if not is_rotated(arrays.shape[1 + side]):
        return None
    total = torch.zeros(arrays.shape[1 + side], arrays.shape[1 + side], dtype=torch.float64, device=arrays.device)
    for some in _chunks(arrays):
        total += gram(some, side)
    return eigenbasis(total, arrays.dtype)


def gram(arrays: Float[Tensor, "example row ..."], side: int) -> Float64[Tensor, "side side"]:
    """Σ_i G_i·G_iᵀ, with one side of the arrays G_i as rows and all others as columns."""
    wide = arrays.movedim(1 + side, 0).flatten(1)
    return (wide @ wide.mT).double()


def eigenbasis(total: Float64[Tensor, "side side"], dtype: torch.dtype) -> Float[Tensor, "side side"] | None:
    """Eigenvectors as columns; None if the matrix is not finite, which `strongest_directions` refuses."""
    return torch.linalg.eigh(total).eigenvectors.to(dtype) if bool(total.isfinite().all()) else None
