"""Views of a matrix: an ordered window of it, pooled to the pixels of a screen; and means by class."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bif_lightning.archive.read.parts import read_parts
from bif_lightning.archive.schema import DUMP
from bif_lightning.tensorboard.plugin.answers import Answer, RefusedError, as_json, as_numbers
from bif_lightning.tensorboard.plugin.matrix import WHOLE_CELLS, Matrix, cells, matrix_of, shape_of
from bif_lightning.tensorboard.plugin.orders import order_of, positions
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.pooling import pooled
from bif_lightning.tensorboard.plugin.run_files import RunFiles, remembered, token

SCALINGS = ("matrix", "column")
"""What the colours of a view are scaled by: one number for the whole matrix, or one for each of its columns."""
_MOST_SIDE = 2048
_SCALE_QUANTILE = 0.99
_SCALE_VALUES = 1 << 18


@dataclass(frozen=True)
class Window:
    """The part of a matrix that is shown: ordered rows and columns, and the pixels for them."""

    rows: np.ndarray
    columns: np.ndarray
    height: int
    width: int

    @property
    def is_pooled(self) -> bool:
        """Whether a pixel stands for more than one entry."""
        return self.height < len(self.rows) or self.width < len(self.columns)


def window_of(parameters: Parameters, rows: np.ndarray, columns: np.ndarray) -> Window:
    """The window that a request asks for, of ordered rows and columns: r0 <= row < r1, c0 <= column < c1."""
    r0, r1 = _span(parameters, "r", len(rows))
    c0, c1 = _span(parameters, "c", len(columns))
    height = parameters.number("height", 1, _MOST_SIDE, 512)
    width = parameters.number("width", 1, _MOST_SIDE, 512)
    return Window(rows[r0:r1], columns[c0:c1], min(height, r1 - r0), min(width, c1 - c0))


def _span(parameters: Parameters, axis: str, size: int) -> tuple[int, int]:
    start = parameters.number(f"{axis}0", 0, size - 1, 0)
    return start, parameters.number(f"{axis}1", start + 1, size, size)


def ordered(files: RunFiles, matrix: Matrix, parameters: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns in the orders that a request asks for; of chosen ones only, where it has masks of them."""
    sides = ("train", "query")
    orders = [order_of(files, _order_parameters(parameters, side)) for side in sides]
    rows, columns = (
        _only(positions(files, matrix, side, by), parameters, side) for side, by in zip(sides, orders, strict=True)
    )
    return rows, columns


def _only(ordered: np.ndarray, parameters: Parameters, side: str) -> np.ndarray:
    if not parameters.has(f"{side}_only"):
        return ordered
    chosen = np.zeros(len(ordered), bool)
    chosen[parameters.mask(f"{side}_only", len(ordered))] = True
    return ordered[chosen[ordered]]


def _order_parameters(parameters: Parameters, side: str) -> Parameters:
    own = parameters.under(f"{side}_")
    return own.but(at=parameters.text("at")) if parameters.has("at") else own


def view(files: RunFiles, parameters: Parameters) -> Answer:
    """Effects of a window, float32 row by row, and their standard errors where it is not pooled."""
    step, matrix = files.step(parameters), matrix_of(parameters)
    shape = shape_of(files, step, matrix)
    rows, columns = ordered(files, matrix, parameters)
    at = order_of(files, _order_parameters(parameters, "train")).at
    if shape_of(files, at, matrix) != shape:
        raise RefusedError(
            400, f"The dump of step {step} has other columns than that of the step that orders; choose another."
        )
    window = window_of(parameters, rows, columns)
    own = parameters.choice("scaling", SCALINGS, "matrix") == "column"
    by = _column_scales(files, step, matrix, shape) if own else None
    parts = [matrix.effect(shown(files, step, matrix.name, shape, window, by))]
    if not window.is_pooled:
        parts.append(shown(files, step, matrix.error, shape, window, by))
    full, largest = scale(files, step, matrix, shape, by)
    headers = {
        "X-Shape": f"{window.height},{window.width}",
        "X-Pooled": str(int(window.is_pooled)),
        "X-Errors": str(len(parts) - 1),
        "X-Scale": repr(full),
        "X-Largest": repr(largest),
    }
    return as_numbers(headers, *parts)


def _column_scales(files: RunFiles, step: int, matrix: Matrix, shape: tuple[int, int]) -> np.ndarray:
    """Root mean square of each column; 1 where that is 0 or nothing is known.

    Raises:
        RefusedError: 400, the matrix is too large to be read whole.
    """
    if shape[0] * shape[1] > WHOLE_CELLS:
        raise RefusedError(400, "The matrix is too large to scale each query by itself; choose one scale for all.")
    values = cells(files, step, matrix.name)
    known = np.isfinite(values)
    squares = np.where(known, values, 0).astype(np.float64) ** 2
    sizes = np.sqrt(squares.sum(0) / np.maximum(known.sum(0), 1))
    return np.where(sizes > 0, sizes, 1).astype(np.float32)


