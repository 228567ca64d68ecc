"""Standard error of a weighted sum of influences or correlations over queries, from the draws themselves.

Since Cov is bilinear, Σ_j w_j·Cov(l_i, φ_j) is the covariance of l_i with the one observable Σ_j w_j·φ_j. Its value in
batches of draws holds all dependence between the queries, which the errors of single entries do not.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from bif_lightning.config import Chains
from bif_lightning.statistics.batches import batch_lengths
from bif_lightning.statistics.influence import BatchCovariances, correlation, products, weighted_sum
from bif_lightning.statistics.moments import Moments, merge_batches
from bif_lightning.statistics.standard_errors import (
    ErrorModel,
    chain_mean_covariance,
    correlation_bias,
    correlation_error,
    fit_error_model,
    influence_error,
)

_SAMPLED = 64  # rows, and columns, whose draws show how long chains remember
_ENTRIES = 1 << 22  # float64 numbers of all batches of one tile


@dataclass(frozen=True)
class Draws:
    """All draws of an estimate.

    Attributes:
        train: losses of the train examples.
        columns: losses of the queries, or columns of another observable.
        chains: settings by which the draws were divided into batches, and are centred.
        paired: draws are antithetic pairs.
    """

    train: Float[np.ndarray, "chain draw train"]
    columns: Float[np.ndarray, "chain draw column"]
    chains: Chains
    paired: bool = False

    def moments(self, rows: slice = slice(None)) -> Moments:
        """Moments of some train examples with all columns, [chain, batch]."""
        ends = np.cumsum(batch_lengths(self.chains, paired=self.paired))[:-1]
        parts = zip(np.split(self.train[:, :, rows], ends, 1), np.split(self.columns, ends, 1), strict=True)
        found = [_moments(train.astype(np.float64), columns.astype(np.float64)) for train, columns in parts]
        return Moments(*(np.stack(field, 1) for field in zip(*(vars(part).values() for part in found), strict=True)))

    def sample(self) -> "Draws":
        """Evenly spaced rows and columns."""
        rows, columns = (-(-each.shape[2] // _SAMPLED) for each in (self.train, self.columns))
        return Draws(self.train[:, :, ::rows], self.columns[:, :, ::columns], self.chains, self.paired)


def _moments(train: Float[np.ndarray, "chain draw train"], columns: Float[np.ndarray, "chain draw column"]) -> Moments:
    means = train.mean(1), columns.mean(1)
    left, right = (values - mean[:, None] for values, mean in zip((train, columns), means, strict=True))
    count = np.full(len(train), float(train.shape[1]))
    return Moments(count, *means, (left**2).sum(1), (right**2).sum(1), np.einsum("ctr,ctk->crk", left, right))


def mean_error(draws: Draws, by: Literal["influence", "correlation"]) -> Float[np.ndarray, " train"]:
    """Standard error of the mean over columns of the influence, or of the correlation, of each train example.

    Args:
        draws: of the estimate, with the columns to average.
        by: the quantity.

    Returns:
        In the unit of the quantity; NaN with too few draws.

    >>> rng = np.random.default_rng(0)
    >>> loss = rng.normal(size=(4, 100, 1))  # two queries whose losses are the same
    >>> draws = Draws(rng.normal(size=(4, 100, 5)), np.repeat(loss, 2, 2), Chains(num_chains=4, num_draws=100))
    >>> bool(np.allclose(mean_error(draws, "influence"), 1 / 20, rtol=0.5))  # 400 draws: 1/√400
    True
    """
    errors = fit_error_model(draws.sample().moments(), draws.chains.centring)
    if by == "influence":
        mean = Draws(draws.train, draws.columns.mean(2, keepdims=True, dtype=np.float64), draws.chains, draws.paired)
        parts = merge_batches(mean.moments(), errors.parts)
        return _influence_error(parts, errors, mean)
    train, columns = draws.train.shape[2], draws.columns.shape[2]
    height = max(1, _ENTRIES // (len(draws.train) * errors.parts * columns))
    tiles = [slice(start, start + height) for start in range(0, train, height)]
    return np.concatenate([_correlation_error(draws.moments(rows), errors, draws) for rows in tiles])


def _influence_error(parts: Moments, errors: ErrorModel, draws: Draws) -> Float[np.ndarray, " train"]:
    batches = products(parts, draws.chains.centring)
    spread = weighted_sum(batches.covariance, batches.share).standard_error
    corr = correlation(batches.standardized())[0].value
    bias = chain_mean_covariance(parts, draws.chains.centring).covariance
    return influence_error(spread, corr, errors.influence, bias)[:, 0]


def _correlation_error(parts: Moments, errors: ErrorModel, draws: Draws) -> Float[np.ndarray, " row"]:
    """Of the mean of the correlations that are defined, of some rows."""
    parts = merge_batches(parts, errors.parts)
    batches: BatchCovariances = products(parts, draws.chains.centring)
    corr, moved = correlation(batches.standardized())
    defined = ~np.isnan(corr.value)
    count = np.where(defined.any(1), defined.sum(1), np.nan)
    terms = np.where(defined, moved, 0).sum(2, keepdims=True) / count[:, None]
    bias = correlation_bias(corr.value, batches, chain_mean_covariance(parts, draws.chains.centring))
    mean_bias = (np.where(defined, bias, 0).sum(1) / count)[:, None]
    spread = weighted_sum(terms, batches.share).standard_error
    return correlation_error(spread, errors.correlation, mean_bias)[:, 0]
