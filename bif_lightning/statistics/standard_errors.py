"""Corrections of standard errors, with which value ± 1.96 standard errors covers the long-run value in 95 % of entries.

The standard error from K batches of draws (`influence.weighted_sum`) is too small for five reasons, each corrected by
measurement:

- Batches are autocorrelated. The squared error lacks the factor f = 1 + 2·Σ_j (1 − j/K_c)·ρ_j, with K_c batches a chain
  and ρ_j their autocorrelation at lag j over all entries of a sample of the matrix (the positive, decreasing part;
  Geyer 1992). If f is large, neighbouring batches are merged first, which accounts for entries with long
  autocorrelation individually.
- Batches are few. The error is multiplied by the t-quantile of (K − 1)/f degrees of freedom over 1.96.
- Products of two losses are skewed. The factor is 1 + 1.08·g²/N_eff, with g the skewness of a product of two Gaussians
  of correlation R and N_eff the effective number of independent draws (Hall 1988, Sec. 3: the squared-skewness term in
  the coverage of a two-sided interval). The linearized correlation is not skewed.
- Draws are centred about the mean of their chain, not about the long-run mean. The covariance therefore lacks the
  covariance of the chain means. This bias is estimated from the chain means and added in quadrature
  (`ChainMeanCovariance`).
- For the same reason, batches vary as if the posterior were as narrow as one chain: products of losses are too small by
  √((1 + C_ii/s_i²)(1 + C_jj/s_j²)), with C the covariance of the chain means and s² the variances within chains.
  Without this factor, an estimate that is too small also has too small an error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from jaxtyping import Float

from bif_lightning.config import Centring
from bif_lightning.statistics.influence import BatchCovariances, correlation, products
from bif_lightning.statistics.moments import Moments, merge_batches, merge_means

_LEVEL = 0.975
NORMAL = 1.959963984540054
"""Two-sided 95 % quantile of a normal distribution, by which users multiply a standard error."""

LEAST_DRAWS = 100.0
"""Fewest effective draws of a single chain for which errors are given: a shorter chain cannot show how far it would
move. The effective number is itself an estimate, and chains that overestimate it pass the threshold. Intervals covered
91 % with a threshold of 40, and 93 % with 100."""

CENTRE_PARTS = 4
"""Parts of a single chain, whose means replace chain means."""

_MEMORY = 1.15  # up to this factor f, batches are not merged
_LEAST_BATCHES = 8  # the t-quantile of fewer batches costs more than merging gains
_MOST_SKEWED = 2.0  # the expansion in 1/N_eff is not valid beyond
_MOST_WIDENED = 1.3  # the t-quantile of few chains is too wide, as the bias of most entries is small; on two models
_SKEWNESS = 1.08  # (z⁴ + 2z² − 3)/18 at z = 1.96


@dataclass(frozen=True)
class ErrorScale:
    """The factor on standard errors from batches, for influence or for correlation.

    Attributes:
        factor: √f·t/1.96, for influence also times the missing width of the posterior; NaN if there are too few draws.
        draws: N_eff.
    """

    factor: float
    draws: float


@dataclass(frozen=True)
class ErrorModel:
    """Model of the standard errors of all entries, fitted once for an estimate.

    Attributes:
        parts: batches of each chain after merging.
        influence, correlation: scale of the errors of each.
    """

    parts: int
    influence: ErrorScale
    correlation: ErrorScale


@dataclass(frozen=True)
class ChainMeanCovariance:
    """Covariance of the means about which draws are centred, which the covariance of the draws lacks.

    Attributes:
        covariance: covariance of the means of train losses and columns.
        train_variance, column_variance: variances of these means.
    """

    covariance: Float[np.ndarray, "train column"]
    train_variance: Float[np.ndarray, " train"]
    column_variance: Float[np.ndarray, " column"]

    @classmethod
    def of_means(
        cls, train: Float[np.ndarray, "mean train"], columns: Float[np.ndarray, "mean column"], scale: float
    ) -> "ChainMeanCovariance":
        """Compute it from the deviations of the means from their average, and `centre_scale`."""
        covariance = np.einsum("kt,kc->tc", train, columns)
        return cls(scale * covariance, scale * np.square(train).sum(0), scale * np.square(columns).sum(0))


def fit_error_model(parts: Moments, centring: Centring) -> ErrorModel:
    """Fit the error model of a matrix to a sample of its rows and columns.

    Args:
        parts: moments of the sample, [chain, batch].
        centring: how the draws are centred.
    """
    chains, batches = parts.count.shape
    total = float(parts.count.sum())
    count, draws, memories = batches, products(parts, centring), list[float]()
    for count in _counts(chains, batches):
        draws = products(merge_batches(parts, count), centring)
        memories = [variance_inflation(lags(each, draws.share, chains), chains) for each in _batch_terms(draws)]
        if max(memories) <= _MEMORY:
            break
    # A correlation does not depend on the width.
    wide = _width_ratio(draws, chain_mean_covariance(parts, centring)), 1.0
    scales = [_error_scale(draws, kind, f, total, wide[kind]) for kind, f in enumerate(memories)]
    if chains == 1 and min(scale.draws for scale in scales) < LEAST_DRAWS:
        scales = [ErrorScale(math.nan, scale.draws) for scale in scales]
    return ErrorModel(count, *scales)


def _counts(chains: int, batches: int) -> list[int]:
    """Numbers of batches a chain to try, from the most to the fewest; for a single chain, only the fewest."""
    if chains == 1:
        return [min(batches, _LEAST_BATCHES)]
    fewer = {-(-batches // length) for length in range(1, batches + 1)}
    return [count for count in sorted(fewer, reverse=True) if count == batches or chains * count >= _LEAST_BATCHES]


def _batch_terms(draws: BatchCovariances) -> tuple[Float[np.ndarray, "batch train column"], ...]:
    """Terms of each batch in the covariance of standardized losses, and in the correlation."""
    units = draws.standardized()
    return units.covariance, correlation(draws.standardized())[1]


def lags(
    terms: Float[np.ndarray, "batch train column"], share: Float[np.ndarray, " batch"], chains: int
) -> list[float]:
    """Autocovariances of batches: add up δ_k·δ_{k+j} over entries and chains, for j = 0 … K_c − 1.

    Args:
        terms: terms s_k·x_k of a sum over batches, chain after chain.
        share: s_k = n_k/N of each batch; δ_k is the deviation of s_k·x_k from its share of the sum.
        chains: number of chains.
    """
    deviation = np.nan_to_num(terms - share[:, None, None] * terms.sum(0), nan=0.0)
    deviation = deviation.reshape(chains, -1, deviation[0].size)
    count = deviation.shape[1]
    return [float((deviation[:, : count - j] * deviation[:, j:]).sum()) for j in range(count)]


def variance_inflation(lag: Sequence[float], chains: int) -> float:
    """Find f, the factor by which autocorrelation of batches increases the squared error of their mean; at least 1.

    Deviations from the mean of the same batches lower each autocorrelation by f/n, n = chains·len(lag). Therefore f
    solves an equation; it is found by iteration.

    >>> round(variance_inflation([1.0, 0.25], 1000), 2)
    1.5
    """
    count, f = len(lag), 1.0
    batches = chains * count
    if not lag[0] > 0:
        return 1.0
    for _ in range(20):
        lost = min(f, 0.5 * batches) / batches
        f, least = 1.0, math.inf
        for j in range(1, count):
            rest = 1 - j / count
            least = min(least, lag[j] / lag[0] / rest * (1 - lost) + lost)
            if least <= 0:
                break
            f += 2 * rest * least
    return f


def _width_ratio(draws: BatchCovariances, chain_means: ChainMeanCovariance) -> float:
    """Ratio of the widths of products of losses about the long-run means and about the chain means.

    It is √((1 + C_ii/s_i²)(1 + C_jj/s_j²)), averaged over the examples of each side.
    """
    wider = 1.0
    for lack, std in zip((chain_means.train_variance, chain_means.column_variance), draws.stds, strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            wider *= float(np.nan_to_num(1 + lack / np.square(std), nan=1.0, posinf=1.0).mean())
    return math.sqrt(wider)


def _error_scale(draws: BatchCovariances, kind: int, f: float, total: float, wide: float) -> ErrorScale:
    """Error scale of influence (kind 0) or correlation (kind 1)."""
    terms = _batch_terms(draws)[kind]
    batches = len(terms)
    if batches < 2:
        return ErrorScale(math.nan, math.nan)
    squared_error = lags(terms, draws.share, batches)[0] * batches / (batches - 1) * f
    corr = np.nan_to_num(correlation(draws.standardized())[0].value, nan=0.0)
    # Variance, in one draw, of a product of two Gaussians, or of the linearized correlation.
    single = float((1 + np.square(corr) if kind == 0 else np.square(1 - np.square(corr))).sum())
    worth = min(single / squared_error, total) if squared_error > 0 else total
    return ErrorScale(wide * math.sqrt(f) * quantile(max((batches - 1) / f, 1.0)) / NORMAL, worth)


def quantile(degrees: float) -> float:
    """Two-sided 95 % quantile of Student's t.

    >>> [round(quantile(each), 2) for each in (1, 3, 10, 1e9)]
    [12.71, 3.18, 2.23, 1.96]
    """
    return float(scipy.special.stdtrit(degrees, _LEVEL))  # scipy.stats would take a second to import


def skewness_factor(corr: Float[np.ndarray, "*entry"], draws: float) -> Float[np.ndarray, "*entry"]:
    """1 + 1.08·g²/N_eff, at most 2, with g = (2R³ + 6R)/(1 + R²)^{3/2}; undefined correlations count as 0."""
    square = np.square(np.nan_to_num(corr, nan=0.0))
    excess = square * np.square(2 * square + 6) / (1 + square) ** 3
    return np.minimum(1 + _SKEWNESS / draws * excess, _MOST_SKEWED)


def independent(batches: int) -> ErrorModel:
    """The error model of independent batches without skewness."""
    factor = quantile(batches - 1) / NORMAL if batches > 1 else math.nan
    return ErrorModel(batches, ErrorScale(factor, math.inf), ErrorScale(factor, math.inf))


def no_bias(chain_means: ChainMeanCovariance) -> ChainMeanCovariance:
    """Zeros of the same shape, for a covariance without bias."""
    return ChainMeanCovariance(*(np.zeros_like(each) for each in vars(chain_means).values()))


def chain_mean_covariance(parts: Moments, centring: Centring) -> ChainMeanCovariance:
    """Estimate the covariance of the means about which draws are centred, which the covariance of the draws lacks.

    It comes from the chain means, or for a single chain from the means of its quarters, whose average has a quarter of
    their covariance. It is multiplied by t/1.96, at most 1.3, since there are few means. Zero with a single mean.
    """
    chains, batches = parts.count.shape
    if chains == 1:
        means = merge_batches(parts, min(CENTRE_PARTS, batches))
        train, columns = means.train_mean[0], means.column_mean[0]
    else:
        _, train, columns = merge_means(parts)
    scale = centre_scale(chains, batches, centring)
    return ChainMeanCovariance.of_means(train - train.mean(0), columns - columns.mean(0), scale)


def centre_scale(chains: int, batches: int, centring: Centring) -> float:
    """Factor on products of the deviations of chain means (for a single chain, of its quarters)."""
    means = min(CENTRE_PARTS, batches) if chains == 1 else chains
    degrees = max(means - 1, 1)
    scale = min(quantile(degrees) / NORMAL, _MOST_WIDENED) / degrees
    return scale / means if chains == 1 or centring == "pooled" else scale


def influence_error(
    spread: Float[np.ndarray, "train column"],
    corr: Float[np.ndarray, "train column"],
    scale: ErrorScale,
    bias: Float[np.ndarray, "train column"],
) -> Float[np.ndarray, "train column"]:
    """Correct the standard errors of influence.

    Args:
        spread: uncorrected standard errors from batches.
        corr: correlations.
        scale: scale of the errors of influence.
        bias: `ChainMeanCovariance.covariance`.
    """
    return np.hypot(spread * (skewness_factor(corr, scale.draws) * scale.factor), bias)


def correlation_bias(
    corr: Float[np.ndarray, "train column"], draws: BatchCovariances, chain_means: ChainMeanCovariance
) -> Float[np.ndarray, "train column"]:
    """Bias of correlations from centring about chain means instead of long-run means, to first order.

    It is C_ij/(s_i·s_j) − R/2·(C_ii/s_i² + C_jj/s_j²).
    """
    train, column = draws.stds
    with np.errstate(divide="ignore", invalid="ignore"):
        own = (chain_means.train_variance / np.square(train))[:, None] + chain_means.column_variance / np.square(column)
        return chain_means.covariance / (train[:, None] * column) - 0.5 * corr * own


def correlation_error(
    spread: Float[np.ndarray, "train column"], scale: ErrorScale, bias: Float[np.ndarray, "train column"]
) -> Float[np.ndarray, "train column"]:
    """Correct the standard errors of correlations: scale those from batches, and add the bias in quadrature."""
    return np.hypot(spread * scale.factor, bias)
