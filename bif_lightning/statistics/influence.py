"""From moments of draws to influence, correlation, and the standard error of every entry.

Draws come in batches: consecutive draws of one chain. With l and φ centred within their chain (or over all
chains together, the paper's form), batch k holds the mean product Z_k of n_k of the N draws, and

    Cov = Σ_k (n_k/N)·Z_k,   influence = −Cov   (arXiv 2509.26544, Sec. 3),
    se² = K/(K−1) · Σ_k (n_k/N)²·(Z_k − Cov)²   (batch means; Flegal & Jones 2010).

Z is scaled by N/(N − C) for C chains (N/(N − 1) when pooled), so that Cov is Σ l̃·φ̃ / (C(T − 1)).

That is the error of batches that are independent, many, and of no skewness; `errors` makes it one that covers.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.config import Centring
from bif_lightning.statistics.moments import Moments, merge


@dataclass(frozen=True)
class BatchCovariances:
    """Mean products of centred draws, batch by batch.

    Attributes:
        share: n_k/N, each batch's share of all draws.
        covariance: Z_k of train losses and columns.
        train_variance, column_variance: the same of each with itself.
    """

    share: Float[Tensor, " batch"]
    covariance: Float[Tensor, "batch train column"]
    train_variance: Float[Tensor, "batch train"]
    column_variance: Float[Tensor, "batch column"]


@dataclass(frozen=True)
class Estimates:
    """A value for each entry of a matrix, and its Monte Carlo standard error (NaN from a single batch)."""

    value: Float[Tensor, "row column"]
    standard_error: Float[Tensor, "row column"]


def products(parts: Moments, centring: Centring) -> BatchCovariances:
    """Centre the draws and average their products within each batch.

    Args:
        parts: moments with leading dimensions [chain, batch].
        centring: "chain" or "pooled".
    """
    chain_means = merge(parts)
    if centring == "chain":
        train_center, column_center = chain_means.train_mean.unsqueeze(1), chain_means.column_mean.unsqueeze(1)
    else:
        grand = merge(chain_means)
        train_center, column_center = grand.train_mean, grand.column_mean
    train_shift = (parts.train_mean - train_center).flatten(0, 1)
    column_shift = (parts.column_mean - column_center).flatten(0, 1)
    count = parts.count.flatten()
    total = count.sum()
    lost = parts.count.shape[0] if centring == "chain" else 1
    scale = total / (total - lost)
    each = count[:, None]
    return BatchCovariances(
        count / total,
        scale * (parts.comoment.flatten(0, 1) / each[:, None] + train_shift[:, :, None] * column_shift[:, None, :]),
        scale * (parts.train_square.flatten(0, 1) / each + train_shift.square()),
        scale * (parts.column_square.flatten(0, 1) / each + column_shift.square()),
    )


def influence(draws: BatchCovariances) -> Estimates:
    """B = −Cov(l_i, φ_j)."""
    return weighted_mean(-draws.covariance, draws.share)


def correlation(draws: BatchCovariances) -> tuple[Estimates, Float[Tensor, "batch train column"]]:
    """R = +Corr(l_i, φ_j), and its linearization in the draws, batch by batch.

    With u, v the two sides in units of their standard deviations, a batch moves R by
    ψ_k = mean(u·v) − R/2·(mean(u²) + mean(v²)), of which the standard error is that of a mean.
    """
    train_std = mean(draws.train_variance, draws.share).sqrt()
    column_std = mean(draws.column_variance, draws.share).sqrt()
    # A side that never varied has no correlation: 0/0 = NaN, which is what undefined means in a dump.
    standardized = draws.covariance / (train_std[:, None] * column_std)
    value = mean(standardized, draws.share).clamp(-1, 1)
    train_part = (draws.train_variance / train_std.square())[:, :, None]
    column_part = (draws.column_variance / column_std.square())[:, None, :]
    # In place, here and below: of a matrix for each batch, memory traffic is the cost.
    moved = (train_part + column_part).mul_(-0.5 * value).add_(standardized)
    error = weighted_mean(moved, draws.share).standard_error
    return Estimates(value, error), moved.add_(value)


def weighted_mean(batches: Float[Tensor, "batch row column"], share: Float[Tensor, " batch"]) -> Estimates:
    """Σ_k s_k·x_k and the standard error of it, from the spread of the batches."""
    value = mean(batches, share)
    count = len(share)
    if count < 2:
        return Estimates(value, torch.full_like(value, torch.nan))
    variance = mean((batches - value).square_(), share.square()) * (count / (count - 1))
    return Estimates(value, variance.sqrt())


def mean(batches: Float[Tensor, "batch ..."], share: Float[Tensor, " batch"]) -> Float[Tensor, "..."]:
    """Σ_k s_k·x_k."""
    return torch.tensordot(share, batches, dims=1)


def group_sums(
    batches: Float[Tensor, "batch train column"],
    train_groups: Float[Tensor, "train train_group"],
    column_groups: Float[Tensor, "column column_group"],
) -> Float[Tensor, "batch train_group column_group"]:
    """Sums over blocks of entries, batch by batch; undefined entries count as 0."""
    return train_groups.mT @ batches.nan_to_num(nan=0.0) @ column_groups
