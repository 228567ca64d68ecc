"""How much of a measured correction of a covariance is signal: the agreement of chains. NumPy only.

Chain c gives the difference Δ_c = Cov x − Cov x' of the covariances of its coordinates and those of its surrogate. The
correction of the influence is a·Δ·bᵀ, with a and b the coordinates of gradients. In the inner product of such matrices,
⟨Δ, Δ'⟩ = tr(aᵀa·Δ·bᵀb·Δ'ᵀ), what chains share adds up and their noise does not, so that

    α = Σ_{a≠b} ⟨Δ_a, Δ_b⟩ / (C(C − 1)·|mean Δ|²),   between 0 and 1,

estimates the α with which α·mean Δ is closest to the correction of infinitely long chains (James & Stein 1961, with the
signal estimated by cross-products).
"""

import numpy as np
from jaxtyping import Float64

_LEAST_VARIANCE = 0.1

MOST_RESIDUAL = 0.2
"""Largest residual share at which a correction counts. Above it chain and surrogate part: on the kinks of ReLUs, which
curve the loss at any temperature, corrections were harmful (up to .4 of a score of .57)."""

MOST_PARTED = 1.0
"""Residual share above which the loss is not quadratic around w*, whatever kinks it has: 3e-3 to 0.7 at trained
networks, 10 to 1e6 at untrained ones whose loss curves down along some direction more than the pull holds."""


def difference(coordinates: Float64[np.ndarray, "draw 2 direction"]) -> Float64[np.ndarray, "direction direction"]:
    """Δ of one chain, with the draws centred within it; needs two draws at least."""
    centred = coordinates - coordinates.mean(0)
    chain, surrogate = centred[:, 0], centred[:, 1]
    return (chain.T @ chain - surrogate.T @ surrogate) / (len(coordinates) - 1)


def residual_share(
    coordinates: Float64[np.ndarray, "chain draw 2 direction"], train: Float64[np.ndarray, "train direction"]
) -> float:
    """Var(a·(x − x')) / Var(a·x') of the linear losses, in the mean over train examples, within chains.

    0 where the loss is quadratic; also what minibatches and kinks do counts.
    """
    centred = coordinates - coordinates.mean(1, keepdims=True)
    gram = train.T @ train
    apart, surrogate = centred[:, :, 0] - centred[:, :, 1], centred[:, :, 1]
    known = float(np.einsum("ctk,kl,ctl->", surrogate, gram, surrogate))
    return float(np.einsum("ctk,kl,ctl->", apart, gram, apart)) / known if known > 0 else np.nan


def agreement(
    differences: Float64[np.ndarray, "chain direction direction"],
    train: Float64[np.ndarray, "train direction"],
    columns: Float64[np.ndarray, "column direction"],
) -> float:
    """α; 0 for a single chain, which has nothing to agree with.

    >>> one = np.array([[1.0]])
    >>> agreement(np.array([one, one]), one, one), agreement(np.array([one, -one]), one, one)
    (1.0, 0.0)
    """
    chains = len(differences)
    left, right = train.T @ train, columns.T @ columns
    products = np.einsum("akl,ckl->ac", differences, left @ differences @ right)
    whole = products.sum()
    if chains < 2 or not whole > 0:
        return 0.0
    shared = (whole - np.trace(products)) / (chains * (chains - 1))
    return float(np.clip(shared / (whole / chains**2), 0.0, 1.0))


def largest(
    correction: Float64[np.ndarray, "direction direction"], variances: Float64[np.ndarray, " direction"]
) -> float:
    """The largest α at which V + α·Δ leaves a tenth of each variance of V, so that no variance is negative.

    >>> float(largest(np.diag([-1.0, 5.0]), np.array([1.0, 1.0])))
    0.9
    """
    scale = 1 / np.sqrt(variances)
    least = np.linalg.eigvalsh(scale[:, None] * correction * scale)[0]
    return (1 - _LEAST_VARIANCE) / -least if least < 0 else np.inf
