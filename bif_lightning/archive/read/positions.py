"""Reads any positions along the axes of a dataset, by ranges, which HDF5 reads far faster than lists."""

from collections.abc import Sequence

import h5py
import numpy as np

_FAR = 1024  # rows between two that are not worth reading: 4 chunks of a large matrix


def read_positions(dataset: h5py.Dataset, inner: Sequence[np.ndarray]) -> np.ndarray:
    """These positions of each axis; rows far apart by one reading for each group of near ones, not of all between.

    Args:
        dataset: to read.
        inner: positions along each axis; an axis whose positions are a single number without axes is dropped.
    """
    rows, *others = inner
    if rows.ndim == 0 or rows.size == 0:
        return _read_cover(dataset, inner)
    order = np.argsort(rows, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(rows[order]) > _FAR) + 1)
    if len(groups) == 1:
        return _read_cover(dataset, inner)
    block = np.empty(outer_shape(inner), dataset.dtype)
    for group in groups:
        block[group] = _read_cover(dataset, [rows[group], *others])
    return block


def _read_cover(dataset: h5py.Dataset, inner: Sequence[np.ndarray]) -> np.ndarray:
    covers = tuple(_cover(rows) for rows in inner)
    block = np.asarray(dataset[covers])
    # From the last axis, so that a dropped axis does not move those still to come.
    for axis in reversed(range(len(inner))):
        block = np.take(block, inner[axis] - covers[axis].start, axis=axis)
    return block


def _cover(rows: np.ndarray) -> slice:
    return slice(int(rows.min()), int(rows.max()) + 1) if rows.size else slice(0, 0)


def outer_shape(inner: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Shape of what `read_positions` returns."""
    return tuple(size for rows in inner for size in rows.shape)
