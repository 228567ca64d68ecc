"""An array with one file a step: indexing it opens the files of the chosen steps, and no other."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from xarray.backends.common import BackendArray
from xarray.core import indexing

from bif_lightning.archive.read.untrusted import open_file, require
from bif_lightning.archive.schema import DUMP
from bif_lightning.exceptions import SkippedDumpWarning, UnreadableFileError

_FAR = 1024  # rows between two that are not worth reading: 4 chunks of a large matrix


class StepArray(BackendArray):
    """The dataset of one name in every dump, stacked along a leading axis `step`.

    A step without the dataset is NaN. So is a step whose file turns out broken when it is read, with a warning
    that names it; the other steps stay readable.

    Args:
        paths: the dump of each step, None where it lacks the dataset.
        name: path of the dataset within the dump.
        shape: of the dataset in one dump.
        dtype: a floating type.
    """

    def __init__(self, paths: Sequence[Path | None], name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._paths = tuple(paths)
        self._name = name
        self.shape = (len(self._paths), *shape)
        self.dtype = dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        positions = [np.arange(size)[each] for size, each in zip(self.shape, key, strict=True)]
        steps, *inner = positions
        blocks = [self._read_step(self._paths[step], inner) for step in np.atleast_1d(steps).tolist()]
        if np.ndim(steps) == 0:
            return blocks[0]
        return np.stack(blocks) if blocks else np.empty((0, *_outer_shape(inner)), self.dtype)

    def _read_step(self, path: Path | None, inner: list[np.ndarray]) -> np.ndarray:
        block = None if path is None else self._read_file(path, inner)
        return np.full(_outer_shape(inner), np.nan, self.dtype) if block is None else block

    def _read_file(self, path: Path, inner: list[np.ndarray]) -> np.ndarray | None:
        try:
            with open_file(path, DUMP) as file:
                dataset = require(file, self._name)
                if dataset.shape != self.shape[1:]:
                    raise UnreadableFileError(f"its {self._name} has shape {dataset.shape}, not {self.shape[1:]}")
                return _read_rows(dataset, inner).astype(self.dtype, copy=False)
        except (OSError, RuntimeError, UnreadableFileError) as error:
            message = f"{path} cannot be read, so its {self._name} is NaN here: {error}"
            warnings.warn(message, SkippedDumpWarning, stacklevel=2)
            return None


def _read_rows(dataset: h5py.Dataset, inner: list[np.ndarray]) -> np.ndarray:
    """These positions of each axis; rows far apart by one reading for each group of near ones, not of all between."""
    rows, *others = inner
    if rows.ndim == 0 or rows.size == 0:
        return _read_cover(dataset, inner)
    order = np.argsort(rows, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(rows[order]) > _FAR) + 1)
    if len(groups) == 1:
        return _read_cover(dataset, inner)
    block = np.empty(_outer_shape(inner), dataset.dtype)
    for group in groups:
        block[group] = _read_cover(dataset, [rows[group], *others])
    return block


def _read_cover(dataset: h5py.Dataset, inner: list[np.ndarray]) -> np.ndarray:
    # HDF5 reads a range far faster than a list of rows; the rows are picked from the range in memory.
    covers = tuple(_cover(rows) for rows in inner)
    block = np.asarray(dataset[covers])
    # From the last axis, so that a dropped axis does not move those still to come.
    for axis in reversed(range(len(inner))):
        block = np.take(block, inner[axis] - covers[axis].start, axis=axis)
    return block


def _cover(rows: np.ndarray) -> slice:
    return slice(int(rows.min()), int(rows.max()) + 1) if rows.size else slice(0, 0)


def _outer_shape(inner: list[np.ndarray]) -> tuple[int, ...]:
    return tuple(size for rows in inner for size in rows.shape)
