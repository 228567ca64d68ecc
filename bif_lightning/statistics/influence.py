"""Influence, correlation and their standard errors from products of centred losses in batches of draws. NumPy only.

These equations serve both matrices and tokens. A batch is a set of consecutive draws of one chain. The losses l and φ
are centred within their chain (or over all chains together, as in the paper). Batch k has n_k of the N draws, the share
s_k = n_k/N and the mean product Z_k of l and φ. Then

    Cov = Σ_k s_k·Z_k,   influence = −Cov   (arXiv 2509.26544, Sec. 3),
    se² = K/(K−1) · Σ_k (s_k·Z_k − s_k·Cov)²   (batch means; Flegal & Jones 2010).

Z is scaled by N/(N − C) for C chains (N/(N − 1) if pooled), which makes Cov equal to Σ l̃·φ̃ / (C(T − 1)).

This standard error assumes many independent batches without skewness; `standard_errors` corrects it for coverage.

The code uses NumPy because dumps are read without torch, and because it is faster: a tile of a matrix takes 0.71
(1,000 x 200, 100 draws a chain), 0.83 (10,000 x 1,000) and 0.80 (1,000 x 200, 1,600 draws) of the CPU time of the torch
version, on one thread. Batches are added one at a time, in place, since memory traffic dominates. BLAS is avoided, as
its bits may depend on the number of threads.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from bif_lightning.config import Centring
from bif_lightning.statistics.moments import Moments, merge_means


@dataclass(frozen=True)
class BatchCovariances:
    """Mean products of centred losses in each batch.

    Attributes:
        share: s_k = n_k/N, each batch's share of all draws.
        covariance: s_k·Z_k of train losses and columns; their sum over batches is Cov. In nat² if both are losses.
        train_variance, column_variance: Z_k of each loss or column with itself.
    """

    share: Float[np.ndarray, " batch"]
    covariance: Float[np.ndarray, "batch train column"]
    train_variance: Float[np.ndarray, "batch train"]
    column_variance: Float[np.ndarray, "batch column"]

    @property
    def stds(self) -> tuple[Float[np.ndarray, " train"], Float[np.ndarray, " column"]]:
        """Standard deviations of the train losses and of the columns over all draws."""
        train, column = (np.einsum("k,kx->x", self.share, v) for v in (self.train_variance, self.column_variance))
        return np.sqrt(train), np.sqrt(column)

    def standardized(self) -> "BatchCovariances":
        """Divide each side by its standard deviation; NaN if it is the same at every draw."""
        train, column = self.stds
        with np.errstate(divide="ignore", invalid="ignore"):
            return BatchCovariances(
                self.share,
                self.covariance / (train[:, None] * column),
                self.train_variance / np.square(train),
                self.column_variance / np.square(column),
            )


@dataclass(frozen=True)
class Estimates:
    """Values of the entries of a matrix, and their Monte Carlo standard errors (NaN with a single batch)."""

    value: Float[np.ndarray, "row column"]
    standard_error: Float[np.ndarray, "row column"]


def products(parts: Moments, centring: Centring) -> BatchCovariances:
    """Centre the draws and average their products within each batch.

    Args:
        parts: moments with leading dimensions [chain, batch].
        centring: "chain" or "pooled".
    """
    of_chain, train_mean, column_mean = merge_means(parts)
    if centring == "chain":
        train_mean, column_mean = train_mean[:, None], column_mean[:, None]
    else:
        train_mean, column_mean = (
            np.einsum("c,cx->x", of_chain / of_chain.sum(), mean) for mean in (train_mean, column_mean)
        )
    chains, batches = parts.count.shape
    count, total = parts.count.ravel(), parts.count.sum()
    train = (parts.train_mean - train_mean).reshape(chains * batches, -1)
    columns = (parts.column_mean - column_mean).reshape(chains * batches, -1)
    comoment = parts.comoment.reshape(chains * batches, *parts.comoment.shape[2:])
    lost = chains if centring == "chain" else 1
    scale = total / (total - lost)
    covariance, shift = np.empty_like(comoment), np.empty_like(comoment[0])
    for k, draws in enumerate(count):
        np.multiply(comoment[k], scale / total, out=covariance[k])
        np.multiply((scale * draws / total * train[k])[:, None], columns[k], out=shift)
        covariance[k] += shift
    squares = (
        (parts.train_square.reshape(chains * batches, -1), train),
        (parts.column_square.reshape(chains * batches, -1), columns),
    )
    variances = (scale * (square / count[:, None] + np.square(off)) for square, off in squares)
    return BatchCovariances(count / total, covariance, *variances)


def influence(draws: BatchCovariances) -> Estimates:
    """Compute B = −Cov(l_i, φ_j), and its standard error."""
    found = weighted_sum(draws.covariance, draws.share)
    return replace(found, value=-found.value)


def correlation(draws: BatchCovariances) -> tuple[Estimates, Float[np.ndarray, "batch train column"]]:
    """Compute R = +Corr(l_i, φ_j), its standard error, and its linearization in each batch.

    With u and v the standardized losses, the linearization of R in batch k is
    ψ_k = mean(u·v) − R/2·(mean(u²) + mean(v²)). The standard error of R is that of the mean of ψ_k.

    Args:
        draws: standardized covariances, which are overwritten.

    Returns:
        R and its standard error; s_k·(R + ψ_k), whose sum over batches is R.
    """
    moved, share = draws.covariance, draws.share.astype(draws.covariance.dtype)
    value = correlation_values(draws)
    change = np.empty_like(value)
    for each, part, train, column in zip(moved, share, draws.train_variance, draws.column_variance, strict=True):
        own = (part * (1 - 0.5 * train)).astype(value.dtype)
        np.subtract(own[:, None], (part * 0.5 * column).astype(value.dtype), out=change)
        change *= value
        each += change
    return Estimates(value, weighted_sum(moved, draws.share).standard_error), moved


def correlation_values(draws: BatchCovariances) -> Float[np.ndarray, "train column"]:
    """Add up R of standardized covariances."""
    return np.clip(draws.covariance.sum(0), -1, 1)


def weighted_sum(terms: Float[np.ndarray, "batch row column"], share: Float[np.ndarray, " batch"]) -> Estimates:
    """Add up s_k·x_k over batches, and estimate the standard error of the sum from the variance between batches."""
    value, count = terms.sum(0), len(share)
    if count < 2:
        return Estimates(value, np.full_like(value, np.nan))
    off, variance = np.empty_like(value), np.zeros_like(value)
    for term, part in zip(terms, share.astype(value.dtype), strict=True):
        np.multiply(value, part, out=off)
        np.subtract(term, off, out=off)
        np.square(off, out=off)
        variance += off
    return Estimates(value, np.sqrt(variance * (count / (count - 1))))
