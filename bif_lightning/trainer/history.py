"""Correlation of a few pairs over training, as the dumps of a run have it up to a snapshot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from bif_lightning.archive.read.cells import read_cells
from bif_lightning.archive.read.index import dump_paths
from bif_lightning.archive.schema import DUMP_NAME
from bif_lightning.exceptions import UnreadableFileError
from bif_lightning.plots.ranking import strongest
from bif_lightning.plots.style import shorten
from bif_lightning.results.estimate import Estimate
from bif_lightning.results.examples import Samples
from bif_lightning.tensorboard.pictures import History

MOST_PAIRS = 12
MOST_STEPS = 40  # a dump is opened for each, while training waits
_A_SIDE = 3
_MATRICES = ("correlation", "correlation_standard_error")


@dataclass(frozen=True)
class _Pairs:
    title: str
    names: tuple[str, ...]
    rows: Int[np.ndarray, " pair"]
    columns: Int[np.ndarray, " pair"]


def history_of(
    directory: Path,
    step: int,
    estimate: Estimate,
    train: Samples,
    query: Samples,
    *,
    pairs: Sequence[tuple[str, str]],
    column: int,
) -> History | None:
    """Follow pairs through the dumps of a run; None where there are fewer than two steps, or no pairs.

    Of a long run, 40 evenly chosen dumps are read. One that cannot be read is left out.

    Args:
        directory: folder of the dumps.
        step: of the snapshot; later dumps, of a run that was stopped and goes on, are not shown.
        estimate: at this step.
        train, query: who its rows and columns are.
        pairs: (train id, query id); the first twelve are followed. If empty, those of one query with the three train
            examples that help it most at this step, and the three that hurt it most.
        column: position of that query.
    """
    shown = _named(train, query, pairs) if pairs else _strongest(estimate, train, query, column)
    paths = {int(match[1]): path for path in dump_paths(directory) if (match := DUMP_NAME.fullmatch(path.name))}
    steps = sorted(each for each in paths if each <= step)
    kept = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MOST_STEPS)).round().astype(int)) if steps else []
    read = [(steps[at], cells) for at in kept if (cells := _read(paths[steps[at]], shown)) is not None]
    if len(read) < 2 or not shown.names:
        return None
    values, errors = (np.stack([cells[which] for _, cells in read], axis=1) for which in range(len(_MATRICES)))
    return History(shown.title, shown.names, tuple(each for each, _ in read), values, errors)


def _named(train: Samples, query: Samples, pairs: Sequence[tuple[str, str]]) -> _Pairs:
    kept = [(one, other) for one, other in pairs if one in train.ids and other in query.ids][:MOST_PAIRS]
    rows, columns = ([of.ids.index(pair[side]) for pair in kept] for side, of in enumerate((train, query)))
    names = tuple(f"{shorten(one, 11)} on {shorten(other, 11)}" for one, other in kept)
    return _Pairs("Correlation of named pairs over training", names, np.array(rows), np.array(columns))


def _strongest(estimate: Estimate, train: Samples, query: Samples, column: int) -> _Pairs:
    values = estimate.correlation[:, column].astype(np.float64)
    name = query.ids[column]
    if name in train.ids:  # the correlation of an example with itself is 1
        values[train.ids.index(name)] = np.nan
    rows = np.concatenate(strongest(values, _A_SIDE, 1))
    title = f"What helps and hurts {shorten(name, 24)} most now, over training"
    return _Pairs(title, tuple(train.ids[row] for row in rows), rows, np.full(len(rows), column))


def _read(path: Path, pairs: _Pairs) -> list[Float[np.ndarray, " pair"]] | None:
    if not pairs.names:
        return None
    rows, row = np.unique(pairs.rows, return_inverse=True)
    columns, column = np.unique(pairs.columns, return_inverse=True)
    try:
        found = read_cells(path, _MATRICES, rows, columns)
    except (OSError, ValueError, UnreadableFileError):
        return None
    return [matrix[row, column].astype(np.float64) for matrix in found]
