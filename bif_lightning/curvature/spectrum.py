"""Hessian spectrum, effective dimension and gradient noise at the snapshot.

The spectrum comes from stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017, SIAM J. Matrix Anal. Appl. 38(4)). From
a random start z in d dimensions, tr f(H) ≈ d·Σ_k τ_k·f(θ_k), where θ_k are the Ritz values of a few Lanczos steps and
τ_k the squared first components of the eigenvectors of the tridiagonal matrix. The estimate is averaged over starts.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.curvature.hessian import EXAMPLES, Hessian
from bif_lightning.data.dataset import spread_rows
from bif_lightning.losses.problem import Problem
from bif_lightning.model.weights import WeightBackend
from bif_lightning.rng import stream_seed

PROBES, STEPS = 2, 16
"""Random starts of the spectrum, and Lanczos steps from each."""

GRADIENTS = 32
"""Minibatch gradients that the gradient noise is estimated from."""

_KEPT_BYTES = 2**29
_LEAST_GRADIENTS = 4
_PROBE_KEY = -1


@dataclass(frozen=True)
class Spectrum:
    """The eigenvalue distribution of a symmetric matrix, as Ritz values with weights.

    Attributes:
        values: Ritz values, in nats per squared weight unit for the Hessian of a mean loss.
        counts: number of eigenvalues that each represents; they sum to the number of weights.
    """

    values: Float[Tensor, " ritz"]
    counts: Float[Tensor, " ritz"]

    @property
    def largest(self) -> float:
        """The largest Ritz value, a lower bound of the largest eigenvalue."""
        return float(self.values.max())

    def effective_dimension(self, pull: float) -> float:
        """d_eff(λ) = tr H(H + λI)⁻¹, the number of directions in which the loss is curved more than λ.

        Negative curvature counts as 0.

        Args:
            pull: λ = γ/nβ, above 0, in the unit of the eigenvalues.
        """
        positive = self.values.clamp(min=0)
        return float((positive / (positive + pull)) @ self.counts)


@dataclass(frozen=True)
class GradientNoise:
    """The covariance F of per-example gradients; the mean gradient of a minibatch of m has covariance F/m.

    Attributes:
        largest: λmax(F), in squared nats per squared weight unit; NaN for fewer than 4 training examples.
        trace: tr F, likewise.
    """

    largest: float
    trace: float


def hessian_spectrum(
    hessian: Hessian, *, probes: int = PROBES, steps: int = STEPS, held: int | None = None
) -> Spectrum:
    """Estimate the spectrum of a Hessian at the snapshot by stochastic Lanczos quadrature.

    It takes probes·steps Hessian-vector products. d_eff has a relative standard error of about √(2/(probes·d_eff)).

    Args:
        hessian: Hessian of the loss.
        probes, steps: random starts, and Lanczos steps from each.
        held: number of earlier vectors that each new one is orthogonalized against; None for all that fit in memory.
    """
    backend, seed = hessian.backend, hessian.key
    size = backend.layout.num_weights
    values, counts = list[Tensor](), list[Tensor]()
    for probe in range(probes):
        diagonal, beside = _lanczos(hessian, random_direction(backend, seed, probe), backend, min(steps, size), held)
        theta, vectors = torch.linalg.eigh(torch.diag(diagonal) + torch.diag(beside, 1) + torch.diag(beside, -1))
        values.append(theta)
        counts.append(vectors[0].square() * (size / probes))
    return Spectrum(torch.cat(values), torch.cat(counts))


def gradient_noise(problem: Problem, backend: WeightBackend) -> GradientNoise:
    """Estimate λmax and the trace of the covariance F of per-example gradients, from minibatch gradients.

    The largest eigenvalue of a sample covariance is biased upwards by about the mean of the others, so that mean is
    subtracted.
    """
    weights = backend.weights()
    bound = backend.bind(weights)
    rows = spread_rows(len(problem.training), EXAMPLES)
    if len(rows) < _LEAST_GRADIENTS:
        return GradientNoise(math.nan, math.nan)
    count = max(_LEAST_GRADIENTS, min(GRADIENTS, _KEPT_BYTES // (4 * backend.layout.size), len(rows) // 2))
    # Neighbours in a sorted set are alike: interleave the rows, so that every part represents the whole.
    parts = [rows[index::count] for index in range(count)]
    found = list[Tensor]()
    for part in parts:
        problem.gradient(backend, weights, bound, problem.minibatch(part))
        found.append(weights.gradient.clone())
    mean = torch.stack(found).mean(0)
    centred = [gradient - mean for gradient in found]
    gram = torch.tensor([[backend.inner(a, b) for b in centred] for a in centred], dtype=torch.float64, device="cpu")
    size = sum(map(len, parts)) / count
    eigenvalues = torch.linalg.eigvalsh(gram).clamp(min=0) * (size / (count - 1))
    trace, top = float(eigenvalues.sum()), float(eigenvalues[-1])
    return GradientNoise(max(top - (trace - top) / (count - 2), 0.0), trace)


def random_direction(backend: WeightBackend, seed: int, probe: int) -> Float[Tensor, " weight"]:
    """A random direction uniform on the unit sphere, determined by `seed` and `probe`."""
    direction = torch.zeros_like(backend.center)
    for parameter, piece in enumerate(backend.layout.pieces(direction)):
        key = stream_seed(seed, _PROBE_KEY, probe, parameter)
        backend.fill_normal(piece, parameter, torch.Generator(backend.device).manual_seed(key))
    return direction / backend.norm(direction)


def _lanczos(
    hessian: Hessian, start: Tensor, backend: WeightBackend, steps: int, held: int | None
) -> tuple[Float[Tensor, " step"], Float[Tensor, " between"]]:
    """Diagonal and off-diagonal of the tridiagonal matrix of `steps` Lanczos steps, or fewer if the Krylov space ends.

    Each new vector is orthogonalized against the earlier ones, since the three-term recurrence loses orthogonality in
    single precision.
    """
    kept = max(2, min(held or steps, _KEPT_BYTES // (start.element_size() * max(len(start), 1))))
    basis, diagonal, beside = [start], list[float](), list[float]()
    while True:
        vector = hessian.times(basis[-1][None])[0]
        diagonal.append(backend.inner(vector, basis[-1]))
        length = backend.norm(vector)
        for earlier in reversed(basis):
            vector = vector - backend.inner(vector, earlier) * earlier
        left = backend.norm(vector)
        if len(diagonal) == steps or not left > 1e-6 * length:
            return (
                torch.tensor(diagonal, dtype=torch.float64, device="cpu"),
                torch.tensor(beside, dtype=torch.float64, device="cpu"),
            )
        beside.append(left)
        basis = [*basis, vector / left][-kept:]
