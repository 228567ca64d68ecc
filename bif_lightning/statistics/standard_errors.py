"""How wide an error must be, so that value ± 1.96 standard errors holds the long-run value in 95 % of entries.

The spread of K batches of draws (`influence.weighted_mean`) is short of that in five ways, each of which is measured:

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

import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.config import Centring
from bif_lightning.statistics.influence import BatchCovariances, correlation, mean, products
from bif_lightning.statistics.moments import Moments, merge

NORMAL = 1.959963984540054
"""Two-sided 95 % quantile of a normal distribution: what users multiply a standard error by."""

LEAST_DRAWS = 100.0
"""Independent draws that a single chain must be worth: in fewer, nothing shows how far it could have gone. The worth is
itself estimated, and chains that overrate it are the ones that pass: at 40 their intervals held 91 %, at 100, 93 %."""

_MEMORY = 1.15  # squared errors short by less are mended by the factor alone
_LEAST_BATCHES = 8  # a t-quantile of fewer widens more than merging gains
_CENTRE_PARTS = 4  # of a single chain, whose means stand for those of chains
_MOST_SKEWED = 2.0  # the expansion in 1/N_eff holds no further
_MOST_WIDENED = 1.3  # t of few chains widens too much, as most entries lack little: measured on two models
_SKEWNESS = 1.08  # (z⁴ + 2z² − 3)/18 at z = 1.96


@dataclass(frozen=True)
class ErrorScale:
    """What a spread of batches is to be multiplied by, of one kind of matrix.

    Attributes:
        factor: √f·t/1.96, of influence times the width that is lacking; NaN where the draws are too few to tell.
        draws: N_eff.
    """

    factor: float
    draws: float


@dataclass(frozen=True)
class ErrorModel:
    """How the errors of all entries are made, settled once for a whole estimate.

    Attributes:
        parts: batches of each chain, after neighbours are merged.
        influence, correlation: of either.
    """

    parts: int
    influence: ErrorScale
    correlation: ErrorScale


@dataclass(frozen=True)
class ChainMeanCovariance:
    """Covariance of the means about which draws are centred: what their covariance lacks.

    Attributes:
        covariance: of train losses and columns.
        train_variance, column_variance: the same of each with itself.
    """

    covariance: Float[Tensor, "train column"]
    train_variance: Float[Tensor, " train"]
    column_variance: Float[Tensor, " column"]


def fit_error_model(parts: Moments, centring: Centring) -> ErrorModel:
    """How to make the errors of a matrix, from a sample of its rows and columns.

    Args:
        parts: moments of the sample, [chain, batch].
        centring: of the draws.
    """
    chains, batches = parts.count.shape
    total = float(parts.count.sum())
    count, draws, memories = batches, products(parts, centring), list[float]()
    for count in _counts(chains, batches):
        draws = products(merge_batches(parts, count), centring)
        memories = _memories(draws, chains, count)
        if max(memories) <= _MEMORY:
            break
    wide = _widened(draws, chain_mean_covariance(parts, centring)), 1.0  # a correlation has no width
    reaches = [_reach(draws, kind, f, total, wide[kind]) for kind, f in enumerate(memories)]
    if chains == 1 and min(reach.draws for reach in reaches) < LEAST_DRAWS:
        reaches = [ErrorScale(math.nan, reach.draws) for reach in reaches]
    return ErrorModel(count, *reaches)


def _counts(chains: int, batches: int) -> list[int]:
    """Batches a chain that may be tried, from as they are to the fewest; of a single chain, the fewest."""
    if chains == 1:
        return [min(batches, _LEAST_BATCHES)]
    fewer = {-(-batches // length) for length in range(1, batches + 1)}
    return [count for count in sorted(fewer, reverse=True) if count == batches or chains * count >= _LEAST_BATCHES]


def _moved(draws: BatchCovariances) -> tuple[Tensor, Tensor]:
    """Contributions of each batch to the influence in units of both standard deviations, and to the correlation."""
    train, column = (mean(each, draws.share).sqrt() for each in (draws.train_variance, draws.column_variance))
    return draws.covariance / (train[:, None] * column), correlation(draws)[1]


def _memories(draws: BatchCovariances, chains: int, count: int) -> list[float]:
    return [variance_inflation(lags(each, draws.share, chains), chains) for each in _moved(draws)]


def lags(moved: Float[Tensor, "batch train column"], share: Float[Tensor, " batch"], chains: int) -> list[float]:
    """Σ over entries and chains of δ_k·δ_{k+j}, for j = 0 … K_c − 1: what batches of one chain have in common.

    Args:
        moved: a mean's contributions, batch by batch, chain after chain.
        share: n_k/N of each batch; δ_k is the deviation of batch k from the mean, times its share.
        chains: how many chains the batches are of.
    """
    deviation = (moved - mean(moved, share)).mul_(share[:, None, None]).nan_to_num_(nan=0.0).unflatten(0, (chains, -1))
    count = deviation.shape[1]
    return [float((deviation[:, : count - j] * deviation[:, j:]).sum()) for j in range(count)]


def variance_inflation(lag: Sequence[float], chains: int) -> float:
    """f: by how much batches that remember one another make the squared error of their mean larger; at least 1.

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


def _widened(draws: BatchCovariances, lacking: "ChainMeanCovariance") -> float:
    """How much wider products of losses spread about the long-run means than about those that they are centred on:
    √((1 + C_ii/s_i²)(1 + C_jj/s_j²)), the mean over examples of either side."""
    wider = [
        float((1 + lack / mean(variance, draws.share)).nan_to_num(nan=1.0, posinf=1.0).mean())
        for lack, variance in (
            (lacking.train_variance, draws.train_variance),
            (lacking.column_variance, draws.column_variance),
        )
    ]
    return math.sqrt(wider[0] * wider[1])


