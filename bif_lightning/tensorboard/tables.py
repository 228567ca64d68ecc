"""Tables of one snapshot for loggers that take some: the verdict, single queries, and all train examples."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bif_lightning.plots.ranking import strongest
from bif_lightning.plots.style import label_name
from bif_lightning.results.bands import is_clear
from bif_lightning.results.estimate import Estimate
from bif_lightning.results.examples import Samples
from bif_lightning.tensorboard.pairs import Pairs

MOST_ROWS = 1000
_LONGEST = 500  # characters of a text


def tables(
    estimate: Estimate, train: Samples, query: Samples, *, step: int, columns: Sequence[int], k: int = 5
) -> dict[str, pd.DataFrame]:
    """The tables, by tag. Each has the step as its first column, so that tables of several steps can be joined.

    Args:
        estimate: of the influence at one snapshot.
        train, query: who its rows and columns are.
        step: global training step of the snapshot.
        columns: positions of the queries in `bif/top`.
        k: train examples a side there.
    """
    verdict = estimate.verdict
    found = {
        "bif/verdict": pd.DataFrame([{"verdict": verdict.word, "reason": verdict.sentence, "advice": verdict.advice}]),
        "bif/top": top_examples(estimate, train, query, columns, k),
        "bif/ranking": ranking(estimate, train, query),
    }
    for table in found.values():
        table.insert(0, "step", step)
    return found


def top_examples(estimate: Estimate, train: Samples, query: Samples, columns: Sequence[int], k: int) -> pd.DataFrame:
    """The k train examples that help each of these queries most, and the k that hurt it most, by influence.

    Returns:
        Columns query, effect, rank, train, influence, influence_standard_error, correlation,
        correlation_standard_error; and query_label, train_label, text if there are any.
    """
    rows = [row for column in columns for row in _extremes(estimate, train, query, column, k)]
    names = ["query", "effect", "rank", "train", "influence", "influence_standard_error"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=names)


def _extremes(estimate: Estimate, train: Samples, query: Samples, column: int, k: int) -> Iterator[Mapping[str, Any]]:
    of = estimate.losses
    sides = zip(("helps", "hurts"), strongest(of.influence[:, column], k, -1), strict=True)
    for effect, places in sides:
        for rank, row in enumerate(places.tolist(), 1):
            at = row, column
            yield {
                "query": query.ids[column],
                **_label("query_label", query, column),
                "effect": effect,
                "rank": rank,
                "train": train.ids[row],
                **_label("train_label", train, row),
                "influence": float(of.influence[at]),
                "influence_standard_error": float(of.influence_standard_error[at]),
                "correlation": float(of.correlation[at]),
                "correlation_standard_error": float(of.correlation_standard_error[at]),
                **_text(train, row),
            }


def ranking(estimate: Estimate, train: Samples, query: Samples) -> pd.DataFrame:
    """Train examples by their mean correlation with all queries; those that help most come first.

    A query that is the train example itself does not count. Of more than 1,000 examples, the 500 at each end are kept.

    Returns:
        Columns train, mean_correlation, standard_error_at_most (the mean of the standard errors, which bounds that of
        the mean for any dependence between queries), helps and hurts (the share of queries whose correlation is beyond
        1.96 standard errors), train_loss; and train_label, text if there are any.
    """
    count, total, errors, helps, hurts = np.zeros((5, len(train)))
    for band in Pairs(estimate.losses, train, query).bands():
        known = np.isfinite(band.correlation)
        values, error = np.where(known, band.correlation, 0.0), np.where(known, band.error, 0.0)
        clear = known & is_clear(values, error)
        count[band.rows], total[band.rows] = known.sum(1), values.sum(1, dtype=np.float64)
        errors[band.rows] = error.sum(1, dtype=np.float64)
        helps[band.rows], hurts[band.rows] = (clear & (values > 0)).sum(1), (clear & (values < 0)).sum(1)
    sums = {"mean_correlation": total, "standard_error_at_most": errors, "helps": helps, "hurts": hurts}
    with np.errstate(invalid="ignore"):
        means = {name: values / count for name, values in sums.items()}  # NaN where no query counts
    order = np.argsort(-means["mean_correlation"], kind="stable")  # NaN last
    if len(order) > MOST_ROWS:
        order = order[np.isfinite(means["mean_correlation"][order])]
        order = np.concatenate([order[: MOST_ROWS // 2], order[max(len(order) - MOST_ROWS // 2, MOST_ROWS // 2) :]])
    rows = [
        {
            "train": train.ids[row],
            **_label("train_label", train, row),
            **{name: float(values[row]) for name, values in means.items()},
            "train_loss": float(estimate.train_loss[row]),
            **_text(train, row),
        }
        for row in order.tolist()
    ]
    return pd.DataFrame(rows, columns=None if rows else ["train", *means, "train_loss"])


def _label(name: str, samples: Samples, place: int) -> dict[str, str]:
    if samples.labels is None:
        return {}
    return {name: label_name(int(samples.labels[place]), samples.label_names)}


def _text(samples: Samples, place: int) -> dict[str, str]:
    return {} if samples.texts is None else {"text": samples.texts[place][:_LONGEST]}