def shown(
    files: RunFiles, step: int, name: str, shape: tuple[int, int], window: Window, by: np.ndarray | None = None
) -> np.ndarray:
    """Values of a window of one dump, each column divided by its scale where `by` has them."""
    if shape[0] * shape[1] <= WHOLE_CELLS:
        values = cells(files, step, name)
        return pooled(values if by is None else values / by, window.rows, window.columns, window.height, window.width)
    if _is_all_of(window, shape) and name == "correlation":
        return _overview(files, step, window)
    values = cells(files, step, name, window.rows, window.columns)
    return pooled(values, np.arange(len(values)), np.arange(values.shape[1]), window.height, window.width)


def _is_all_of(window: Window, shape: tuple[int, int]) -> bool:
    sides = zip((window.rows, window.columns), shape, strict=True)
    return all(len(side) == size and (np.diff(side) == 1).all() for side, size in sides)


def _overview(files: RunFiles, step: int, window: Window) -> np.ndarray:
    """The whole of a very large matrix in the order of the dataset, from the overview that the dump keeps."""
    block: np.ndarray = read_parts(files.dump(step), DUMP, names=("overview/block",)).values["overview/block"]
    sides = zip(block.shape, (window.height, window.width), strict=True)
    rows, columns = (np.arange(most) * size // most for size, most in sides)
    return block[rows][:, columns]


def scale(
    files: RunFiles, step: int, matrix: Matrix, shape: tuple[int, int], by: np.ndarray | None = None
) -> tuple[float, float]:
    """99th percentile and largest absolute value of a matrix, from at most 262,144 entries spread over all of it.

    Args:
        files, step, matrix, shape: which matrix.
        by: scales that its columns are divided by.
    """
    path = files.dump(step)
    key = ("scale", str(path), token(path), matrix, by is None)
    return remembered(key, lambda: _scale(files, step, matrix, shape, by))


def _scale(
    files: RunFiles, step: int, matrix: Matrix, shape: tuple[int, int], by: np.ndarray | None
) -> tuple[float, float]:
    if shape[0] * shape[1] <= WHOLE_CELLS:
        # Else the stride would meet the same columns again and again.
        stride = 1 if shape[0] * shape[1] <= _SCALE_VALUES else _coprime(shape[0] * shape[1] // _SCALE_VALUES, shape[1])
        whole = cells(files, step, matrix.name)
        values = (whole if by is None else whole / by).ravel()[::stride]
    else:
        starts = [np.unique(np.linspace(0, (size - 1) // 256, 4).astype(np.int64)) * 256 for size in shape]
        rows, columns = ((each[:, None] + np.arange(256)).ravel() for each in starts)
        values = cells(files, step, matrix.name, rows[rows < shape[0]], columns[columns < shape[1]]).ravel()
    known = np.abs(values[np.isfinite(values)])
    return (float(np.quantile(known, _SCALE_QUANTILE)), float(known.max())) if known.size else (0.0, 0.0)


def _coprime(least: int, apart: int) -> int:
    """Smallest stride, at least `least`, coprime to `apart`: it does not revisit the same columns."""
    return next(stride for stride in range(max(least, 1), least + apart + 2) if np.gcd(stride, apart) == 1)


def classes(files: RunFiles, parameters: Parameters) -> Answer:
    """Mean effects of the blocks of a class of train examples and a class of queries, with their standard errors."""
    matrix = matrix_of(parameters)
    found = class_means(files, files.step(parameters), matrix)
    return as_json(found | {"value": matrix.effect(found["value"])})


def class_means(files: RunFiles, step: int, matrix: Matrix) -> dict[str, Any]:
    """Means by class as stored, with their classes and counts.

    Raises:
        RefusedError: 404, the dump has no such means.
    """
    value = f"labels/{matrix.name}"
    names = [f"{side}_label" for side in ("train", "query")]
    names += [f"labels/{name}" for name in names] + [f"labels/{name}_name" for name in names]
    found = read_parts(files.dump(step), DUMP, names=[*names, value, f"{value}_standard_error"], asked=("labels",))
    of = found.values
    if value not in of:
        why = "only the influence and the correlation of losses have them" if found.present else "it needs labels"
        raise RefusedError(404, f"The dump of step {step} has no class by class means of {matrix.name}: {why}.")
    sides = {side: of[f"labels/{side}_label"] for side in ("train", "query")}
    counts = [[int((of[f"{side}_label"] == label).sum()) for label in labels] for side, labels in sides.items()]
    return (
        {f"{side}_label": labels for side, labels in sides.items()}
        | {
            f"{side}_name": list(of.get(f"labels/{side}_label_name", map(str, labels)))
            for side, labels in sides.items()
        }
        | {"value": of[value], "standard_error": of[f"{value}_standard_error"], "count": np.multiply.outer(*counts)}
    )
