"""One snapshot's estimate in TensorBoard's own tabs: curves, bands, pictures, tables. No plugin is needed."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from bif_lightning.results.bands import CLEAR
from bif_lightning.results.estimate import CORRELATION_SIGN, Estimate
from bif_lightning.results.examples import Samples
from bif_lightning.tensorboard.numbers import HIGH, LOW, MEDIAN, OTHER, SAME, describe
from bif_lightning.tensorboard.numbers import scalars as scalars
from bif_lightning.tensorboard.pairs import Pairs
from bif_lightning.tensorboard.pictures import Picture, pictures
from bif_lightning.tensorboard.records import Record, histogram, markdown, picture, scalar, tag_part, write
from bif_lightning.tensorboard.texts import EFFECT_SIGN, read_me, top_table, verdict_text

View = Literal["scalars", "bands", "heatmap", "labels", "chains", "tables", "histograms", "cards", "trajectories"]
VIEWS: tuple[View, ...] = get_args(View)
MAX_PAIRS = 50
MAX_TAGS = 200
QUERIES = 8
"""Queries with a table, where nothing else is said."""

_LIMITS = np.linspace(-1.0, 1.0, 201)


@dataclass(frozen=True)
class _Snapshot:
    estimate: Estimate
    train: Samples
    query: Samples
    columns: tuple[int, ...]
    k: int


def check_summaries(
    views: Sequence[str] = VIEWS, pairs: Sequence[tuple[str, str]] = (), queries: int = QUERIES, k: int = 5
) -> None:
    """Refuse settings that `write_summaries` cannot honour, before any training is spent.

    Raises:
        ValueError: an unknown view, more than 50 pairs, `queries` below 0 or `k` below 1.
    """
    unknown = [view for view in views if view not in VIEWS]
    if unknown:
        raise ValueError(f"unknown view {unknown[0]!r}; the views are {', '.join(VIEWS)}")
    if len(pairs) > MAX_PAIRS:
        raise ValueError(
            f"{len(pairs)} named pairs; TensorBoard gets slow with many curves, so name at most {MAX_PAIRS} "
            "(the HDF5 dump holds every pair)"
        )
    if queries < 0 or k < 1:
        raise ValueError(f"queries is {queries} and k is {k}; queries must be 0 or above, k 1 or above")


def write_summaries(
    writer: SummaryWriter,
    estimate: Estimate,
    *,
    step: int,
    train: Samples,
    query: Samples,
    pairs: Sequence[tuple[str, str]] = (),
    queries: int = QUERIES,
    k: int = 5,
    views: Sequence[str] = VIEWS,
    drawn: Sequence[Picture] | None = None,
    introduce: bool = True,
) -> None:
    """Write one snapshot's estimate for TensorBoard, as one event, and flush it.

    Either everything is written or, on an error, nothing.

    Args:
        writer: where to; `TensorBoardLogger.experiment` is one.
        estimate: of the influence at one snapshot.
        step: global training step of the snapshot.
        train, query: who its rows and columns are.
        pairs: up to 50 (train id, query id) to follow as curves of their own.
        queries: queries with a table at most (the first three have cards too); taken in turn from each label, the
            same at every step.
        k: train examples a side in tables and cards.
        views: which of `VIEWS` to write.
        drawn: the pictures, if they are drawn already.
        introduce: also write the introduction `bif/read_me` and the layout of Custom Scalars: wanted at the
            first snapshot of an event file, harmless at others.

    Raises:
        ValueError: see `check_summaries`; an estimate that does not fit the samples; or more than 200 tags.
        KeyError: a pair with an unknown id.
    """
    check_summaries(views, pairs, queries, k)
    curves = [scalar(*each) for each in numbers(estimate, train, query, views=views, pairs=pairs)]
    of = _Snapshot(estimate, train, query, choose_queries(query, queries), k)
    _check_budget(len(curves) + sum(_tags_of(view, of) for view in set(views)) + 2 * introduce)
    if drawn is None:
        drawn = list(pictures(estimate, train, query, views=views, columns=of.columns, k=k))
    values = [*curves, *(picture(each.tag, each.figure, each.words) for each in drawn)]
    if "tables" in views:
        values += _tables(of)
    if "histograms" in views:
        values += _histogram(of)
    if introduce:
        values.append(markdown("bif/read_me", read_me(estimate.sampler), "What the bif views are."))
        if "bands" in views:
            writer.add_custom_scalars(layout(pairs, by_label=train.labels is not None and query.labels is not None))
    write(writer, values, step)


def choose_queries(query: Samples, count: int) -> tuple[int, ...]:
    """Up to `count` positions on the query axis: the first of each label, then the second of each, and so on."""
    if query.labels is None:
        return tuple(range(min(count, len(query))))
    seen: dict[int, int] = {}
    turns: list[tuple[int, int, int]] = []
    for place, label in enumerate(query.labels.tolist()):
        seen[label] = seen.get(label, 0) + 1
        turns.append((seen[label], label, place))
    return tuple(place for _, _, place in sorted(turns)[:count])


def _known(samples: Samples, side: str, id: str) -> str:
    if id in samples.ids:
        return id
    close = difflib.get_close_matches(id, samples.ids, 3)
    hint = f"; close to it: {', '.join(map(repr, close))}" if close else f"; the first is {samples.ids[0]!r}"
    raise KeyError(f"no {side} example has the id {id!r}{hint}; pairs are (train id, query id)")


def _tags_of(view: str, of: _Snapshot) -> int:
    """Tags that a view makes at most, apart from curves."""
    each = {"scalars": 0, "bands": 0, "tables": len(of.columns) + 1, "cards": len(of.columns)}
    return each.get(view, 1)


def _check_budget(tags: int) -> None:
    if tags > MAX_TAGS:
        raise ValueError(
            f"these settings make {tags} tags, more than {MAX_TAGS}, and TensorBoard would get slow; "
            "name fewer pairs (3 tags each with bands), lower `queries` (2 tags each) or leave out some views"
        )


def layout(pairs: Sequence[tuple[str, str]], *, by_label: bool) -> dict[str, dict[str, list[str | list[str]]]]:
    """Charts of the Custom Scalars tab: bands over all pairs, means by label, a band for each named pair."""
    all_pairs: dict[str, list[str | list[str]]] = {"all pairs: median, 5 % to 95 %": ["Margin", [MEDIAN, LOW, HIGH]]}
    if by_label:
        all_pairs["mean: same label, other labels"] = ["Multiline", [SAME, OTHER]]
    charts = {"bif: correlation, > 0 helps, < 0 hurts": all_pairs}
    if pairs:
        charts["bif: correlation of named pairs ± 1.96 standard errors, > 0 helps, < 0 hurts"] = {
            f"{tag_part(one)} on {tag_part(other)}": ["Margin", list(_pair_tags(one, other))] for one, other in pairs
        }
    return charts


def _pair_tags(one: str, other: str) -> tuple[str, str, str]:
    stem = f"bif/pair/{tag_part(one)} on {tag_part(other)}"
    return stem, f"{stem}/low", f"{stem}/high"


def numbers(
    estimate: Estimate,
    train: Samples,
    query: Samples,
    *,
    views: Sequence[str] = VIEWS,
    pairs: Sequence[tuple[str, str]] = (),
) -> Iterator[tuple[str, float, str]]:
    """The numbers that every logger gets, as (tag, value, description): those of `scalars`, and the named pairs.

    Args:
        estimate, train, query, pairs: as for `write_summaries`.
        views: "scalars" and "bands" have numbers; "bands" alone has fewer.

    Raises:
        ValueError: the estimate does not fit the samples.
        KeyError: a pair with an unknown id.
    """
    found = [(_known(train, "train", one), _known(query, "query", other)) for one, other in pairs]
    bands = (MEDIAN, LOW, HIGH, SAME, OTHER) if "bands" in views else ()
    for tag, number in scalars(estimate, train, query).items():
        if "scalars" in views or tag in bands:
            yield tag, number, describe(tag, estimate)
    if bands or "scalars" in views:
        for one, other in found:
            place = train.ids.index(one), query.ids.index(other)
            yield from _of_pair(estimate, one, other, place, banded=bool(bands))


def _of_pair(
    estimate: Estimate, one: str, other: str, place: tuple[int, int], *, banded: bool
) -> Iterator[tuple[str, float, str]]:
    losses = estimate.losses
    value, error = float(losses.correlation[place]), float(losses.correlation_standard_error[place])
    points = (value, value - CLEAR * error, value + CLEAR * error)
    words = ("", " minus 1.96 standard errors", " plus 1.96 standard errors")
    for tag, point, word in zip(_pair_tags(one, other), points, words, strict=True):
        if np.isfinite(point) and (banded or not word):
            yield tag, point, f"Train example {one} on query {other}{word}. {CORRELATION_SIGN}"


def _histogram(of: _Snapshot) -> Iterator[Record]:
    pairs = Pairs(of.estimate.losses, of.train, of.query)
    if any(values.size for values in pairs.defined()):
        yield histogram("bif/correlations", pairs.defined(), _LIMITS, f"All pairs. {CORRELATION_SIGN}")


def _tables(of: _Snapshot) -> Iterator[Record]:
    yield markdown("bif/verdict", verdict_text(of.estimate), "Whether this snapshot can be trusted, and why.")
    for column in of.columns:
        text = top_table(of.estimate, column, of.train, of.query, of.k)
        yield markdown(f"bif/top_table/{tag_part(of.query.ids[column])}", text, EFFECT_SIGN)
