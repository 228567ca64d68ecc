"""An array with one file a step: indexing it opens the files of the chosen steps, and no other."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from xarray.backends.common import BackendArray
from xarray.core import indexing

from bif_lightning.archive.guard import SkippedDumpWarning, UnreadableFileError, open_file, require
from bif_lightning.archive.schema import DUMP


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
        covers = tuple(_cover(rows) for rows in inner)
        blocks = [self._read_step(self._paths[step], covers, inner) for step in np.atleast_1d(steps).tolist()]
        if np.ndim(steps) == 0:
            return blocks[0]
        return np.stack(blocks) if blocks else np.empty((0, *_outer_shape(inner)), self.dtype)

    def _read_step(self, path: Path | None, covers: tuple[slice, ...], inner: list[np.ndarray]) -> np.ndarray:
        block = None if path is None else self._read_cover(path, covers)
        if block is None:
            return np.full(_outer_shape(inner), np.nan, self.dtype)
        # From the last axis, so that a dropped axis does not move those still to come.
        for axis in reversed(range(len(inner))):
            block = np.take(block, inner[axis] - covers[axis].start, axis=axis)
        return block

    def _read_cover(self, path: Path, covers: tuple[slice, ...]) -> np.ndarray | None:
        try:
            with open_file(path, DUMP) as file:
                dataset = require(file, self._name)
                if dataset.shape != self.shape[1:]:
                    raise UnreadableFileError(f"its {self._name} has shape {dataset.shape}, not {self.shape[1:]}")
                return np.asarray(dataset[covers], self.dtype)
        except (OSError, RuntimeError, UnreadableFileError) as error:
            message = f"{path} cannot be read, so its {self._name} is NaN here: {error}"
            warnings.warn(message, SkippedDumpWarning, stacklevel=2)
            return None


def _cover(rows: np.ndarray) -> slice:
    # HDF5 reads a range far faster than a list of rows; the rows are picked from the range in memory.
    return slice(int(rows.min()), int(rows.max()) + 1) if rows.size else slice(0, 0)


def _outer_shape(inner: list[np.ndarray]) -> tuple[int, ...]:
    return tuple(size for rows in inner for size in rows.shape)