def _reach(draws: BatchCovariances, kind: int, f: float, total: float, wide: float) -> ErrorScale:
    """Of influence (kind 0) or correlation (1)."""
    moved = _moved(draws)[kind]
    batches = len(moved)
    if batches < 2:
        return ErrorScale(math.nan, math.nan)
    squared_error = lags(moved, draws.share, batches)[0] * batches / (batches - 1) * f
    corr = correlation(draws)[0].value.nan_to_num(nan=0.0)
    # Of the product of two Gaussians, and of its part that moves a correlation: their variance in one draw.
    single = float((1 + corr.square() if kind == 0 else (1 - corr.square()).square()).sum())
    worth = min(single / squared_error, total) if squared_error > 0 else total
    return ErrorScale(wide * math.sqrt(f) * quantile(max((batches - 1) / f, 1.0)) / NORMAL, worth)


def quantile(degrees: float) -> float:
    """97.5 % quantile of Student's t by Fisher's expansion: within 1 % from 2 degrees of freedom on, 11 % short at 1.

    >>> [round(quantile(each), 2) for each in (3, 10, 1e9)]
    [3.18, 2.23, 1.96]
    """
    z, v = NORMAL, degrees
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def skewness_factor(corr: Float[Tensor, "*entry"], draws: float) -> Float[Tensor, "*entry"]:
    """1 + 1.08·g²/N_eff, at most 2, with g = (2R³ + 6R)/(1 + R²)^{3/2}; undefined correlations count as 0."""
    square = corr.nan_to_num(nan=0.0).square()
    excess = square * (2 * square + 6).square() / (1 + square) ** 3
    return (1 + _SKEWNESS / draws * excess).clamp_(max=_MOST_SKEWED)


def independent(batches: int) -> ErrorModel:
    """Of so many independent batches whose values are not skewed."""
    factor = quantile(batches - 1) / NORMAL if batches > 1 else math.nan
    return ErrorModel(batches, ErrorScale(factor, math.inf), ErrorScale(factor, math.inf))


def no_bias(lacking: "ChainMeanCovariance") -> "ChainMeanCovariance":
    """The same shape, of a covariance that lacks nothing."""
    return ChainMeanCovariance(*(torch.zeros_like(each) for each in vars(lacking).values()))


def chain_mean_covariance(parts: Moments, centring: Centring) -> ChainMeanCovariance:
    """What the covariance of the draws lacks, since they are centred about means of their own: Cov of those means.

    From the spread of the chains; in a single chain, of its quarters, whose mean has a quarter of their covariance.
    Times t/1.96, but 1.3 at most, as it is known from few means. Zero where there is nothing to tell it from.
    """
    chains, batches = parts.count.shape
    single = chains == 1
    means = merge_batches(parts, min(_CENTRE_PARTS, batches)) if single else merge(parts)
    train, columns = (each.reshape(-1, each.shape[-1]) for each in (means.train_mean, means.column_mean))
    train, columns = train - train.mean(0), columns - columns.mean(0)
    scale = centre_scale(chains, batches, centring)
    return ChainMeanCovariance(
        scale * (train.mT @ columns), scale * train.square().sum(0), scale * columns.square().sum(0)
    )


def centre_scale(chains: int, batches: int, centring: Centring) -> float:
    """What products of the deviations of chain means (of a single chain, of its quarters) are multiplied by."""
    means = min(_CENTRE_PARTS, batches) if chains == 1 else chains
    degrees = max(means - 1, 1)
    scale = min(quantile(degrees) / NORMAL, _MOST_WIDENED) / degrees
    return scale / means if chains == 1 or centring == "pooled" else scale


def influence_error(
    spread: Float[Tensor, "train column"],
    corr: Float[Tensor, "train column"],
    reach: ErrorScale,
    lacking: Float[Tensor, "train column"],
) -> Float[Tensor, "train column"]:
    """Standard errors of influence.

    Args:
        spread: standard errors from the batches as they are.
        corr: the correlations.
        reach: of influence.
        lacking: `ChainMeanCovariance.covariance`.
    """
    return torch.hypot(spread * skewness_factor(corr, reach.draws).mul_(reach.factor), lacking)


def correlation_bias(
    corr: Float[Tensor, "train column"], draws: BatchCovariances, lacking: ChainMeanCovariance
) -> Float[Tensor, "train column"]:
    """By how much correlations would change if the draws were centred about the long-run means, to first order:
    C_ij/(s_i·s_j) − R/2·(C_ii/s_i² + C_jj/s_j²)."""
    train, column = (mean(each, draws.share) for each in (draws.train_variance, draws.column_variance))
    own = (lacking.train_variance / train)[:, None] + lacking.column_variance / column
    return lacking.covariance / (train.sqrt()[:, None] * column.sqrt()) - 0.5 * corr * own


def correlation_error(
    spread: Float[Tensor, "train column"], reach: ErrorScale, bias: Float[Tensor, "train column"]
) -> Float[Tensor, "train column"]:
    """Standard errors of correlations, from those of the batches as they are and their bias."""
    return torch.hypot(spread * reach.factor, bias)


def merge_batches(parts: Moments, count: int) -> Moments:
    """Neighbouring batches [chain, batch] merged into `count` a chain, as equal in number as can be."""
    batches = parts.count.shape[1]
    if count == batches:
        return parts
    groups = [merge(_take(parts, chunk)) for chunk in torch.arange(batches).tensor_split(count)]
    return Moments(*(torch.stack(field, 1) for field in zip(*(vars(group).values() for group in groups), strict=True)))


def _take(parts: Moments, chunk: Tensor) -> Moments:
    return Moments(*(field[:, chunk] for field in vars(parts).values()))
