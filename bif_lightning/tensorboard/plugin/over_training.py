"""The influence of all train examples on queries over the whole training.

It comes from integrated.h5, and from the dumps that the file does not hold yet. Without the file, few and small dumps
are summed here.
"""

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from bif_lightning.archive.read.integrated_file import IntegratedFile, Stamp, open_integrated, read_stamp, read_sum
from bif_lightning.archive.schema import INTEGRATED_FILE, chunk_shape, dump_name
from bif_lightning.exceptions import UnreadableFileError
from bif_lightning.results.integrated import LEAST_SNAPSHOTS, IntegratedInfluence
from bif_lightning.tensorboard.plugin.answers import RefusedError
from bif_lightning.tensorboard.plugin.matrix import Matrix, cells_of, shape_of
from bif_lightning.tensorboard.plugin.run_files import RunFiles, regular, remembered, token

MOST_CELLS = 1 << 24
"""Entries of dumps that are read for one answer: a matrix of this size is read whole elsewhere, too."""

_INFLUENCE = Matrix("influence")
_MOST_LATER = 100  # dumps that were written since the scan, which is some seconds old
_STAMP_BYTES = 500


def columns_over_training(files: RunFiles, queries: Int[np.ndarray, " query"], total: int = 0) -> IntegratedInfluence:
    """The sum over all dumps of a run, of some queries.

    Args:
        files: the run.
        queries: positions.
        total: number of queries of all parts, where these are one part of what is read for an answer.

    Raises:
        RefusedError: 404, the run has fewer than five snapshots; 503, too much would have to be read.
    """
    known = _known(files)
    dumps = _dumps(files, known)
    if known is None or not known.begins(dumps):
        known, dumps = None, [dump for dump in dumps if dump.step in files.names]
    if len(dumps) < LEAST_SNAPSHOTS:
        raise RefusedError(
            404, f"The run has {len(dumps)} snapshots; a ranking over the training is of {LEAST_SNAPSHOTS} or more."
        )
    shape = shape_of(files, dumps[-1].step, _INFLUENCE) if known is None else known.shape
    found = None if known is None else _beginning(known, queries)
    found = found or IntegratedInfluence.zeros(shape[0], len(queries))
    missing = dumps[len(found.steps) :]
    if len(missing) * shape[0] * max(len(queries), total, chunk_shape(shape)[1]) > MOST_CELLS:
        raise RefusedError(
            503,
            f"{INTEGRATED_FILE} lacks {len(missing)} of {len(dumps)} snapshots, which are too large to be summed here: "
            "call bif_lightning.write_integrated with the folder of the run",
        )
    for dump in missing:
        _push(found, files, dump, queries)
    return found


def _known(files: RunFiles) -> IntegratedFile | None:
    path = files.folder / INTEGRATED_FILE
    if not os.path.lexists(path):
        return None
    try:
        key = ("integrated", str(regular(path)), token(path))
    except RefusedError:  # a link, which is not followed
        return None
    return remembered(key, lambda: open_integrated(files.folder))


def _dumps(files: RunFiles, known: IntegratedFile | None) -> list[Stamp]:
    """Those of the scan, and those in the file that were written since; by step."""
    later = set() if known is None else set(known.steps) - set(files.names)
    later = later if len(later) <= _MOST_LATER else set()
    names = dict(files.names) | {step: dump_name(step) for step in later}
    dumps = [stamp for step in sorted(names) if (stamp := _stamp(files, names[step], step)) is not None]
    return [stamp for stamp in dumps if stamp.samples == dumps[-1].samples]


def _stamp(files: RunFiles, name: str, step: int) -> Stamp | None:
    try:
        path = regular(files.folder / name)
        stamp = remembered(("stamp", str(path), token(path)), lambda: read_stamp(path), lambda _: _STAMP_BYTES)
    except (RefusedError, OSError, UnreadableFileError):
        return None
    return stamp if stamp.step == step else None


def _beginning(known: IntegratedFile, queries: Int[np.ndarray, " query"]) -> IntegratedInfluence | None:
    try:
        return read_sum(known, queries)
    except (OSError, UnreadableFileError):
        return None


def _push(found: IntegratedInfluence, files: RunFiles, dump: Stamp, queries: Int[np.ndarray, " query"]) -> None:
    names: Sequence[str] = (_INFLUENCE.name, _INFLUENCE.error)
    try:
        values, errors = cells_of(files, dump.step, names, None, queries)
        if values.shape == errors.shape == found.total.shape:
            found.push(dump.step, values, errors)
    except (OSError, UnreadableFileError):  # the list of runs names it
        return
