"""How wide an error must be, so that value ± 1.96 standard errors holds the long-run value in 95 % of entries.

The spread of K batches of draws (`influence.weighted_sum`) falls short of that in five ways, each of which is measured:

- Batches remember one another. Their squared error lacks the factor f = 1 + 2·Σ_j (1 − j/K_c)·ρ_j, with ρ_j the
  autocorrelation of batches at lag j over all entries of a sample of the matrix (positive, decreasing part: Geyer
  1992), K_c batches a chain. Where f is large, neighbouring batches are merged first, so that entries of long memory
  get their own share of it.
- Few batches: t-quantile of (K − 1)/f degrees of freedom, in units of 1.96.
- Products of two losses are skewed: 1 + 1.08·g²/N_eff, g the skewness of a product of two Gaussians of correlation R,
  N_eff the number of independent draws that the entries are worth (Hall 1988, Sec. 3; the term of the squared
  skewness in the coverage of a two-sided interval). The linearized correlation is not skewed.
- Draws are centred about the mean of their own chain, not about the long-run mean, so that a covariance lacks the
  covariance of the chain means: a bias, estimated from their spread and added in quadrature (`ChainMeanCovariance`).
- For the same reason the batches spread as if the posterior were as narrow as a chain: their products of losses are too
  small by √((1 + C_ii/s_i²)(1 + C_jj/s_j²)), with C the covariance of the chain means and s² the variances within.
  Without this an estimate that is too small by chance, or by that bias, has an error that is too small as well.
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
"""Two-sided 95 % quantile of a normal distribution: what users multiply a standard error by."""

LEAST_DRAWS = 100.0
"""Independent draws that a single chain must be worth: in fewer, nothing shows how far it could have gone. The worth is
itself estimated, and chains that overrate it are the ones that pass: at 40 their intervals held 91 %, at 100, 93 %."""

CENTRE_PARTS = 4
"""Parts of a single chain, whose means stand for those of chains."""

_MEMORY = 1.15  # squared errors short by less are mended by the factor alone
_LEAST_BATCHES = 8  # a t-quantile of fewer widens more than merging gains
_MOST_SKEWED = 2.0  # the expansion in 1/N_eff holds no further
_MOST_WIDENED = 1.3  # t of few chains widens too much, as most entries lack little: measured on two models
_SKEWNESS = 1.08  # (z⁴ + 2z² − 3)/18 at z = 1.96


@dataclass(frozen=True)
class ErrorScale:
    """What the spread of batches is multiplied by, for one kind of matrix.

    Attributes:
        factor: √f·t/1.96, of influence times the width that is lacking; NaN where the draws are too few to tell.
        draws: N_eff.
    """

    factor: float
    draws: float


@dataclass(frozen=True)
class ErrorModel:
    """How the errors of all entries are made, fitted once for a whole estimate.

    Attributes:
        parts: batches of each chain, after neighbours are merged.
        influence, correlation: scales of either.
    """

    parts: int
    influence: ErrorScale
    correlation: ErrorScale


@dataclass(frozen=True)
class ChainMeanCovariance:
    """Covariance of the means about which draws are centred: what their own covariance lacks.

    Attributes:
        covariance: of train losses and columns.
        train_variance, column_variance: of each with itself.
    """

    covariance: Float[np.ndarray, "train column"]
    train_variance: Float[np.ndarray, " train"]
    column_variance: Float[np.ndarray, " column"]

    @classmethod
    def of_means(
        cls, train: Float[np.ndarray, "mean train"], columns: Float[np.ndarray, "mean column"], scale: float
    ) -> "ChainMeanCovariance":
        """From the deviations of the means from one another, and `centre_scale`."""
        covariance = np.einsum("kt,kc->tc", train, columns)
        return cls(scale * covariance, scale * np.square(train).sum(0), scale * np.square(columns).sum(0))


def fit_error_model(parts: Moments, centring: Centring) -> ErrorModel:
    """Fit how the errors of a matrix are made, from a sample of its rows and columns.

    Args:
        parts: moments of the sample, [chain, batch].
        centring: of the draws.
    """
    chains, batches = parts.count.shape
    total = float(parts.count.sum())
    count, draws, memories = batches, products(parts, centring), list[float]()
    for count in _counts(chains, batches):
        draws = products(merge_batches(parts, count), centring)
        memories = [variance_inflation(lags(each, draws.share, chains), chains) for each in _moved(draws)]
        if max(memories) <= _MEMORY:
            break
    wide = _widened(draws, chain_mean_covariance(parts, centring)), 1.0  # a correlation has no width
    scales = [_error_scale(draws, kind, f, total, wide[kind]) for kind, f in enumerate(memories)]
    if chains == 1 and min(scale.draws for scale in scales) < LEAST_DRAWS:
        scales = [ErrorScale(math.nan, scale.draws) for scale in scales]
    return ErrorModel(count, *scales)


def _counts(chains: int, batches: int) -> list[int]:
    """Batches a chain that may be tried, from as they are to the fewest; of a single chain, the fewest."""
    if chains == 1:
        return [min(batches, _LEAST_BATCHES)]
    fewer = {-(-batches // length) for length in range(1, batches + 1)}
    return [count for count in sorted(fewer, reverse=True) if count == batches or chains * count >= _LEAST_BATCHES]


def _moved(draws: BatchCovariances) -> tuple[Float[np.ndarray, "batch train column"], ...]:
    """What each batch adds to the influence in units of both standard deviations, and to the correlation."""
    units = draws.standardized()
    return units.covariance, correlation(draws.standardized())[1]


def lags(
    terms: Float[np.ndarray, "batch train column"], share: Float[np.ndarray, " batch"], chains: int
) -> list[float]:
    """Add up δ_k·δ_{k+j} over entries and chains, for j = 0 … K_c − 1: what batches of one chain have in common.

    Args:
        terms: what each batch adds to a sum, s_k·x_k, chain after chain.
        share: s_k = n_k/N of each batch; δ_k is the deviation of s_k·x_k from its share of the sum.
        chains: how many chains the batches are of.
    """
    deviation = np.nan_to_num(terms - share[:, None, None] * terms.sum(0), nan=0.0)
    deviation = deviation.reshape(chains, -1, deviation[0].size)
    count = deviation.shape[1]
    return [float((deviation[:, : count - j] * deviation[:, j:]).sum()) for j in range(count)]


def variance_inflation(lag: Sequence[float], chains: int) -> float:
    """Find f, by which batches that remember one another make the squared error of their mean larger; at least 1.

    Deviations are from the batches' own mean, which takes f/n from each autocorrelation, n = chains·len(lag), so that
    f solves an equation; it is found by iteration.

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


