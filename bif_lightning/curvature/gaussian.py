"""A Gaussian posterior with curvature along a few directions: N(u*, Σ), Σ = (nβ·Qᵀ·diag(h)·Q + γ·I)⁻¹.

This is the Laplace approximation of the localized posterior (MacKay 1992), with the Hessian restricted to the span of
the examples' gradients. The coordinates are u = M^½·w, in which the pull is isotropic (`curvature.kronecker`). Q holds
K orthonormal directions as rows; h are the eigenvalues of the Hessian of the mean loss in their span, clipped at 0. In
all other directions only the pull γ acts.
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from bif_lightning.curvature.kronecker import KroneckerPreconditioner
from bif_lightning.distributed.threads import on_threads
from bif_lightning.statistics.effective_dimension import effective_dimension

_ROWS, _WEIGHTS = 128, 1 << 14  # block size of a matrix product
_SOLVED = 1 << 20  # weights of a triangular system
_FEW = 256  # rows whose products are in float64, which costs little


def strongest_directions(
    gradients: Float[Tensor, "example weight"], count: int, workers: int = 1
) -> Float[Tensor, "direction weight"]:
    """An orthonormal basis of the `count` leading right singular vectors of the gradients; fewer if the rank is lower.

    The singular vectors come from the Gram matrix of the examples in float64 (n x n). Dividing by small singular
    values loses orthogonality, so they are orthonormalized again in the gradients' precision (Cholesky QR).

    Args:
        workers: threads; their number changes no bit.

    Raises:
        ValueError: all gradients are 0, or some are not finite.
    """
    return orthonormal(strongest_combinations(gradients, count, workers).to(gradients) @ gradients, workers)


def strongest_combinations(
    gradients: Float[Tensor, "example weight"], count: int, workers: int = 1
) -> Float64[Tensor, "direction example"]:
    """What to combine the gradients with for `strongest_directions`, up to rounding."""
    gram = _gram(gradients, workers, wide=len(gradients) < _FEW)
    values, vectors = torch.linalg.eigh(gram)
    known = values > values[-1] * gram.shape[0] * torch.finfo(gradients.dtype).eps
    keep = min(count, int(known.sum()))
    if keep == 0:
        raise ValueError(
            "the gradient of every train example is 0 or not finite, so that no example has influence to first order; "
            "sample with SGLD, or check the losses"
        )
    return (vectors[:, -keep:].flip(1) / values[-keep:].flip(0).sqrt()).mT


def orthonormal(rows: Float[Tensor, "row weight"], workers: int = 1) -> Float[Tensor, "row weight"]:
    """The rows orthonormalized one after the other, in place, by a Cholesky factor of their Gram matrix."""
    lower = torch.linalg.cholesky(_gram(rows, workers)).to(rows)
    for narrow in rows.split(_SOLVED, dim=1):
        narrow.copy_(torch.linalg.solve_triangular(lower, narrow, upper=False))
    return rows


def _gram(rows: Float[Tensor, "row weight"], workers: int, *, wide: bool = False) -> Float[Tensor, "row row"]:
    """Gram matrix of the rows, summed in float64 over slices of weights.

    Args:
        wide: also the products of slices are in float64, not in the rows' precision.
    """
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)

    def fill(start: int) -> None:
        some, rest = slice(start, start + _ROWS), slice(start, None)
        for narrow in rows.split(_WEIGHTS, dim=1):
            part = narrow.double() if wide else narrow
            total[some, rest] += (part[some] @ part[rest].mT).double()

    on_threads([partial(fill, start) for start in range(0, len(rows), _ROWS)], workers, torch.get_num_threads())
    return total.triu() + total.triu(1).mT


@dataclass(frozen=True)
class SubspaceGaussian:
    """N(0, Σ) with Σ = (nβ·Qᵀ·diag(h)·Q + γ·I)⁻¹: the posterior of the displacement u − u*.

    Attributes:
        directions: Q, orthonormal rows, eigenvectors of the Hessian in their span.
        curvature: h, its eigenvalues there, 0 or above, in nats per squared weight unit.
        inverse_temperature, localization: nβ and γ.
        metric: M in the coordinates u = M^½·w.
    """

    directions: Float[Tensor, "direction weight"]
    curvature: Float[Tensor, " direction"]
    inverse_temperature: float
    localization: float
    metric: KroneckerPreconditioner = KroneckerPreconditioner()  # noqa: RUF009 - it is frozen

    @classmethod
    def of(
        cls,
        directions: Float[Tensor, "direction weight"],
        hessian: Float[Tensor, "direction direction"],
        inverse_temperature: float,
        localization: float,
        metric: KroneckerPreconditioner = KroneckerPreconditioner(),  # noqa: B008 - it is frozen
    ) -> tuple["SubspaceGaussian", Float[Tensor, "direction direction"]]:
        """Build it from any orthonormal basis and the Hessian in it, of which the symmetric part counts.

        Returns:
            The posterior, and the eigenvectors of the Hessian in the given basis, as columns.
        """
        values, vectors = torch.linalg.eigh((hessian + hessian.mT).double() / 2)
        own = vectors.mT.to(directions) @ directions
        return cls(own, values.clamp(min=0), inverse_temperature, localization, metric), vectors

    @property
    def variances(self) -> Float[Tensor, " direction"]:
        """1/(nβ·h_k + γ), the variance along each direction; 1/γ along all others."""
        return 1 / (self.inverse_temperature * self.curvature + self.localization)

    @property
    def effective_dimension(self) -> float:
        """d_eff = Σ h_k/(h_k + γ/nβ): the number of directions that the data determines more than the pull does."""
        return effective_dimension(self.curvature, self.localization / self.inverse_temperature)

    def color(self, standard: Float[Tensor, " weight"]) -> Float[Tensor, " weight"]:
        """Turn ξ ~ N(0, I) into the part of a draw of N(0, Σ) within the span, in weight space.

        It is M^(−½)·QᵀVQ·ξ with V = diag(1/√(nβ·h_k + γ)).
        """
        drawn = (self.variances.sqrt().to(standard) * (self.directions @ standard)) @ self.directions
        return self.metric.to_weight_space(drawn[None])[0]


def rotate(
    hessians: Float[Tensor, "group direction direction"], vectors: Float[Tensor, "direction direction"]
) -> Float[Tensor, "group direction direction"]:
    """Transform Hessians (their symmetric parts) to another basis of the same span, given as columns."""
    hessians = hessians.double()
    return vectors.mT @ ((hessians + hessians.mT) / 2) @ vectors
