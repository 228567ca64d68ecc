"""Checks of an estimate before it is written."""

import re
from collections.abc import Iterator

import numpy as np

from bif_lightning.archive.examples_file import check_samples
from bif_lightning.archive.schema import LOSS
from bif_lightning.results.estimate import Estimate, Influence
from bif_lightning.results.examples import Samples
from bif_lightning.results.tokens import Tokens

_TAKEN = (LOSS, "label")
_NAME = re.compile(r"[^\W\d][\w.\- ]*")

Expected = Iterator[tuple[str, np.ndarray, tuple[int, ...]]]


def check_estimate(estimate: Estimate, train: Samples, query: Samples) -> None:
    """Check that an estimate makes a valid dump.

    Raises:
        ValueError: the samples do not match the estimate, an array has a wrong shape, a matrix holds only NaN, or the
            name of an observable cannot be the name of a dataset.
    """
    check_samples(train, "train")
    check_samples(query, "query")
    shape = estimate.influence.shape
    if shape != (len(train), len(query)):
        raise ValueError(
            f"the estimate has {shape[0]} train x {shape[1]} query examples, but the samples describe {len(train)} x "
            f"{len(query)}; pass the samples of this estimate"
        )
    for name in estimate.observables:
        if name in _TAKEN or not _NAME.fullmatch(name):
            raise ValueError(
                f"an observable is called {name!r}; use letters, digits, _, -, . and spaces, start with a letter, and "
                f"avoid the reserved names {', '.join(_TAKEN)}"
            )
    for name, array, expected in _arrays(estimate):
        if array.shape != expected:
            raise ValueError(f"{name} has shape {array.shape}; to match the rest of the estimate it must be {expected}")
    _check_not_nan("influence", estimate.influence)
    _check_not_nan("correlation", estimate.correlation)
    for name, influence in estimate.observables.items():
        # The correlation of an observable that is the same at every draw is NaN.
        _check_not_nan(f"the influence of the observable {name}", influence.influence)


def _check_not_nan(name: str, matrix: np.ndarray) -> None:
    # Row by row, so that the first number ends the search.
    if all(np.isnan(row).all() for row in matrix):
        raise ValueError(
            f"{name} is NaN in all {matrix.shape[0]} x {matrix.shape[1]} entries, so that there is no result to write. "
            "Look at the divergences and loss traces of the estimate; a smaller step_size usually helps"
        )


def _arrays(estimate: Estimate) -> Expected:
    train, query = estimate.influence.shape
    chains = len(estimate.chain_ids)
    draws = estimate.loss_trace.shape[-1]
    yield "train_loss", estimate.train_loss, (train,)
    yield "train_std", estimate.train_std, (train,)
    yield "loss_trace", estimate.loss_trace, (chains, draws)
    yield "distance_trace", estimate.distance_trace, (chains, draws)
    if estimate.top_stability is not None:
        yield "top_stability", estimate.top_stability, (query,)
    widths = {LOSS: query}
    for name, influence in estimate.observables.items():
        widths[name] = query if influence.columns is None else len(influence.columns)
        yield from _matrices(name, influence, train, widths[name])
    yield from _matrices("losses", estimate.losses, train, query)
    if estimate.traces is not None:
        yield "traces.train", estimate.traces.train, (chains, draws, train)
        for name, values in estimate.traces.columns.items():
            yield f"traces.columns[{name!r}]", values, (chains, draws, widths[name])
    if estimate.tokens is not None:
        yield from _tokens(estimate.tokens, train, query)
    means = estimate.label_means
    if means is not None:
        block = (len(means.train_labels), len(means.query_labels))
        for part in ("influence", "correlation"):
            yield f"label_means.{part}", getattr(means, part), block
            yield f"label_means.{part}_standard_error", getattr(means, f"{part}_standard_error"), block


def _tokens(tokens: Tokens, train: int, query: int) -> Expected:
    for side, axis, size in (("train", tokens.train, train), ("query", tokens.query, query)):
        yield f"sequences of tokens.{side}", np.empty(axis.num_sequences), (size,)
        for name in ("position", "snapshot_loss", "loss", "std"):
            yield f"tokens.{side}.{name}", getattr(axis, name), (len(axis),)


def _matrices(name: str, influence: Influence, train: int, width: int) -> Expected:
    for part in ("influence", "correlation"):
        yield f"{name}.{part}", getattr(influence, part), (train, width)
        yield f"{name}.{part}_standard_error", getattr(influence, f"{part}_standard_error"), (train, width)
    for part in ("conditioned", "influence_draws"):
        for matrix in (part, f"{part}_standard_error"):
            if (values := getattr(influence, matrix)) is not None:
                yield f"{name}.{matrix}", values, (train, width)
    yield f"{name}.mean", influence.mean, (width,)
    yield f"{name}.std", influence.std, (width,)
