"""The difference of two steps or of two runs, for the examples that both have, and how alike they rank them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bif_lightning.tensorboard.plugin.answers import Answer, RefusedError, as_json, as_numbers
from bif_lightning.tensorboard.plugin.examples import SIDES, examples_of
from bif_lightning.tensorboard.plugin.matching import matched
from bif_lightning.tensorboard.plugin.matrix import Matrix, cells, matrix_of, shape_of
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.pooling import pooled
from bif_lightning.tensorboard.plugin.run_files import RunFiles, remembered, token
from bif_lightning.tensorboard.plugin.views import Window, ordered, window_of

Combine = Callable[[np.ndarray, np.ndarray], np.ndarray]

_SOME = 64
_MANY = 256


def _this(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    return here


def _other(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    return there


# How the two make the values that are shown, and how their standard errors.
_PARTS: Mapping[str, tuple[Combine, Combine]] = {
    "difference": (np.subtract, np.hypot),
    "this": (_this, _this),
    "other": (_other, _other),
}


@dataclass(frozen=True)
class Common:
    """Examples that two runs share (`matching`): their rows here, and the same ones there.

    Attributes:
        rows, columns: train examples and queries, as rows of this run.
        other_rows, other_columns: the same ones, as rows of the other run.
        left_out: examples whose id both have, but which are not the same; train and query.
    """

    rows: np.ndarray
    other_rows: np.ndarray
    columns: np.ndarray
    other_columns: np.ndarray
    left_out: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Pair:
    """One matrix of two dumps."""

    here: RunFiles
    there: RunFiles
    step: int
    other_step: int
    matrix: Matrix
    common: Common


def pair_of(here: RunFiles, there: RunFiles, parameters: Parameters) -> Pair:
    """The two dumps that a request asks for, and the examples that they share.

    Raises:
        RefusedError: 400, they share none.
    """
    step, other = here.step(parameters), there.step(parameters, "other_step")
    matrix = matrix_of(parameters)
    shapes = shape_of(here, step, matrix), shape_of(there, other, matrix)
    found = _common(here, there, (step, other), matrix, shapes)
    if not (len(found.rows) and len(found.columns)):
        raise RefusedError(400, f"The two runs cannot be compared: they share {_missing(found)}.")
    return Pair(here, there, step, other, matrix, found)


def _common(
    here: RunFiles,
    there: RunFiles,
    steps: tuple[int, int],
    matrix: Matrix,
    shapes: tuple[tuple[int, int], tuple[int, int]],
) -> Common:
    if here.folder == there.folder and shapes[0] == shapes[1]:
        rows, columns = (np.arange(size) for size in shapes[0])
        return Common(rows, rows, columns, columns)
    rows, columns = (matched(here, there, steps, side) for side in SIDES)
    if matrix.observable and shapes[0][1] != len(examples_of(here).query):
        raise RefusedError(
            400, f"The columns of {matrix.observable} are not queries; compare another matrix between runs."
        )
    return Common(rows.here, rows.there, columns.here, columns.there, (rows.left_out, columns.left_out))


def _missing(found: Common) -> str:
    sides = ("train examples", found.rows, found.left_out[0]), ("queries", found.columns, found.left_out[1])
    name, _, differ = next(side for side in sides if not len(side[1]))
    if not differ:
        return f"no {name} of the same id"
    return f"no {name}: {differ} have the same id in both, but other data (labels, texts, or the dataset itself)"


def common(here: RunFiles, there: RunFiles, parameters: Parameters) -> Answer:
    """Rows of this run that the other has too, ascending, and how many of the same id were left out as other data."""
    found = pair_of(here, there, parameters).common
    return as_json(
        {"train": found.rows, "query": found.columns, "left_out": dict(zip(SIDES, found.left_out, strict=True))}
    )


def compare(here: RunFiles, there: RunFiles, parameters: Parameters) -> Answer:
    """Effects here minus effects there, float32, and their standard errors where the window is not pooled.

    `part` asks for the values of "this" or of the "other" in place of the difference, in the same window. The error of
    a difference is taken as that of two independent estimates. Snapshots share their noise, so it is smaller in truth.
    """
    part = parameters.choice("part", tuple(_PARTS), "difference")
    pair = pair_of(here, there, parameters)
    rows, columns = ordered(here, pair.matrix, parameters)
    kept = rows[np.isin(rows, pair.common.rows)], columns[np.isin(columns, pair.common.columns)]
    window = window_of(parameters, *kept)
    values, errors = _PARTS[part]
    shown = [pair.matrix.effect(_shown(pair, pair.matrix.name, window, values))]
    if not window.is_pooled:
        shown.append(_shown(pair, pair.matrix.error, window, errors))
    agreement = rank_agreement(pair, _SOME)[1]
    headers = {
        "X-Shape": f"{window.height},{window.width}",
        "X-Pooled": str(int(window.is_pooled)),
        "X-Errors": str(len(shown) - 1),
        "X-Scale": repr((extent := _scale(pair, values))[0]),
        "X-Largest": repr(extent[1]),
        "X-Common": f"{len(kept[0])},{len(kept[1])}",
        "X-Rank-Correlation": repr(float(np.nanmedian(agreement))) if np.isfinite(agreement).any() else "nan",
        "X-Rank-Queries": str(len(agreement)),
    }
    return as_numbers(headers, *shown)


def compare_ranks(here: RunFiles, there: RunFiles, parameters: Parameters) -> Answer:
    """Of each query, or of 256 evenly spaced ones, the rank correlation of its train examples here and there."""
    pair = pair_of(here, there, parameters)
    queries, agreement = rank_agreement(pair, _MANY)
    return as_json({"query": queries, "rank_correlation": agreement, "num_query": len(pair.common.columns)})


def rank_agreement(pair: Pair, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Spearman correlation of columns of the two matrices over the train examples that both have.

    Returns:
        the queries (rows of this run's query axis), and their correlations; NaN where a column does not vary.
    """
    paths = pair.here.dump(pair.step), pair.there.dump(pair.other_step)
    key = ("ranks", *((str(path), token(path)) for path in paths), pair.matrix, most)
    return remembered(key, lambda: _rank_agreement(pair, most))


