"""Covariances of token losses, for each batch of draws or, in closed form, for each group of examples. Without torch.

For draws, l̃ and φ̃ are the changes of two token losses, centred as the sequences' losses are (`statistics.influence`).
Z_k is the mean of l̃·φ̃ over batch k, s_k the share of the batch, and Cov = Σ_k s_k·Z_k.

In closed form, J = ∂l/∂q are slopes along orthonormal directions, and Cov = J·V·Jᵀ. Group g of training examples, whose
curvature differs by D_g, gives Z_g = Cov − nβ·(J·V)·D_g·(J·V)ᵀ (`curvature.closed_form`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from bif_lightning.config import Centring
from bif_lightning.statistics.influence import BatchCovariances
from bif_lightning.statistics.standard_errors import CENTRE_PARTS, ChainMeanCovariance

Values = np.ndarray
"""Values of tokens: changes of their losses [chain, draw, token], or slopes of their losses [direction, token]."""

Product = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A function that multiplies two matrices."""


@dataclass(frozen=True)
class TokenBatch:
    """Centred values and moments of some tokens.

    Attributes:
        values: centred changes [chain, draw, token], or slopes [direction, token].
        variance: variance of each token's loss in each batch, nat².
        means: deviations of the chain means that the draws are centred about, nat; 0 in closed form.
        change: mean change of the loss over the draws, nat; 0 in closed form.
    """

    values: Values
    variance: Float[np.ndarray, "batch token"]
    means: Float[np.ndarray, "mean token"]
    change: Float[np.ndarray, " token"]

    def __len__(self) -> int:
        return self.values.shape[-1]

    def part(self, tokens: slice) -> "TokenBatch":
        """A slice of the tokens."""
        return TokenBatch(
            self.values[..., tokens], self.variance[:, tokens], self.means[:, tokens], self.change[tokens]
        )

    def scaled(self, factors: Float[np.ndarray, " token"]) -> "TokenBatch":
        """Multiply every loss by a factor."""
        scaled = (self.values * factors).astype(self.values.dtype)
        return TokenBatch(scaled, self.variance * np.square(factors), self.means * factors, self.change * factors)


@dataclass(frozen=True)
class DrawCovariance:
    """Covariances of token losses from their values at the draws of chains.

    Attributes:
        chains: number of chains.
        lengths: draws in each batch of one chain, the same for all chains.
        centring: how the draws are centred.
        centre_scale: factor that turns products of the deviations of chain means into the bias of the covariance.
    """

    chains: int
    lengths: tuple[int, ...]
    centring: Centring
    centre_scale: float

    @property
    def share(self) -> Float[np.ndarray, " batch"]:
        """Share of each batch in all draws."""
        lengths = np.array(self.lengths * self.chains, np.float64)
        return lengths / lengths.sum()

    def side(self, values: Values) -> TokenBatch:
        """Centre the changes [chain, draw, token] of some tokens."""
        means = values.mean(1, dtype=np.float64)
        about = means if self.centring == "chain" else means.mean(0, keepdims=True)
        centred = np.subtract(values, about[:, None], dtype=np.float64)
        squares = np.square(centred)
        variance = np.stack([squares[chain, start:stop].mean(0) for chain, start, stop in self._parts()])
        deviations = self._means(values, means)
        return TokenBatch(centred.astype(values.dtype), variance * self._scale, deviations, means.mean(0))

    def products(self, train: TokenBatch, query: TokenBatch) -> Float[np.ndarray, "batch row column"]:
        """s_k·Z_k of two sets; their sum over batches is Cov."""
        parts, scale = self._parts(), self._scale / (self.chains * sum(self.lengths))
        dtype = np.result_type(train.values, query.values)
        out = np.empty((len(parts), len(train), len(query)), dtype)
        for place, (chain, start, stop) in enumerate(parts):
            rows = train.values[chain, start:stop] * dtype.type(scale)  # scaled here, as the product is far larger
            np.matmul(rows.T, query.values[chain, start:stop], out=out[place])
        return out

    def covariance(
        self, train: TokenBatch, query: TokenBatch, product: Product = np.matmul
    ) -> Float[np.ndarray, "row column"]:
        """Cov alone, by one matrix product."""
        rows, columns = (side.values.reshape(-1, len(side)) for side in (train, query))
        return product((rows * rows.dtype.type(self._scale / len(rows))).T, columns)

    @property
    def _scale(self) -> float:
        """N/(N − C) for draws centred within chains, N/(N − 1) for pooled draws."""
        total = self.chains * sum(self.lengths)
        return total / (total - (self.chains if self.centring == "chain" else 1))

    def _parts(self) -> list[tuple[int, int, int]]:
        """Chain, first draw and end of every batch."""
        edges = np.cumsum([0, *self.lengths]).tolist()
        return [(chain, start, stop) for chain in range(self.chains) for start, stop in pairwise(edges)]

    def _means(self, values: Values, means: Float[np.ndarray, "chain token"]) -> Float[np.ndarray, "mean token"]:
        """Deviations of the chain means from their mean; for a single chain, of the means of its quarters."""
        if self.chains == 1:
            edges = np.cumsum([0, *self.lengths])
            quarters = np.array_split(np.arange(len(self.lengths)), min(CENTRE_PARTS, len(self.lengths)))
            spans = [slice(edges[part[0]], edges[part[-1] + 1]) for part in quarters]
            means = np.stack([values[0, span].mean(0, dtype=np.float64) for span in spans])
        return means - means.mean(0)


