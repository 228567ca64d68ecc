"""Reads any rows x columns of a matrix: only the chunks that hold them, decompressed by several threads.

HDF5 reads one chunk at a time on one thread. Here the stored bytes are read by HDF5, and inflated and unshuffled
outside of it, which is 2 to 3 times as fast on two cores. A damaged chunk is noticed all the same: the checksum within
the gzip stream covers it.
"""

import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float32, Int

from bif_lightning.archive.read.untrusted import UnreadableFileError, open_file, require
from bif_lightning.archive.schema import DUMP

MOST_CELLS = 1 << 26
"""Cells that one reading may decompress: 256 MiB of float32."""

_THREADS = ThreadPoolExecutor(2, thread_name_prefix="inflate")
_SHUFFLE, _DEFLATE, _FLETCHER32 = 2, 1, 3
_MOST_EXPANSION, _MOST_INFLATED = 1032, 1 << 28  # of deflate; bytes that a damaged chunk may take for a moment
_TILE = 256  # of data that is stored in one piece


@dataclass(frozen=True)
class _Pick:
    """Which rows (or columns) of one band of chunks are wanted, and where they go."""

    start: int
    stop: int
    inside: Any
    target: Any


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
        UnreadableFileError: the file is broken, foreign, of a later version, or has no such matrix.
        ValueError: a position outside of the matrix, or cells in chunks of more than `MOST_CELLS` in all.
        OSError: the system does not let it be read.
    """
    with open_file(path, DUMP) as file:
        try:
            return [_read(require(file, name), rows, columns) for name in names]
        except (UnreadableFileError, ValueError):
            raise
        except (OSError, RuntimeError, LookupError, TypeError, OverflowError, MemoryError, zlib.error) as error:
            raise UnreadableFileError(
                f"{path}: {', '.join(names)}: damaged ({type(error).__name__}: {error})"
            ) from error


def _read(dataset: h5py.Dataset, rows: Any, columns: Any) -> np.ndarray:
    if dataset.ndim != 2 or dataset.dtype.kind != "f":
        raise UnreadableFileError(f"{dataset.file.filename}: {dataset.name} is no matrix of floating numbers")
    tile = dataset.chunks or (_TILE, _TILE)
    picks = [list(_picks(*each)) for each in zip((rows, columns), dataset.shape, tile, strict=True)]
    cells = len(picks[0]) * tile[0] * len(picks[1]) * tile[1]
    if cells > MOST_CELLS:
        raise ValueError(
            f"{cells:,} cells of {dataset.name} would have to be read at once; at most {MOST_CELLS:,} are: ask for "
            "fewer rows or columns, or for neighbours"
        )
    shape = [size if each is None else len(each) for each, size in zip((rows, columns), dataset.shape, strict=True)]
    out = np.empty(shape, np.float32)
    pending: list[Future[None]] = []
    usual = _is_usual(dataset)
    bands = [(height, width) for height in picks[0] for width in picks[1]]
    for height, width in bands:
        stored = _stored(dataset, height, width, usual)
        if len(bands) == 1:
            _place(dataset, tile, stored, height, width, out)
        else:
            pending.append(_THREADS.submit(_place, dataset, tile, stored, height, width, out))
    for each in pending:
        each.result()
    return out


def _picks(wanted: np.ndarray | None, size: int, step: int) -> Iterator[_Pick]:
    if wanted is None:
        for start in range(0, size, step):
            stop = min(start + step, size)
            yield _Pick(start, stop, slice(0, stop - start), slice(start, stop))
        return
    if wanted.size and not (wanted.min() >= 0 and wanted.max() < size):
        raise ValueError(f"positions {wanted.min()} to {wanted.max()} are asked of an axis of {size}")
    band = wanted // step
    order = np.argsort(band, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
        if group.size:
            start = int(band[group[0]]) * step
            yield _Pick(start, min(start + step, size), wanted[group] - start, group)


def _stored(dataset: h5py.Dataset, height: _Pick, width: _Pick, usual: bool) -> bytes | np.ndarray:
    """Bytes of one chunk as they are stored; the values themselves where they are not stored as this package does."""
    if not usual:
        return np.asarray(dataset[height.start : height.stop, width.start : width.stop])
    mask, stored = dataset.id.read_direct_chunk((height.start, width.start))
    if mask:
        raise UnreadableFileError(f"{dataset.file.filename}: a chunk of {dataset.name} lacks its checksum")
    return stored


def _is_usual(dataset: h5py.Dataset) -> bool:
    plan = dataset.id.get_create_plist()
    filters = [plan.get_filter(each)[0] for each in range(plan.get_nfilters())]
    usual = filters in ([_SHUFFLE, _DEFLATE], [_SHUFFLE, _DEFLATE, _FLETCHER32])
    return usual and dataset.chunks is not None and dataset.dtype == np.dtype("<f4")


def _place(
    dataset: h5py.Dataset, tile: tuple[int, int], stored: Any, height: _Pick, width: _Pick, out: np.ndarray
) -> None:
    if isinstance(stored, np.ndarray):
        picked = stored[height.inside][:, width.inside]
    else:
        picked = _decoded(dataset, tile, stored, height.inside, width.inside)
    if isinstance(height.target, slice) or isinstance(width.target, slice):
        out[height.target, width.target] = picked
    else:
        out[np.ix_(height.target, width.target)] = picked


def _inflated(stored: bytes, size: int) -> bytes:
    """What a chunk holds: `size` bytes, or any other number of them where it is damaged."""
    # Memory of one piece is filled in three quarters of the time that pieces which grow take, but has no bound.
    if len(stored) * _MOST_EXPANSION <= _MOST_INFLATED:
        return zlib.decompress(stored, bufsize=size)
    inflate = zlib.decompressobj()
    data = inflate.decompress(stored, size + 1)
    # The end of the stream holds its checksum: without it nothing was checked.
    return data if inflate.eof else b""


def _decoded(dataset: h5py.Dataset, tile: tuple[int, int], stored: bytes, rows: Any, columns: Any) -> np.ndarray:
    """Some rows and columns of a chunk, inflated and unshuffled."""
    size = 4 * tile[0] * tile[1]
    data = _inflated(stored, size)
    if len(data) != size:
        raise UnreadableFileError(f"{dataset.file.filename}: a chunk of {dataset.name} is damaged")
    # HDF5 shuffles: first the lowest bytes of all values, then the next ones.
    planes = np.frombuffer(data, np.uint8).reshape(4, *tile)[:, rows][:, :, columns]
    bits = planes[3].astype(np.uint32)
    for plane in planes[2::-1]:
        bits <<= np.uint32(8)
        bits |= plane
    return bits.view(np.float32)
