"""Trajectories of a cell, a block or a pair of classes over training, with error bands."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bif_lightning.archive.read.parts import read_parts
from bif_lightning.archive.schema import DUMP
from bif_lightning.exceptions import UnreadableFileError
from bif_lightning.results.bands import found_changes, simultaneous
from bif_lightning.tensorboard.plugin.answers import Answer, RefusedError, as_json
from bif_lightning.tensorboard.plugin.examples import SIDES
from bif_lightning.tensorboard.plugin.matrix import Matrix, cells_of, matrix_of
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.run_files import RunFiles

Reading = Callable[[RunFiles, int], tuple[float, float]]

BAND = "simultaneous 95 %"
_SECONDS = 4.0
_MOST_ROW = 10**9
_LATE = "left out: so large a block takes long to read at every step; choose a smaller one to see all of them"
_SENTENCES = {
    "flip": "The sign flips between step {before} and step {step}: at both, the band lies on one side of zero.",
    "peak": "A peak at step {step}: its band lies above those of steps {before} and {after}.",
    "trough": "A trough at step {step}: its band lies below those of steps {before} and {after}.",
}


def trajectory_points(files: RunFiles, parameters: Parameters) -> Answer:
    """One point for each step of these files; `assemble` makes the answer of the points of all steps.

    A large block can take longer than a reader may at every step: then evenly spread steps have a value.
    """
    read = _reading(matrix_of(parameters), parameters)
    end = time.monotonic() + _SECONDS
    steps = files.steps
    points: list[dict[str, Any]] = []
    for step in (steps[at] for at in spread(len(steps))):
        late = time.monotonic() > end
        points.append(_gap(step, _LATE) if late else _point(files, step, read))
    return as_json({"points": points})


def spread(count: int) -> list[int]:
    """Numbers below `count` in an order of which every beginning is spread over all (van der Corput).

    >>> spread(5)
    [0, 4, 2, 1, 3]
    """
    bits = max(count - 1, 1).bit_length()
    return sorted(range(count), key=lambda number: int(f"{number:0{bits}b}"[::-1], 2))


def _point(files: RunFiles, step: int, read: Reading) -> dict[str, Any]:
    """Value and error at one step; a dump that cannot be read, or has no such matrix, is a gap."""
    try:
        value, error = read(files, step)
        return {"step": step, "value": value, "standard_error": error}
    except (UnreadableFileError, OSError) as error:
        return _gap(step, str(error))
    except RefusedError as refusal:
        # Wrongly asked is wrong at every step.
        if refusal.status != 404:
            raise
        return _gap(step, str(refusal))


def _gap(step: int, why: str) -> dict[str, Any]:
    return {"step": step, "value": None, "standard_error": None, "why": why}


def _reading(matrix: Matrix, parameters: Parameters) -> Reading:
    """How value and error of a step are read, of a pair of classes or of a block of rows and columns."""
    if parameters.has("train_class"):
        train, query = (parameters.number(f"{side}_class", -1, 10**9) for side in SIDES)
        return lambda files, step: _class_value(files, step, matrix, train, query)
    # Of all steps alike: a row that is not there is refused when the cells are read.
    rows, columns = (np.unique(parameters.rows(side, _MOST_ROW)) for side in SIDES)
    return lambda files, step: _block_value(files, step, matrix, rows, columns)


def _block_value(
    files: RunFiles, step: int, matrix: Matrix, rows: np.ndarray, columns: np.ndarray
) -> tuple[float, float]:
    value, error = cells_of(files, step, (matrix.name, matrix.error), rows, columns)
    return _mean(value), _mean(error)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean(dtype=np.float64)) if known.size else float("nan")


def _class_value(files: RunFiles, step: int, matrix: Matrix, train: int, query: int) -> tuple[float, float]:
    name = f"labels/{matrix.name}"
    labels = [f"labels/{side}_label" for side in SIDES]
    of = read_parts(files.dump(step), DUMP, names=(*labels, name, f"{name}_standard_error")).values
    if name not in of:
        raise RefusedError(404, f"The dump of step {step} has no class by class means of {matrix.name}.")
    positions = [np.flatnonzero(of[axis] == label) for axis, label in zip(labels, (train, query), strict=True)]
    if not all(len(each) for each in positions):
        raise RefusedError(404, f"The dump of step {step} has no examples of these classes.")
    row, column = (int(each[0]) for each in positions)
    return float(of[name][row, column]), float(of[f"{name}_standard_error"][row, column])


def assemble(
    points: Sequence[Mapping[str, Any]], parameters: Parameters, verdicts: Mapping[int, str | None], sign: int = 1
) -> dict[str, Any]:
    """The answer of a trajectory, from its points in the order of their steps and the verdict of each step.

    Args:
        points: of all steps.
        parameters: of the request.
        verdicts: by step.
        sign: that the stored values are multiplied by: `Matrix.helps` makes them effects.
    """
    steps = [point["step"] for point in points]
    value, error = (
        np.array([np.nan if point[name] is None else point[name] for point in points], np.float64)
        for name in ("value", "standard_error")
    )
    value = sign * value
    wide = simultaneous(int(np.isfinite(error).sum())) * error
    low, high = value - wide, value + wide
    is_class = parameters.has("train_class")
    is_cell = is_class or "," not in parameters.text("train") + parameters.text("query")
    return {
        "steps": steps,
        "value": value,
        "standard_error": error,
        "low": low,
        "high": high,
        "band": BAND,
        "verdict": [verdicts.get(step) for step in steps],
        "changes": [_change(change) for change in found_changes(steps, value, low, high)],
        "class_block": is_class,
        "error_kind": "of the mean" if is_cell else "upper bound",
        "missing": [{"step": point["step"], "why": point["why"]} for point in points if "why" in point],
    }


def _change(change: Mapping[str, Any]) -> dict[str, Any]:
    words = _SENTENCES[change["kind"]].format(**change)
    return {"kind": change["kind"], "step": change["step"], "from_step": change["before"], "text": words}
