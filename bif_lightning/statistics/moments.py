"""Streaming means and co-moments of draws: zero, push, merge.

Everything in float64. Co-moments of parts merge exactly (Chan, Golub & LeVeque 1979), so it does not matter who
saw which draws, only in which order the parts are merged.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Count, means and centred second moments of train losses and observable columns over some draws.

    Leading dimensions (written `...`) hold separate parts, for example [chain, batch].

    Attributes:
        count: number of draws.
        train_mean, column_mean: means over the draws.
        train_square, column_square: Σ (x − mean)².
        comoment: Σ (l − mean l)(φ − mean φ).
    """

    count: Float[Tensor, "..."]
    train_mean: Float[Tensor, "... train"]
    column_mean: Float[Tensor, "... column"]
    train_square: Float[Tensor, "... train"]
    column_square: Float[Tensor, "... column"]
    comoment: Float[Tensor, "... train column"]


def zero(train: int, column: int) -> Moments:
    """Moments of no draws: the identity of `merge`."""
    f = torch.float64
    return Moments(
        torch.zeros((), dtype=f),
        torch.zeros(train, dtype=f),
        torch.zeros(column, dtype=f),
        torch.zeros(train, dtype=f),
        torch.zeros(column, dtype=f),
        torch.zeros(train, column, dtype=f),
    )


def from_draws(train: Float[Tensor, "... draw train"], columns: Float[Tensor, "... draw column"]) -> Moments:
    """Moments of a block of draws, by one matrix product."""
    train, columns = train.double(), columns.double()
    train_mean, column_mean = train.mean(-2), columns.mean(-2)
    train_centred, column_centred = train - train_mean.unsqueeze(-2), columns - column_mean.unsqueeze(-2)
    return Moments(
        torch.full(train.shape[:-2], float(train.shape[-2]), dtype=torch.float64),
        train_mean,
        column_mean,
        train_centred.square().sum(-2),
        column_centred.square().sum(-2),
        train_centred.mT @ column_centred,
    )


def stack(parts: list[Moments]) -> Moments:
    """Put parts side by side along a new first dimension."""
    return Moments(*(torch.stack(field) for field in zip(*(_fields(part) for part in parts), strict=True)))


def merge(parts: Moments) -> Moments:
    """Merge the parts along the last leading dimension into one, as if it had seen all their draws.

    N = Σn_k,  mean = Σ n_k·mean_k / N,  M = Σ M_k + Σ n_k·(mean_k − mean)(mean_k − mean)ᵀ.
    """
    weight = parts.count.unsqueeze(-1)
    total = parts.count.sum(-1)
    share = weight / total.clamp(min=1).unsqueeze(-1).unsqueeze(-1)
    train_mean = (share * parts.train_mean).sum(-2)
    column_mean = (share * parts.column_mean).sum(-2)
    train_shift = parts.train_mean - train_mean.unsqueeze(-2)
    column_shift = parts.column_mean - column_mean.unsqueeze(-2)
    return Moments(
        total,
        train_mean,
        column_mean,
        parts.train_square.sum(-2) + (weight * train_shift.square()).sum(-2),
        parts.column_square.sum(-2) + (weight * column_shift.square()).sum(-2),
        parts.comoment.sum(-3) + (weight * train_shift).mT @ column_shift,
    )


def push(moments: Moments, train: Float[Tensor, "draw train"], columns: Float[Tensor, "draw column"]) -> Moments:
    """Moments that have seen further draws."""
    return merge(stack([moments, from_draws(train, columns)]))


def _fields(moments: Moments) -> tuple[Tensor, ...]:
    return (
        moments.count,
        moments.train_mean,
        moments.column_mean,
        moments.train_square,
        moments.column_square,
        moments.comoment,
    )
