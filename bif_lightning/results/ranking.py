"""The effect of each train example on many queries at once: means with standard errors, and false-discovery control.

Effects are oriented: above 0, more weight on the example lowers the observable, so of a loss it helps. With E[i, j] the
effect of example i on query j, of q queries, and e[i, j] its standard error,

    E[i] = Σ_j E[i, j]/q,   e[i] = Σ_j e[i, j]/q.

The errors of different queries come from the same draws and are far from independent. A mean of standard deviations
bounds the standard deviation of a mean for any dependence; it is reached where all errors are perfectly correlated.
Where the draws are stored, `statistics.aggregate` measures the error of the mean itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Aggregate:
    """The effect of each train example on several queries.

    Attributes:
        effect: E[i], the mean over the queries; NaN where no query has a value.
        standard_error: e[i], a bound for any dependence between the queries.
        share_hurt: share of the queries whose effect is below 0.
        count: queries that have a value.
    """

    effect: Float[np.ndarray, " train"]
    standard_error: Float[np.ndarray, " train"]
    share_hurt: Float[np.ndarray, " train"]
    count: Int[np.ndarray, " train"]


def aggregate(effects: Float[np.ndarray, "train query"], errors: Float[np.ndarray, "train query"]) -> Aggregate:
    """Average over queries; entries that are NaN are left out, and an unknown error makes that of the mean unknown.

    Args:
        effects: with the sign that helps made positive.
        errors: standard error of each.

    >>> found = aggregate(np.array([[1.0, -3.0], [2.0, np.nan]]), np.array([[0.5, 0.25], [0.5, 0.5]]))
    >>> found.effect.tolist(), found.standard_error.tolist(), found.share_hurt.tolist()
    ([-1.0, 2.0], [0.375, 0.5], [0.5, 0.0])
    """
    known = ~np.isnan(effects)
    count = known.sum(1)
    of = np.where(count > 0, count, np.nan)
    total = np.where(known, effects, 0).sum(1, dtype=np.float64)
    error = np.where(known, errors, 0).sum(1, dtype=np.float64)
    return Aggregate(total / of, error / of, (effects < 0).sum(1) / of, count)


def combine(parts: Sequence[Aggregate]) -> Aggregate:
    """The aggregate over the queries of all parts.

    >>> one, other = (aggregate(np.full((1, size), value), np.ones((1, size))) for size, value in ((3, 1.0), (1, -3.0)))
    >>> found = combine([one, other])
    >>> found.effect.tolist(), found.share_hurt.tolist()
    ([0.0], [0.25])
    """
    count = np.sum([part.count for part in parts], 0)
    total = np.where(count > 0, count, np.nan)

    def mean(name: str) -> Float[np.ndarray, " train"]:
        values = np.array([np.where(part.count > 0, getattr(part, name) * part.count, 0) for part in parts])
        return values.sum(0) / total

    return Aggregate(mean("effect"), mean("standard_error"), mean("share_hurt"), count)


def q_values(effect: Float[np.ndarray, " train"], standard_error: Float[np.ndarray, " train"]) -> np.ndarray:
    """q-values of Benjamini & Hochberg (1995): the least false-discovery rate at which an effect is told from 0.

    With p the two-sided normal p-values of effect/standard error, and m of them known,

        q_(k) = min over l >= k of m·p_(l)/l.

    Those with q <= 0.05 have at most 5 % false ones among them on average, for errors that are independent or
    positively dependent (Benjamini & Yekutieli 2001). NaN where the effect or its error is unknown; an error of 0 makes
    q 0, or 1 where the effect is 0 too.

    >>> q_values(np.array([3.0, -2.0, 0.0]), np.ones(3)).round(4).tolist()
    [0.0081, 0.0683, 1.0]
    """
    known = np.isfinite(effect) & np.isfinite(standard_error)
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.abs(effect[known]) / standard_error[known]
    p = np.array([math.erfc(each / math.sqrt(2)) for each in np.nan_to_num(size, nan=0.0).tolist()])
    order = np.argsort(-p, kind="stable")
    rank = np.arange(len(p), 0, -1)
    found = np.full(len(effect), np.nan)
    q = np.empty(len(p))
    q[order] = np.minimum.accumulate(np.minimum(p[order] * len(p) / rank, 1)) if len(p) else p
    found[known] = q
    return found
