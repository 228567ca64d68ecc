"""The numbers of one estimate that are worth a curve over training."""

import math
from collections.abc import Iterator

import numpy as np

from bif_lightning.results.bands import is_clear
from bif_lightning.results.estimate import Estimate
from bif_lightning.results.examples import Samples
from bif_lightning.tensorboard.pairs import Pairs

MEDIAN, LOW, HIGH = "bif/correlation_median", "bif/correlation_q05", "bif/correlation_q95"
SAME, OTHER = "bif/same_label_mean", "bif/other_label_mean"
_SIGN = "Correlation, no unit: > 0 = the train example helps the query, < 0 = it hurts."

DESCRIPTIONS = {
    "bif/llc": "Local learning coefficient, nats: inverse temperature times (mean loss over draws minus loss at w*).",
    "bif/llc_standard_error": "Monte Carlo standard error of the local learning coefficient, nats.",
    "bif/rhat": "Split R-hat of the mean train loss: near 1 = the chains agree on it. Says nothing of the influence.",
    "bif/ess": "Effective number of independent draws behind the mean train loss.",
    "bif/drift": "Second-half minus first-half mean loss of the chains, in standard errors; beyond ±3 they still move.",
    "bif/score_agreement": (
        "Median over queries of the rank correlation between the influence found by one half of the chains (of "
        "Subspace: of the examples behind its curvature) and by the other, -1 to 1. A bias agrees with itself."
    ),
    "bif/group_agreement": (
        "The same of the plain correlation, which is how far both halves agree on random groups of train examples, -1 "
        "to 1. The verdict asks for it."
    ),
    "bif/noise_ratio": (
        "Minibatch variance of an SGLD step over its injected-noise variance, where that ratio is largest: above 1 the "
        "draws are hotter than the posterior."
    ),
    "bif/llc_ratio": (
        "LLC over half the effective dimension of the loss at w*: 1 = quadratic, below 0 = drift, far above 1 = the "
        "chains left the neighbourhood."
    ),
    "bif/control_agreement": (
        "Median over queries of the rank correlation of the influence with that of noise alone, without data, -1 to 1."
    ),
    "bif/top_stability": (
        "Median over queries of the share of their 10 most helpful and 10 most harmful train examples by half of the "
        "draws (of Subspace: of the examples behind its curvature) that the other half finds too, 0 to 1."
    ),
    "bif/snapshot_loss": "Mean train loss at the snapshot, nats.",
    "bif/diverged_chains": "Chains that left the posterior and were left out.",
    "bif/seconds": "Wall time of the estimate, seconds.",
    "bif/mean_abs_correlation": "Mean over pairs of the size of the correlation: how much influence there is.",
    "bif/resolved_fraction": (
        "Share of pairs whose correlation is more than 1.96 standard errors from zero, 0 to 1; by chance alone 0.05."
    ),
    MEDIAN: f"Median over pairs. {_SIGN}",
    LOW: f"5 % quantile over pairs. {_SIGN}",
    HIGH: f"95 % quantile over pairs. {_SIGN}",
    SAME: f"Mean over pairs of the same label. {_SIGN}",
    OTHER: f"Mean over pairs of different labels. {_SIGN}",
}


def scalars(estimate: Estimate, train: Samples, query: Samples) -> dict[str, float]:
    """Numbers worth a curve, by tag; all tags start with `bif/`, and `describe` says what each is.

    A pair of an example with itself (same id) is left out of everything taken over pairs: its correlation is 1
    by definition. A number that is undefined (R-hat of one draw, a mean over no pair) is left out of the result.
    Quantiles of more than 16 million pairs are those of evenly spaced train examples (`Pairs.sample`).

    Args:
        estimate: of the influence at one snapshot.
        train, query: who its rows and columns are.

    Raises:
        ValueError: the estimate does not fit the samples.
    """
    if estimate.correlation.shape != (len(train), len(query)):
        raise ValueError(
            f"the estimate has correlations of shape {estimate.correlation.shape}, the samples are {len(train)} "
            f"train and {len(query)} query examples; pass the samples that it was estimated on, train first"
        )
    of = estimate.diagnostics
    numbers = {
        "bif/llc": of.llc,
        "bif/llc_standard_error": of.llc_standard_error,
        "bif/rhat": of.rhat,
        "bif/ess": of.ess,
        "bif/drift": of.drift,
        "bif/score_agreement": of.score_agreement,
        "bif/group_agreement": of.group_agreement,
        "bif/noise_ratio": of.noise_ratio,
        "bif/llc_ratio": of.llc_ratio,
        "bif/control_agreement": of.control_agreement,
        "bif/top_stability": _median(estimate.top_stability),
        "bif/snapshot_loss": estimate.snapshot_loss,
        "bif/diverged_chains": float(len(estimate.divergences)),
        "bif/seconds": estimate.cost.seconds,
    }
    pairs = Pairs(estimate.losses, train, query)
    numbers.update(_spread(pairs))
    numbers.update(_by_label(pairs, train, query))
    for name, observable in estimate.observables.items():
        numbers[f"bif/observable/{name}"] = float(np.mean(observable.mean))
    return {tag: float(number) for tag, number in numbers.items() if np.isfinite(number)}


def _median(values: np.ndarray | None) -> float:
    known = np.empty(0) if values is None else values[np.isfinite(values)]
    return float(np.median(known)) if known.size else math.nan


def describe(tag: str, estimate: Estimate) -> str:
    """What the number with that tag is, with its unit."""
    name = tag.removeprefix("bif/observable/")
    if name != tag:
        of = estimate.observables[name]
        return f"{name}, in {of.unit}: mean over the draws{' and over its columns' if of.mean.size > 1 else ''}."
    return DESCRIPTIONS[tag]


def _spread(pairs: Pairs) -> Iterator[tuple[str, float]]:
    size, total, resolved, known = 0, 0.0, 0, False
    for band in pairs.bands():
        defined = np.isfinite(band.correlation)
        values, errors = np.abs(band.correlation[defined]), band.error[defined]
        size += values.size
        total += float(values.sum(dtype=np.float64))
        resolved += int(np.count_nonzero(is_clear(values, errors)))
        known = known or bool(np.isfinite(errors).any())
    if not size:
        return
    yield "bif/mean_abs_correlation", total / size
    for tag, number in zip((MEDIAN, LOW, HIGH), np.quantile(pairs.sample(), (0.5, 0.05, 0.95)), strict=True):
        yield tag, float(number)
    if known:
        yield "bif/resolved_fraction", resolved / size


def _by_label(pairs: Pairs, train: Samples, query: Samples) -> Iterator[tuple[str, float]]:
    if train.labels is None or query.labels is None:
        return
    size, total = {SAME: 0, OTHER: 0}, {SAME: 0.0, OTHER: 0.0}
    for band in pairs.bands():
        labels = train.labels[band.rows, None]
        same = labels == query.labels[None, :]
        usable = np.isfinite(band.correlation) & (labels >= 0) & (query.labels >= 0)[None, :]
        for tag, chosen in ((SAME, usable & same), (OTHER, usable & ~same)):
            values = band.correlation[chosen]
            size[tag] += values.size
            total[tag] += float(values.sum(dtype=np.float64))
    yield from ((tag, total[tag] / size[tag]) for tag in (SAME, OTHER) if size[tag])
