"""All train examples by their mean effect on many queries: at one step, or over the whole training.

Values are effects: above 0, the train example helps. They are those of `bif_lightning.ranking`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int

from bif_lightning.archive.read.drawn import draws_behind
from bif_lightning.archive.read.parts import read_parts
from bif_lightning.archive.schema import DUMP, LOSS
from bif_lightning.results.integrated import deviations
from bif_lightning.results.ranking import Aggregate, aggregate, combine, q_values
from bif_lightning.statistics.aggregate import mean_error
from bif_lightning.tensorboard.plugin.answers import Answer, RefusedError, as_numbers
from bif_lightning.tensorboard.plugin.matrix import WHOLE_CELLS, Matrix, cells, matrix_of, shape_of
from bif_lightning.tensorboard.plugin.over_training import columns_over_training
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.run_files import RunFiles

COLUMNS = ("effect", "standard_error", "q_value", "share_hurt", "loss")
"""Of the answer, one after the other, each of all train examples."""

_BAND_CELLS = 1 << 22
_MOST_DRAWS = 1 << 28  # bytes of traces that are read for the errors of one answer
_BOUND = "± is the mean of the queries' standard errors, a bound for any dependence between them"
_DRAWN = "± is the standard error of the mean, measured from the stored draws"


def ranking(files: RunFiles, parameters: Parameters) -> Answer:
    """Effect, standard error, q-value, share of queries hurt and loss of every train example, float32 one by one.

    Args:
        files: the run.
        parameters: step; matrix; over, "training" or "step"; queries, a mask of their positions, all by default.
    """
    step, matrix = files.step(parameters), matrix_of(parameters)
    shape = shape_of(files, step, matrix)
    queries = parameters.mask("queries", shape[1])
    whole = parameters.choice("over", ("step", "training"), "step") == "training"
    found, about = _ranked(files, step, matrix, queries, whole=whole)
    if len(found.effect) != shape[0]:
        raise RefusedError(404, f"The dump of step {step} has other train examples than the last one.")
    loss = read_parts(files.dump(step), DUMP, names=("train_loss",)).values.get("train_loss", np.full(shape[0], np.nan))
    q = q_values(found.effect, found.standard_error)
    columns = (found.effect, found.standard_error, q, found.share_hurt, np.asarray(loss))
    about |= {"queries": len(queries), "of_queries": shape[1]}
    return as_numbers({"X-About": json.dumps(about)}, *(each.astype(np.float32) for each in columns))


def _ranked(
    files: RunFiles, step: int, matrix: Matrix, queries: Int[np.ndarray, " query"], *, whole: bool
) -> tuple[Aggregate, dict[str, Any]]:
    """Over the training, or at the step; also at the step where the sums would take too long, with the reason."""
    if not whole:
        return _at_step(files, step, matrix, queries)
    try:
        return _over_training(files, matrix, queries)
    except RefusedError as refusal:
        if refusal.status != 503:
            raise
        found, about = _at_step(files, step, Matrix("influence"), queries)
        return found, about | {"why": str(refusal)}


def ranking_at(files: RunFiles, parameters: Parameters) -> Answer:
    """The mean effect of every train example at one step; over the training, on the scale of each query there."""
    step, matrix = files.step(parameters), matrix_of(parameters)
    shape = shape_of(files, step, matrix)
    queries = parameters.mask("queries", shape[1])
    whole = parameters.choice("over", ("step", "training"), "step") == "training"
    matrix = Matrix("influence") if whole else matrix
    parts: list[Aggregate] = []
    for band in _bands(shape, queries):
        values = cells(files, step, matrix.name, None, band)
        if whole:
            scale = deviations(values)
            values = values[:, scale > 0] / scale[scale > 0]
        if values.shape[1]:
            parts.append(aggregate(matrix.effect(values), np.zeros_like(values)))
    effect = combine(parts).effect if parts else np.full(shape[0], np.nan)
    return as_numbers({}, effect.astype(np.float32))


def _bands(shape: tuple[int, int], queries: Int[np.ndarray, " query"]) -> Iterator[Int[np.ndarray, " query"] | None]:
    """Some columns at a time; None for all, which are then kept for the next answer."""
    if len(queries) == shape[1] and shape[0] * shape[1] <= WHOLE_CELLS:
        yield None
        return
    width = max(1, _BAND_CELLS // max(shape[0], 1))
    for start in range(0, len(queries), width):
        yield queries[start : start + width]


def _at_step(
    files: RunFiles, step: int, matrix: Matrix, queries: Int[np.ndarray, " query"]
) -> tuple[Aggregate, dict[str, Any]]:
    shape = shape_of(files, step, matrix)
    parts: list[Aggregate] = []
    for band in _bands(shape, queries):
        values, errors = (cells(files, step, name, None, band) for name in (matrix.name, matrix.error))
        parts.append(aggregate(matrix.effect(values), errors))
    found, error = combine(parts), _BOUND
    if matrix.quantity in ("influence", "correlation"):
        by = "influence" if matrix.quantity == "influence" else "correlation"
        rows = np.arange(shape[0])
        draws = draws_behind(files.dump(step), matrix.observable or LOSS, rows, queries, most=_MOST_DRAWS)
        if draws is not None:
            found, error = replace(found, standard_error=mean_error(draws, by)), _DRAWN
    return found, {"over": "step", "steps": [step], "error": error, "measured": error is _DRAWN}


def _over_training(
    files: RunFiles, matrix: Matrix, queries: Int[np.ndarray, " query"]
) -> tuple[Aggregate, dict[str, Any]]:
    if matrix.observable:
        raise RefusedError(404, "A ranking over the whole training is of the losses of queries.")
    parts: list[Aggregate] = []
    steps: list[int] = []
    train = shape_of(files, files.steps[-1], Matrix("influence"))[0]
    width = max(1, _BAND_CELLS // max(train, 1))
    for start in range(0, len(queries), width):
        whole = columns_over_training(files, queries[start : start + width], len(queries))
        steps, known = whole.steps, whole.counts > 0
        if known.any():
            parts.append(aggregate(-whole.influence[:, known], whole.standard_error[:, known]))
    if not parts:
        raise RefusedError(404, "Undefined: no column of these queries varies over the train examples at any step.")
    about: Mapping[str, Any] = {"over": "training", "steps": steps, "error": f"{_BOUND} and between snapshots"}
    return combine(parts), {**about, "measured": False}
