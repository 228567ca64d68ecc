"""Moments of a block of draws, by one matrix product in torch, whose number of threads the caller sets."""

import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.statistics.moments import Moments


def from_draws(train: Float[Tensor, "draw train"], columns: Float[Tensor, "draw column"]) -> Moments:
    """Compute the moments of a block of draws.

    >>> from_draws(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [2.0]])).comoment
    array([[1.]])
    """
    train, columns = train.double(), columns.double()
    train_mean, column_mean = train.mean(0), columns.mean(0)
    train_centred, column_centred = train - train_mean, columns - column_mean
    fields = (
        torch.tensor(float(len(train)), dtype=torch.float64, device="cpu"),
        train_mean,
        column_mean,
        train_centred.square().sum(0),
        column_centred.square().sum(0),
        train_centred.mT @ column_centred,
    )
    return Moments(*(field.numpy() for field in fields))
