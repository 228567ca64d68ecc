"""Means and co-moments of draws, and their merging. NumPy only, without torch.

All numbers are float64. Co-moments of parts merge exactly (Chan, Golub & LeVeque 1979). Results depend on the order in
which parts are merged, but not on the ranks that computed them. BLAS is avoided, as its bits may depend on the number
of threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Moments:
    """Count, means and centred second moments of train losses and observable columns over some draws.

    Leading dimensions (written `...`) hold separate parts, for example [chain, batch].

    Attributes:
        count: number of draws.
        train_mean, column_mean: means over the draws, in the units of the losses (nats) and columns.
        train_square, column_square: Σ (x − mean)².
        comoment: Σ (l − mean l)(φ − mean φ).
    """

    count: Float[np.ndarray, "..."]
    train_mean: Float[np.ndarray, "... train"]
    column_mean: Float[np.ndarray, "... column"]
    train_square: Float[np.ndarray, "... train"]
    column_square: Float[np.ndarray, "... column"]
    comoment: Float[np.ndarray, "... train column"]

    def rows(self, rows: slice, columns: slice = slice(None)) -> "Moments":
        """Take the moments of some train examples and columns."""
        return Moments(
            self.count,
            self.train_mean[..., rows],
            self.column_mean[..., columns],
            self.train_square[..., rows],
            self.column_square[..., columns],
            self.comoment[..., rows, columns],
        )


def stack(parts: Sequence[Moments]) -> Moments:
    """Put parts side by side along a new first dimension."""
    return Moments(*(np.stack(field) for field in zip(*(vars(part).values() for part in parts), strict=True)))


def merge(parts: Moments) -> Moments:
    """Merge the parts along the last leading dimension into the moments of all their draws.

    N = Σn_k,  mean = Σ n_k·mean_k / N,  M = Σ M_k + Σ n_k·(mean_k − mean)(mean_k − mean)ᵀ.
    """
    weight = parts.count[..., None]
    total, train_mean, column_mean = merge_means(parts)
    train_shift = parts.train_mean - train_mean[..., None, :]
    column_shift = parts.column_mean - column_mean[..., None, :]
    return Moments(
        total,
        train_mean,
        column_mean,
        parts.train_square.sum(-2) + (weight * np.square(train_shift)).sum(-2),
        parts.column_square.sum(-2) + (weight * np.square(column_shift)).sum(-2),
        parts.comoment.sum(-3) + np.einsum("...kt,...kc->...tc", weight * train_shift, column_shift),
    )


def merge_means(
    parts: Moments,
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "... train"], Float[np.ndarray, "... column"]]:
    """Merge only counts and means: N, and Σ n_k·mean_k / N of train losses and of columns."""
    total = np.asarray(parts.count.sum(-1))
    share = (parts.count / np.maximum(total, 1)[..., None])[..., None]
    return total, (share * parts.train_mean).sum(-2), (share * parts.column_mean).sum(-2)


def merge_batches(parts: Moments, count: int) -> Moments:
    """Merge neighbouring batches [chain, batch] into `count` batches a chain of nearly equal size."""
    batches = parts.count.shape[1]
    if count == batches:
        return parts
    chunks = np.array_split(np.arange(batches), count)
    groups = [merge(Moments(*(field[:, chunk] for field in vars(parts).values()))) for chunk in chunks]
    return Moments(*(np.stack(field, 1) for field in zip(*(vars(group).values() for group in groups), strict=True)))
