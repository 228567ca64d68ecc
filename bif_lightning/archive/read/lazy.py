"""Arrays that stay on disk until they are indexed: one with a file a step, and the matrices of integrated.h5."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends.common import BackendArray
from xarray.core import indexing

from bif_lightning.archive.read.integrated_file import IntegratedFile, opened_again
from bif_lightning.archive.read.positions import outer_shape, read_positions
from bif_lightning.archive.read.untrusted import open_file, require
from bif_lightning.archive.schema import DUMP
from bif_lightning.exceptions import SkippedDumpWarning, UnreadableFileError


class StepArray(BackendArray):
    """The dataset of one name in every dump, stacked along a leading axis `step`.

    A step without the dataset is NaN. A step whose file cannot be read is NaN too, with a warning that names the file;
    the other steps stay readable.

    Args:
        paths: the dump of each step; None if it lacks the dataset.
        name: path of the dataset within the dump.
        shape: of the dataset in one dump.
        dtype: a floating type.
    """

    def __init__(self, paths: Sequence[Path | None], name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.paths = tuple(paths)
        self._name = name
        self.shape = (len(self.paths), *shape)
        self.dtype = dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        positions = [np.arange(size)[each] for size, each in zip(self.shape, key, strict=True)]
        steps, *inner = positions
        blocks = [self._read_step(self.paths[step], inner) for step in np.atleast_1d(steps).tolist()]
        if np.ndim(steps) == 0:
            return blocks[0]
        return np.stack(blocks) if blocks else np.empty((0, *outer_shape(inner)), self.dtype)

    def _read_step(self, path: Path | None, inner: list[np.ndarray]) -> np.ndarray:
        block = None if path is None else self._read_file(path, inner)
        return np.full(outer_shape(inner), np.nan, self.dtype) if block is None else block

    def _read_file(self, path: Path, inner: list[np.ndarray]) -> np.ndarray | None:
        try:
            with open_file(path, DUMP) as file:
                dataset = require(file, self._name)
                if dataset.shape != self.shape[1:]:
                    raise UnreadableFileError(f"its {self._name} has shape {dataset.shape}, not {self.shape[1:]}")
                return read_positions(dataset, inner).astype(self.dtype, copy=False)
        except (OSError, RuntimeError, UnreadableFileError) as error:
            message = f"{path} cannot be read, so its {self._name} is NaN here: {error}"
            warnings.warn(message, SkippedDumpWarning, stacklevel=2)
            return None


class IntegratedArray(BackendArray):
    """A matrix of integrated.h5, as train x query.

    Where the file was replaced since by one of other snapshots, or cannot be read, it is NaN, with a warning.

    Args:
        of: the file, as it was when the run was opened.
        name: of the matrix.
    """

    def __init__(self, of: IntegratedFile, name: str) -> None:
        self._of, self._name = of, name
        self.shape, self.dtype = of.shape, np.dtype(np.float64)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        train, query = (np.arange(size)[each] for size, each in zip(self.shape, key, strict=True))
        try:
            with opened_again(self._of) as file:
                return read_positions(require(file, self._name), [query, train]).T
        except (OSError, UnreadableFileError) as error:
            message = f"{self._name} is NaN here: {error}. Open the run again, or sum its dumps with `integrated`"
            warnings.warn(message, SkippedDumpWarning, stacklevel=2)
            return np.full(outer_shape([train, query]), np.nan)


@dataclass(frozen=True)
class Origin:
    """Where the values of a variable lie: the dump of each step, the shape there, and which positions of each axis."""

    paths: list[Path | None]
    shape: tuple[int, ...]
    positions: list[np.ndarray]


def origin(variable: xr.Variable) -> Origin | None:
    """Where the values of a variable lie, if they are on disk as `open_run` found them.

    None of values in memory, which may be anybody's.
    """
    data = variable._data  # pyright: ignore[reportPrivateUsage]  # `data` would read it
    if not isinstance(data, indexing.LazilyIndexedArray) or not isinstance(data.array, StepArray):
        return None
    steps, *inner = (np.arange(size)[key] for size, key in zip(data.array.shape, data.key.tuple, strict=True))
    return Origin([data.array.paths[step] for step in np.atleast_1d(steps)], data.array.shape[1:], inner)
