"""Mean-pools ordered rows and columns of a matrix to the pixels of a screen."""

import numpy as np
from jaxtyping import Float, Int


def pooled(
    values: Float[np.ndarray, "train query"],
    rows: Int[np.ndarray, " row"],
    columns: Int[np.ndarray, " column"],
    height: int,
    width: int,
) -> Float[np.ndarray, "height width"]:
    """Means over height x width blocks, as even as can be, of `values[rows][:, columns]`; NaN entries are left out.

    Args:
        values: the matrix.
        rows, columns: positions in it, in the order that is shown.
        height, width: blocks along each axis, at most as many as there are rows and columns.

    Returns:
        float32; NaN where a block has no other entry.
    """
    row_edges, column_edges = edges(len(rows), height), edges(len(columns), width)
    sums = _row_sums(values, rows, row_edges)
    if not np.isfinite(sums).all():
        return _careful(values, rows, columns, row_edges, column_edges)
    total = np.add.reduceat(sums[:, columns], column_edges[:-1], axis=1, dtype=np.float64)
    count = np.multiply.outer(np.diff(row_edges), np.diff(column_edges))
    return (total / count).astype(np.float32)


def edges(size: int, blocks: int) -> Int[np.ndarray, " edge"]:
    """First entry of each block, and the size.

    >>> edges(10, 4).tolist()
    [0, 2, 5, 7, 10]
    """
    return np.linspace(0, size, blocks + 1).astype(np.int64)


def _row_sums(values: np.ndarray, rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
    sums = np.empty((len(starts) - 1, values.shape[1]), np.float32)
    # Some blocks at a time: the picked rows then stay in the processor's cache.
    step = max(1, 256 * (len(starts) - 1) // len(rows))
    for first in range(0, len(sums), step):
        part = starts[first : first + step + 1]
        np.add.reduceat(values[rows[part[0] : part[-1]]], part[:-1] - part[0], axis=0, out=sums[first : first + step])
    return sums


def _careful(
    values: np.ndarray, rows: np.ndarray, columns: np.ndarray, row_edges: np.ndarray, column_edges: np.ndarray
) -> np.ndarray:
    """The same where some entries are not finite."""
    known = np.isfinite(values)
    filled = np.where(known, values, np.float32(0))
    total, count = (
        np.add.reduceat(_row_sums(each, rows, row_edges)[:, columns], column_edges[:-1], axis=1, dtype=np.float64)
        for each in (filled, known.astype(np.float32))
    )
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0).astype(np.float32)
