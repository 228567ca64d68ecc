"""Orders of rows and columns: by label, by clustering, by strength, by one row or column, by the user's own column.

An order belongs to the run and to one step of it (`at`), and is used at every step, so that nothing jumps while the
slider moves.
"""

from dataclasses import dataclass

import numpy as np

from bif_lightning.tensorboard.plugin.answers import Answer, RefusedError, as_numbers
from bif_lightning.tensorboard.plugin.clustering import cluster_order
from bif_lightning.tensorboard.plugin.examples import SIDES, examples_of
from bif_lightning.tensorboard.plugin.matrix import WHOLE_CELLS, Matrix, cells, matrix_of, shape_of
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.run_files import RunFiles, remembered, token

WAYS = ("dataset", "label", "cluster", "strength", "column", "user")
_BAND = 256  # a row or column of chunks


@dataclass(frozen=True)
class Order:
    """What orders one side.

    Attributes:
        by: one of WAYS.
        column: of "column" the row number of the other side, of "user" the name of the user's column.
        at: the step whose matrix orders.
    """

    by: str
    column: str
    at: int


def order_of(files: RunFiles, parameters: Parameters) -> Order:
    """The order that a request asks for: `by`, `column`, `at`; in the order of the dataset by default."""
    by = parameters.choice("by", WAYS, "dataset")
    column = parameters.text("column") if by in ("column", "user") else ""
    steps = files.steps
    return Order(by, column, parameters.number("at", 0, 10**15, steps[-1] if steps else 0))


def order(files: RunFiles, parameters: Parameters) -> Answer:
    """The permutation itself, int32: which row stands at each position."""
    side = parameters.choice("side", SIDES)
    return as_numbers({}, positions(files, matrix_of(parameters), side, order_of(files, parameters)))


def positions(files: RunFiles, matrix: Matrix, side: str, by: Order) -> np.ndarray:
    """Row numbers of one side in an order.

    Raises:
        RefusedError: 400, the side has no labels, or not that column; 404, no dump of the step that orders.
    """
    axis = SIDES.index(side)
    size = shape_of(files, by.at, matrix)[axis]
    if by.by == "dataset":
        return np.arange(size)
    path = files.dump(by.at)
    key = ("order", str(path), token(path), matrix, side, by)
    return remembered(key, lambda: _ordered(files, matrix, side, by, size), lambda made: made.nbytes)


def _ordered(files: RunFiles, matrix: Matrix, side: str, by: Order, size: int) -> np.ndarray:
    if by.by in ("label", "user"):
        return _by_description(files, matrix, side, by, size)
    if by.by == "column":
        return _by_column(files, matrix, side, by)
    values = _values(files, matrix, side, by.at)
    if by.by == "cluster":
        return cluster_order(values)
    return _by_strength(values)


def _by_strength(values: np.ndarray) -> np.ndarray:
    """Rows with the largest root mean square first."""
    known = np.nan_to_num(values)
    return np.argsort(-np.einsum("ij,ij->i", known, known), kind="stable")


def _by_column(files: RunFiles, matrix: Matrix, side: str, by: Order) -> np.ndarray:
    """Most helpful first, NaN last."""
    axis = SIDES.index(side)
    other = Parameters({"column": by.column}).rows("column", shape_of(files, by.at, matrix)[1 - axis])
    pair = (None, other) if side == "train" else (other, None)
    values = cells(files, by.at, matrix.name, *pair).ravel() * -matrix.helps
    return np.argsort(values, kind="stable")


def _by_description(files: RunFiles, matrix: Matrix, side: str, by: Order, size: int) -> np.ndarray:
    of = examples_of(files).side(side)
    if len(of) != size:
        raise RefusedError(400, f"The columns of {matrix.observable} are not {side} examples; choose another order.")
    if by.by == "label":
        if of.labels is None:
            raise RefusedError(400, f"The {side} examples have no labels; choose another order.")
        return np.lexsort((of.labels, of.labels < 0))
    column = (of.columns or {}).get(by.column)
    if column is None:
        raise RefusedError(400, f"The {side} examples have no column {by.column[:80]!r}; choose another order.")
    # NumPy sorts NaN last.
    return np.argsort(column.astype(str) if column.dtype.kind == "O" else column, kind="stable")


def _values(files: RunFiles, matrix: Matrix, side: str, at: int) -> np.ndarray:
    """The matrix with the side to be ordered as rows; of a very large one, evenly spaced bands of its columns."""
    shape = shape_of(files, at, matrix)
    if shape[0] * shape[1] <= WHOLE_CELLS:
        values = cells(files, at, matrix.name)
        return values if side == "train" else values.T
    axis = SIDES.index(side)
    bands = max(1, WHOLE_CELLS // (shape[axis] * _BAND))
    starts = np.unique(np.linspace(0, (shape[1 - axis] - 1) // _BAND, bands).astype(np.int64)) * _BAND
    chosen = (starts[:, None] + np.arange(_BAND)).ravel()
    chosen = chosen[chosen < shape[1 - axis]]
    pair = (None, chosen) if side == "train" else (chosen, None)
    values = cells(files, at, matrix.name, *pair)
    return values if side == "train" else values.T
