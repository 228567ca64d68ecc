"""Ordering of a matrix by label, and pooling to the pixels of a screen."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Axis:
    """One axis of a pooled matrix.

    Attributes:
        order: position in the original axis of each example, ordered by label and stable within one.
        edges: first example (in that order) of each block, and the number of examples at the end.
        labels: the label of each run of blocks, ascending, −1 (no label) last; empty without labels.
        starts: first block of each run, and the number of blocks at the end.
    """

    order: Int[np.ndarray, " sample"]
    edges: Int[np.ndarray, " edge"]
    labels: tuple[int, ...]
    starts: Int[np.ndarray, " start"]

    @property
    def largest_block(self) -> int:
        """Largest number of examples in a block."""
        return int(np.diff(self.edges).max(initial=1))


def axis_of(labels: Int[np.ndarray, " sample"] | None, size: int, blocks: int) -> Axis:
    """Order `size` examples by label and cut every run of one label into even blocks, about `blocks` in all."""
    known = np.zeros(size, np.int64) if labels is None else labels
    order = np.lexsort((known, known < 0))
    values, first, counts = np.unique(known[order], return_index=True, return_counts=True)
    by_place = np.argsort(first)
    values, first, counts = values[by_place], first[by_place], counts[by_place]
    per_run = _blocks_per_run(counts, blocks)
    edges = np.concatenate(
        [
            start + np.linspace(0, count, n + 1)[:-1].round()
            for start, count, n in zip(first, counts, per_run, strict=True)
        ]
        + [[size]]
    ).astype(np.int64)
    names = () if labels is None else tuple(int(value) for value in values)
    return Axis(order, edges, names, np.concatenate([[0], np.cumsum(per_run)]))


def _blocks_per_run(counts: Int[np.ndarray, " run"], blocks: int) -> Int[np.ndarray, " run"]:
    block = max(1, -(-int(counts.sum()) // blocks))
    while (-(-counts // block)).sum() > blocks and block < counts.max():
        block += 1
    return -(-counts // block)


def pool(
    matrix: Float[np.ndarray, "train query"], rows: Axis, columns: Axis
) -> Float[np.ndarray, "row_block column_block"]:
    """Mean over each block of the ordered matrix without NaN entries; NaN where a block has no others."""
    total, count = (np.zeros((len(rows.edges) - 1, len(columns.edges) - 1), kind) for kind in (np.float64, np.int64))
    # A row of blocks at a time: a matrix may be larger than memory.
    for block, (start, end) in enumerate(pairwise(rows.edges.tolist())):
        ordered = matrix[rows.order[start:end]][:, columns.order]
        finite = np.isfinite(ordered)
        total[block] = _block_sums(np.where(finite, ordered, 0.0), columns, total.dtype)
        count[block] = _block_sums(finite, columns, count.dtype)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _block_sums(values: np.ndarray, columns: Axis, dtype: np.dtype) -> np.ndarray:
    return np.add.reduceat(np.add.reduce(values, axis=0, dtype=dtype), columns.edges[:-1], dtype=dtype)


def spaced(positions: Sequence[float], gap: float) -> list[int]:
    """Indices of ascending positions to keep, so that no two kept ones lie closer than `gap`."""
    kept: list[int] = []
    for place, position in enumerate(positions):
        if not kept or position - positions[kept[-1]] >= gap:
            kept.append(place)
    return kept