def _widened(draws: BatchCovariances, lacking: ChainMeanCovariance) -> float:
    """How much wider products of losses spread about the long-run means than about those that they are centred on:
    √((1 + C_ii/s_i²)(1 + C_jj/s_j²)), the mean over examples of either side."""
    wider = 1.0
    for lack, std in zip((lacking.train_variance, lacking.column_variance), draws.stds, strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            wider *= float(np.nan_to_num(1 + lack / np.square(std), nan=1.0, posinf=1.0).mean())
    return math.sqrt(wider)


def _error_scale(draws: BatchCovariances, kind: int, f: float, total: float, wide: float) -> ErrorScale:
    """Of influence (kind 0) or correlation (1)."""
    terms = _moved(draws)[kind]
    batches = len(terms)
    if batches < 2:
        return ErrorScale(math.nan, math.nan)
    squared_error = lags(terms, draws.share, batches)[0] * batches / (batches - 1) * f
    corr = np.nan_to_num(correlation(draws.standardized())[0].value, nan=0.0)
    # Of the product of two Gaussians, and of its part that moves a correlation: their variance in one draw.
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
    """The model of so many independent batches whose values are not skewed."""
    factor = quantile(batches - 1) / NORMAL if batches > 1 else math.nan
    return ErrorModel(batches, ErrorScale(factor, math.inf), ErrorScale(factor, math.inf))


def no_bias(lacking: ChainMeanCovariance) -> ChainMeanCovariance:
    """The same shape, for a covariance that lacks nothing."""
    return ChainMeanCovariance(*(np.zeros_like(each) for each in vars(lacking).values()))


def chain_mean_covariance(parts: Moments, centring: Centring) -> ChainMeanCovariance:
    """Estimate what the covariance of the draws lacks, as they are centred about estimated means: Cov of those means.

    From the spread of the chains; in a single chain, of its quarters, whose mean has a quarter of their covariance.
    Times t/1.96, but 1.3 at most, as it is known from few means. Zero where there is nothing to tell it from.
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
    """What products of the deviations of chain means (in a single chain, of its quarters) are multiplied by."""
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
    """Make standard errors of influence.

    Args:
        spread: standard errors from the batches as they are.
        corr: the correlations.
        scale: of influence.
        bias: `ChainMeanCovariance.covariance`.
    """
    return np.hypot(spread * (skewness_factor(corr, scale.draws) * scale.factor), bias)


def correlation_bias(
    corr: Float[np.ndarray, "train column"], draws: BatchCovariances, lacking: ChainMeanCovariance
) -> Float[np.ndarray, "train column"]:
    """By how much correlations would change if the draws were centred about the long-run means, to first order:
    C_ij/(s_i·s_j) − R/2·(C_ii/s_i² + C_jj/s_j²)."""
    train, column = draws.stds
    with np.errstate(divide="ignore", invalid="ignore"):
        own = (lacking.train_variance / np.square(train))[:, None] + lacking.column_variance / np.square(column)
        return lacking.covariance / (train[:, None] * column) - 0.5 * corr * own


def correlation_error(
    spread: Float[np.ndarray, "train column"], scale: ErrorScale, bias: Float[np.ndarray, "train column"]
) -> Float[np.ndarray, "train column"]:
    """Make standard errors of correlations, from those of the batches as they are and their bias."""
    return np.hypot(spread * scale.factor, bias)