def _rank_agreement(pair: Pair, most: int) -> tuple[np.ndarray, np.ndarray]:
    of = pair.common
    chosen = np.unique(np.linspace(0, len(of.columns) - 1, min(most, len(of.columns))).round().astype(np.int64))
    left = cells(pair.here, pair.step, pair.matrix.name, of.rows, of.columns[chosen])
    right = cells(pair.there, pair.other_step, pair.matrix.name, of.other_rows, of.other_columns[chosen])
    agreement = [_spearman(left[:, column], right[:, column]) for column in range(len(chosen))]
    return of.columns[chosen], np.array(agreement)


def _spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Spearman's correlation of what is finite in both; NaN where one of them does not vary."""
    # Imported here: it takes half a second that only a comparison is worth.
    from scipy.stats import rankdata

    known = np.isfinite(left) & np.isfinite(right)
    if known.sum() < 2:
        return np.nan
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(rankdata([left[known], right[known]], axis=1))[0, 1])


def _shown(pair: Pair, name: str, window: Window, combine: Combine) -> np.ndarray:
    of = pair.common
    there_rows = of.other_rows[np.searchsorted(of.rows, window.rows)]
    there_columns = of.other_columns[np.searchsorted(of.columns, window.columns)]
    here = _pooled(pair.here, pair.step, name, window, window.rows, window.columns)
    there = _pooled(pair.there, pair.other_step, name, window, there_rows, there_columns)
    return combine(here, there)


def _pooled(files: RunFiles, step: int, name: str, window: Window, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return pooled(cells(files, step, name), rows, columns, window.height, window.width)


def _scale(pair: Pair, combine: Combine) -> tuple[float, float]:
    """99th percentile and largest of the sizes that are shown, from at most 512 x 512 entries spread over all."""
    of = pair.common
    rows, columns = (
        np.linspace(0, len(each) - 1, min(512, len(each))).astype(np.int64) for each in (of.rows, of.columns)
    )
    here = cells(pair.here, pair.step, pair.matrix.name)[of.rows[rows]][:, of.columns[columns]]
    there = cells(pair.there, pair.other_step, pair.matrix.name)[of.other_rows[rows]][:, of.other_columns[columns]]
    apart = np.abs(combine(here, there))
    known = apart[np.isfinite(apart)]
    return (float(np.quantile(known, 0.99)), float(known.max())) if known.size else (0.0, 0.0)
