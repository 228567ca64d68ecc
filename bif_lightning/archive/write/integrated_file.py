"""Brings integrated.h5 up to date: the sum over the dumps of a folder, grown by those that it does not hold yet."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bif_lightning.archive.integrated_file import SUMS, integrated_content
from bif_lightning.archive.read.integrated_file import IntegratedFile, Stamp, dumps_of_run, open_integrated, read_sum
from bif_lightning.archive.read.untrusted import open_file, require
from bif_lightning.archive.schema import DUMP, INTEGRATED_FILE, chunk_shape
from bif_lightning.archive.write.content import stamp, write_content
from bif_lightning.exceptions import UnreadableFileError
from bif_lightning.results.integrated import DIGEST_BYTES, IntegratedInfluence
from bif_lightning.storage.places import local_path
from bif_lightning.storage.scratch import MATRIX_BYTES, ScratchArrays, Spec

_CELLS = 1 << 22  # of a matrix in memory at once: 16 arrays of them in float64 are 512 MiB
_LEAST = 2  # of one dump the sum would say what the dump says


def write_integrated(directory: str | os.PathLike[str]) -> Path | None:
    """Bring `integrated.h5` up to date: the influence over the whole training, from all dumps of a folder.

    The callback does so after each dump, `attribute` and `watch` at their end; call it for a folder that they did not
    leave. If the file holds the first of the dumps, by step and time of writing, the others are added to it. Otherwise
    it is made anew. Both give the same bits. A few columns are in memory at a time, and a matrix that is too large for
    memory lies in a temporary file. A dump that cannot be read is left out.

    Args:
        directory: the folder of the dumps.

    Returns:
        the path of the file; None where there are fewer than two dumps.

    Raises:
        ValueError: the folder is not on this machine.
        FileNotFoundError: there is no such folder.
        OSError: the file cannot be written. Nothing of it is left, and an older one stays as it was.

    >>> from bif_lightning import open_run, write_dump, write_integrated
    >>> for step in (300, 600):
    ...     _ = write_dump(new_folder, snapshot, step=step, epoch=0, train=train, query=query)
    >>> write_integrated(new_folder).name, open_run(new_folder).integrated.dims
    ('integrated.h5', ('train', 'query'))
    """
    folder = local_path(directory, "directory")
    dumps = dumps_of_run(folder)
    while len(dumps) >= _LEAST:
        known = open_integrated(folder)
        known = known if known is not None and known.begins(dumps) else None
        if known is not None and len(known.steps) == len(dumps):
            return known.path
        try:
            return _write(folder, dumps, known)
        except _UnreadableDumpError as error:
            dumps.remove(error.dump)
    return None


class _UnreadableDumpError(Exception):
    """A dump has no influence that can be read."""

    def __init__(self, dump: Stamp) -> None:
        super().__init__(str(dump.path))
        self.dump = dump


def _write(folder: Path, dumps: Sequence[Stamp], known: IntegratedFile | None) -> Path:
    train, query = _shape(dumps[0]) if known is None else known.shape
    what = "the sums over the whole training"
    sums = ScratchArrays([Spec((query, train), np.float64)] * len(SUMS), MATRIX_BYTES, folder, what)
    status = np.empty((len(dumps), query), np.uint8)
    digests = np.empty((len(dumps), query, DIGEST_BYTES), np.uint8)
    for columns in _blocks(train, query):
        found = _summed(dumps, columns, train, known)
        of_sums = found.influence, found.standard_error, found.squares, found.every_second
        for index, values in enumerate(of_sums):
            sums.write(index, columns, values.T)
        status[:, columns], digests[:, columns] = found.status, found.digests
    sums.close()
    steps, created = [dump.step for dump in dumps], [dump.created for dump in dumps]
    attrs = stamp() | {"samples_sha256": dumps[0].samples}
    path = folder / INTEGRATED_FILE
    write_content(path, integrated_content(sums.arrays, status, digests, steps, created, attrs))
    return path


def _blocks(train: int, query: int) -> list[slice]:
    """Columns that are in memory together: whole chunks of a dump, where they fit."""
    width, chunk = max(_CELLS // max(train, 1), 1), chunk_shape((train, query))[1]
    width = width // chunk * chunk or width
    return [slice(start, min(start + width, query)) for start in range(0, query, width)]


def _summed(dumps: Sequence[Stamp], columns: slice, train: int, known: IntegratedFile | None) -> IntegratedInfluence:
    queries = np.arange(columns.start, columns.stop)
    found = IntegratedInfluence.zeros(train, len(queries)) if known is None else read_sum(known, queries)
    for dump in dumps[len(found.steps) :]:
        found.push(dump.step, *_matrices(dump, (train, columns)))
    return found


def _shape(dump: Stamp) -> tuple[int, int]:
    try:
        with open_file(dump.path, DUMP) as file:
            train, query = require(file, "influence").shape
            return train, query
    except (OSError, RuntimeError, ValueError, UnreadableFileError) as error:
        raise _UnreadableDumpError(dump) from error


def _matrices(dump: Stamp, part: tuple[int, slice]) -> tuple[np.ndarray, np.ndarray]:
    train, columns = part
    try:
        with open_file(dump.path, DUMP) as file:
            values, errors = (require(file, name)[:, columns] for name in ("influence", "influence_standard_error"))
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, UnreadableFileError) as error:
        raise _UnreadableDumpError(dump) from error
    if not values.shape == errors.shape == (train, columns.stop - columns.start):
        raise _UnreadableDumpError(dump)
    return values, errors
