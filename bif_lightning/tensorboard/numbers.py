"""The numbers of one estimate that are worth a curve over training."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from bif_lightning.result import Estimate
from bif_lightning.samples import Samples

MEDIAN, LOW, HIGH = "bif/correlation_median", "bif/correlation_q05", "bif/correlation_q95"
SAME, OTHER = "bif/same_label_mean", "bif/other_label_mean"
_SIGN = "Correlation, no unit: > 0 = the train example helps the query, < 0 = it hurts."

DESCRIPTIONS = {
    "bif/llc": "Local learning coefficient, nats: inverse temperature times (mean loss over draws minus loss at w*).",
    "bif/llc_standard_error": "Monte Carlo standard error of the local learning coefficient, nats.",
    "bif/rhat": "Split R-hat of the mean train loss: near 1 = the chains agree on it. Says nothing of the influence.",
    "bif/ess": "Effective number of independent draws behind the mean train loss.",
    "bif/drift": "Second-half minus first-half mean loss of the chains, in standard errors; beyond ±2 they still move.",
    "bif/score_agreement": (
        "Median over queries of the rank correlation between the influence found by one half of the chains and by "
        "the other, -1 to 1. Monte Carlo agreement only: a bias agrees with itself."
    ),
    "bif/snapshot_loss": "Mean train loss at the snapshot, nats.",
    "bif/diverged_chains": "Chains that left the posterior and were left out.",
    "bif/seconds": "Wall time of the estimate, seconds.",
    "bif/mean_abs_correlation": "Mean over pairs of the size of the correlation: how much influence there is.",
    "bif/resolved_fraction": (
        "Share of pairs whose correlation lies outside 2 standard errors of zero, 0 to 1; by chance alone about 0.05."
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
        "bif/snapshot_loss": estimate.snapshot_loss,
        "bif/diverged_chains": float(len(estimate.divergences)),
        "bif/seconds": estimate.cost.seconds,
    }
    pairs = without_self(estimate.correlation, train, query)
    numbers.update(_spread(pairs, estimate.losses.correlation_standard_error))
    numbers.update(_by_label(pairs, train, query))
    for name, observable in estimate.observables.items():
        numbers[f"bif/observable/{name}"] = float(np.mean(observable.mean))
    return {tag: float(number) for tag, number in numbers.items() if np.isfinite(number)}


def describe(tag: str, estimate: Estimate) -> str:
    """What the number with that tag is, with its unit."""
    name = tag.removeprefix("bif/observable/")
    if name != tag:
        of = estimate.observables[name]
        return f"{name}, in {of.unit}: mean over the draws{' and over its columns' if of.mean.size > 1 else ''}."
    return DESCRIPTIONS[tag]


def without_self(
    correlation: Float[np.ndarray, "train query"], train: Samples, query: Samples
) -> Float[np.ndarray, "train query"]:
    """The matrix with NaN where a train example is the query itself, by id; the matrix itself where none is."""
    place = {id: row for row, id in enumerate(train.ids)}
    same = [(place[id], column) for column, id in enumerate(query.ids) if id in place]
    if not same:
        return correlation
    others = correlation.copy()
    others[tuple(np.transpose(same))] = np.nan
    return others


def _spread(
    pairs: Float[np.ndarray, "train query"], errors: Float[np.ndarray, "train query"]
) -> Iterator[tuple[str, float]]:
    defined = np.isfinite(pairs)
    values = pairs[defined]
    if not values.size:
        return
    yield "bif/mean_abs_correlation", float(np.abs(values).mean(dtype=np.float64))
    for tag, number in zip((MEDIAN, LOW, HIGH), np.quantile(values, (0.5, 0.05, 0.95)), strict=True):
        yield tag, float(number)
    errors = errors[defined]
    if np.isfinite(errors).any():
        yield "bif/resolved_fraction", float(np.mean(np.abs(values) > 2 * errors))


def _by_label(pairs: Float[np.ndarray, "train query"], train: Samples, query: Samples) -> Iterator[tuple[str, float]]:
    if train.labels is None or query.labels is None:
        return
    same = train.labels[:, None] == query.labels[None, :]
    usable = np.isfinite(pairs) & (train.labels >= 0)[:, None] & (query.labels >= 0)[None, :]
    for tag, chosen in ((SAME, usable & same), (OTHER, usable & ~same)):
        if chosen.any():
            yield tag, float(pairs[chosen].mean(dtype=np.float64))