@dataclass(frozen=True)
class GaussianCovariance:
    """Covariances of token losses from their slopes along the directions of a Gaussian posterior.

    Attributes:
        variances: v_k, variance of the posterior along each direction.
        changes: nβ·D_g of each group of training examples, nats per squared weight unit.
    """

    variances: Float[np.ndarray, " direction"]
    changes: Float[np.ndarray, "group direction direction"]
    centre_scale: float = 0.0

    @property
    def share(self) -> Float[np.ndarray, " group"]:
        """Share of each group in all examples."""
        return np.full(len(self.changes), 1 / len(self.changes))

    def side(self, values: Values) -> TokenBatch:
        """Build a batch from the slopes [direction, token] of some tokens."""
        slopes = values.astype(np.float64)
        moved = self.variances[:, None] * slopes
        groups = np.stack([((change @ moved) * moved).sum(0) for change in self.changes])
        none = np.zeros((1, slopes.shape[1]))
        return TokenBatch(slopes, self.variances @ np.square(slopes) - groups, none, none[0])

    def products(self, train: TokenBatch, query: TokenBatch) -> Float[np.ndarray, "group row column"]:
        """s_g·Z_g of two sets; their sum over groups is Cov."""
        rows, columns = (self.variances[:, None] * side.values for side in (train, query))
        each = self.covariance(train, query) - np.stack([rows.T @ (change @ columns) for change in self.changes])
        return each / len(self.changes)

    def covariance(
        self, train: TokenBatch, query: TokenBatch, product: Product = np.matmul
    ) -> Float[np.ndarray, "row column"]:
        """Cov alone, by one matrix product."""
        return product((self.variances[:, None] * train.values).T, query.values)


CovarianceModel = DrawCovariance | GaussianCovariance
"""Computes the covariance of two sets of tokens from their values."""


def batch_covariances(model: CovarianceModel, train: TokenBatch, query: TokenBatch) -> BatchCovariances:
    """Covariances of two sets of tokens in each batch."""
    return BatchCovariances(model.share, model.products(train, query), train.variance, query.variance)


def chain_mean_bias(model: CovarianceModel, train: TokenBatch, query: TokenBatch) -> ChainMeanCovariance:
    """Bias of the covariance of two sets that comes from centring draws about estimated means."""
    return ChainMeanCovariance.of_means(train.means, query.means, model.centre_scale)


def product_on(device: str) -> Product:
    """A function that multiplies NumPy matrices on a torch device.

    Raises:
        ValueError: PyTorch does not have this device.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # builds of PyTorch without CUDA raise AssertionError
        raise ValueError(
            f"device {device!r} is not available: {error}; leave `device` out to multiply on the CPU"
        ) from error

    def product(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        first, second = (torch.from_numpy(np.ascontiguousarray(each)).to(device) for each in (rows, columns))
        return (first @ second).cpu().numpy()

    return product
