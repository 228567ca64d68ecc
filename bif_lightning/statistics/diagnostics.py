"""Diagnostics of chains: R-hat, ESS, LLC, drift, and agreement of influence between halves of the draws."""

import math

import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from bif_lightning.config import Sampler

TOP = 10
"""Number of examples at each end of a query's ranking whose stability is measured."""

_RANKED = 8  # queries compared at a time


def split_rhat(trace: Float[Tensor, "chain draw"]) -> float:
    """Split R-hat: √(((T−1)/T·W + B/T)/W) over half-chains (Gelman et al., Bayesian Data Analysis 3, Sec. 11.4).

    W is the mean variance within half-chains of T draws, B is T times the variance of their means.
    A value of 1 means that the chains agree. NaN with fewer than 4 draws a chain or no variance.
    """
    halves = _halves(trace)
    length = halves.shape[1]
    if length < 2:
        return math.nan
    within = halves.var(1).mean()
    between = halves.mean(1).var()
    return math.nan if within == 0 else float((((length - 1) / length * within + between) / within).sqrt())


def effective_sample_size(trace: Float[Tensor, "chain draw"]) -> float:
    """ESS of the mean over split chains, by Geyer's initial monotone sequence (Vehtari et al. 2021, Sec. 3).

    It is N/τ with τ = −1 + 2·Σ_t P_t, where P_t are sums of two neighbouring autocorrelations, truncated at the first
    negative one and made monotone. NaN with fewer than 8 draws a chain or no variance.
    """
    halves = _halves(trace.double())
    count, length = halves.shape
    if length < 4 or not bool(halves.var() > 0):
        return math.nan
    autocovariance = _autocovariance(halves)
    mean_variance = float(autocovariance[:, 0].mean()) * length / (length - 1)
    total_variance = mean_variance * (length - 1) / length + (float(halves.mean(1).var()) if count > 1 else 0.0)
    rho = (1 - (mean_variance - autocovariance.mean(0)) / total_variance).tolist()
    return _ess_from_autocorrelation(rho, count, length)


def _halves(trace: Tensor) -> Tensor:
    half = trace.shape[1] // 2
    return torch.cat([trace[:, :half], trace[:, trace.shape[1] - half :]]).double()


def _autocovariance(x: Tensor) -> Tensor:
    length = x.shape[1]
    spectrum = torch.fft.rfft(x - x.mean(1, keepdim=True), n=2 * length)
    return torch.fft.irfft(spectrum * spectrum.conj(), n=2 * length)[:, :length] / length


def _ess_from_autocorrelation(rho: list[float], count: int, length: int) -> float:
    rho[0] = 1.0
    pairs, even, pair = list[float](), 0, math.inf
    while rho[even] + rho[even + 1] > 0 and even + 4 < length:
        pair = min(rho[even] + rho[even + 1], pair)
        pairs.append(pair)
        even += 2
    # One further even lag improves the estimate of antithetic chains (Vehtari et al. 2021, App. A).
    tau = -1.0 + 2.0 * sum(pairs) + max(rho[even], 0.0)
    draws = count * length
    return draws / max(tau, 1.0 / math.log10(draws))


def local_learning_coefficient(
    trace: Float[Tensor, "chain draw"], snapshot_loss: float, sampler: Sampler
) -> tuple[float, float]:
    """Estimate λ̂ = nβ·(mean loss over draws − loss at w*), and its standard error over chains (Lau et al. 2025).

    For a single chain, the standard error comes from four batches of draws.
    """
    groups = trace.mean(1) if len(trace) > 1 else torch.stack([part.mean() for part in trace[0].chunk(4)])
    error = float(groups.std()) / math.sqrt(len(groups)) if len(groups) > 1 else math.nan
    nb = sampler.inverse_temperature or 0.0
    return nb * (float(trace.mean()) - snapshot_loss), nb * error


