"""Reads any rows x columns of a matrix: only the chunks that hold them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import h5py
import numpy as np
from jaxtyping import Float32, Int

from bif_lightning.archive.read.untrusted import open_file, require
from bif_lightning.archive.schema import DUMP
from bif_lightning.exceptions import UnreadableFileError

MOST_CELLS = 1 << 26
"""Cells that one reading may decompress: 256 MiB of float32."""

_TILE = 256  # of data that is stored in one piece


@dataclass(frozen=True)
class _Band:
    """Wanted rows (or columns) that lie in one band of chunks.

    Attributes:
        stored: the range to read, which covers them.
        inside: their positions in that range.
        target: their positions in the result.
    """

    stored: slice
    inside: np.ndarray
    target: np.ndarray


def read_cells(
    path: str | os.PathLike[str],
    names: Sequence[str],
    rows: Int[np.ndarray, " row"] | None = None,
    columns: Int[np.ndarray, " column"] | None = None,
) -> list[Float32[np.ndarray, "row column"]]:
    """These rows and columns of some matrices of a dump, in this order.

    Args:
        path: the dump.
        names: of the matrices.
        rows, columns: positions from 0; None takes all.

    Raises:
        UnreadableFileError: the file is damaged, of another format, of a later version, or has no such matrix.
        ValueError: a position is outside of the matrix, or the chunks hold more than `MOST_CELLS` cells in all.
        OSError: the system does not allow reading the file.
    """
    with open_file(path, DUMP) as file:
        try:
            return [_read(require(file, name), rows, columns) for name in names]
        except (UnreadableFileError, ValueError):
            raise
        except (OSError, RuntimeError, LookupError, TypeError, OverflowError, MemoryError) as error:
            raise UnreadableFileError(
                f"{path}: {', '.join(names)}: damaged ({type(error).__name__}: {error})"
            ) from error


def _read(dataset: h5py.Dataset, rows: np.ndarray | None, columns: np.ndarray | None) -> np.ndarray:
    if dataset.ndim != 2 or dataset.dtype.kind != "f":
        raise UnreadableFileError(f"{dataset.file.filename}: {dataset.name} is not a matrix of floating-point numbers")
    tile = dataset.chunks or (_TILE, _TILE)
    bands = [list(_bands(*each)) for each in zip((rows, columns), dataset.shape, tile, strict=True)]
    cells = len(bands[0]) * tile[0] * len(bands[1]) * tile[1]
    if cells > MOST_CELLS:
        raise ValueError(
            f"{cells:,} cells of {dataset.name} would have to be read at once; at most {MOST_CELLS:,} are allowed: ask "
            "for fewer rows or columns, or for neighbours"
        )
    if rows is None and columns is None:
        return np.asarray(dataset[...], np.float32)
    shape = [size if each is None else len(each) for each, size in zip((rows, columns), dataset.shape, strict=True)]
    out = np.empty(shape, np.float32)
    for high in bands[0]:
        for wide in bands[1]:
            # Ranges rather than lists of rows, which HDF5 reads far more slowly.
            block = dataset[high.stored, wide.stored]
            out[np.ix_(high.target, wide.target)] = block[high.inside][:, wide.inside]
    return out


def _bands(wanted: np.ndarray | None, size: int, step: int) -> Iterator[_Band]:
    if wanted is None:
        wanted = np.arange(size)
    if wanted.size and not (wanted.min() >= 0 and wanted.max() < size):
        raise ValueError(f"positions {wanted.min()} to {wanted.max()} do not fit an axis of {size}")
    band = wanted // step
    order = np.argsort(band, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
        if group.size:
            start = int(wanted[group].min())
            stop = int(wanted[group].max()) + 1
            yield _Band(slice(start, stop), wanted[group] - start, group)