def drift(trace: Float[Tensor, "chain draw"]) -> float:
    """Mean loss of the second half of the draws minus the first, in standard errors of that difference over chains.

    A value far from 0 means that the chains have not reached their stationary distribution. NaN with fewer than 2
    chains or 2 draws.
    """
    half = trace.shape[1] // 2
    if half < 1 or len(trace) < 2:
        return math.nan
    change = trace[:, trace.shape[1] - half :].mean(1) - trace[:, :half].mean(1)
    error = float(change.std()) / math.sqrt(len(change))
    return float(change.mean()) / error if error > 0 else math.nan


def score_agreement(one: Float[Tensor, "train query"], other: Float[Tensor, "train query"]) -> float:
    """Compute the median over queries of the Spearman correlation of two influence estimates from different draws.

    It measures Monte Carlo error only, since both estimates share any bias. Queries without scores are left out. NaN
    with fewer than 3 train examples.
    """
    return float(agreement_per_query(one, other).nanmedian())


def agreement_per_query(
    one: Float[Tensor, "train query"], other: Float[Tensor, "train query"]
) -> Float[Tensor, " query"]:
    """Compute the Spearman correlation of each column of two influence estimates; NaN below 3 train examples."""
    if one.shape[0] < 3:
        return one.new_full((one.shape[1],), math.nan, dtype=torch.float64)
    # A few queries at a time: ranking takes several times the memory of the scores.
    pairs = zip(one.split(_RANKED, 1), other.split(_RANKED, 1), strict=True)
    return torch.cat([(standard_ranks(left) * standard_ranks(right)).mean(0) for left, right in pairs])


def group_agreement(one: Float[Tensor, "train query"], other: Float[Tensor, "train query"]) -> float:
    """Compute the median over queries of corr(a, b), a and b columns of two influence estimates from different draws.

    The influence of a group is the sum over its examples. Over random groups S of any fixed size,

        corr_S(Σ_{i∈S} a_i, Σ_{i∈S} b_i) = corr(a, b).

    Therefore this is the agreement of both estimates on the effect of leaving out groups, as in the retraining test
    (`metrics.LinearDatamodelingScore`). Rank correlation (`score_agreement`), in contrast, weighs the many examples
    with almost no influence as much as the few that matter. It measures Monte Carlo error only, since both estimates
    share any bias. Queries without scores are left out. NaN with fewer than 3 train examples.
    """
    if one.shape[0] < 3:
        return math.nan
    # A few queries at a time, since their deviations are in float64.
    pairs = zip(one.split(_RANKED, 1), other.split(_RANKED, 1), strict=True)
    return float(torch.cat([_correlation(left.double(), right.double()) for left, right in pairs]).nanmedian())


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    left, right = one - one.mean(0), other - other.mean(0)
    return (left * right).sum(0) / (left.norm(dim=0) * right.norm(dim=0))


def standard_ranks(scores: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
    """Rank each column, with ties at their mean rank, and standardize; NaN if all are tied or one is NaN.

    >>> standard_ranks(torch.tensor([[5.0], [7.0], [7.0]])).flatten().mul(100).round().tolist()
    [-141.0, 71.0, 71.0]
    """
    ranks = torch.from_numpy(rankdata(scores.cpu().numpy(), axis=0)).to(scores.device)
    return (ranks - ranks.mean(0)) / ranks.std(0, correction=0)


def top_stability(
    one: Float[Tensor, "train query"], other: Float[Tensor, "train query"], k: int = TOP
) -> Float[Tensor, " query"]:
    """Find the share of each query's k most helpful and k most harmful examples that two estimates have in common.

    Two halves of the draws agree less than two full sets of draws would. k is limited to a quarter of the examples, to
    keep agreement by chance low. NaN for queries without scores, and with fewer than 4 train examples.
    """
    k = min(k, one.shape[0] // 4)
    if k < 1:
        return one.new_full((one.shape[1],), math.nan, dtype=torch.float64)
    shared = torch.zeros(one.shape[1], dtype=torch.float64, device="cpu")
    for sign in (1, -1):
        left, right = ((sign * scores).topk(k, 0).indices for scores in (one, other))
        inside = torch.zeros(one.shape, dtype=torch.bool, device="cpu").scatter_(0, left, value=True)
        shared += inside.gather(0, right).sum(0) / (2 * k)
    varies = (one.std(0) > 0) & (other.std(0) > 0)
    return shared.where(varies, math.nan)
