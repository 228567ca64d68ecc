"""All blocks of an estimate's matrices: divided over threads and ranks, gathered in order, kept in memory or a file."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from bif_lightning.distributed.ranks import Ranks
from bif_lightning.estimation.blocks import Block, BlockBuilder, MatrixShape
from bif_lightning.results.estimate import LabelMeans
from bif_lightning.statistics.diagnostics import group_agreement, score_agreement, top_stability
from bif_lightning.statistics.label_means import Labels as Labels
from bif_lightning.storage.scratch import MATRIX_BYTES, ScratchArrays, Spec

ROUND_BYTES = 1 << 26
"""Memory of the blocks of one round on all ranks: 64 MB. One round is computed while the previous one is stored."""

_WHAT = "the matrices"


class Matrices:
    """Influence and correlation of all train rows on all columns, with their standard errors.

    Blocks are added in a fixed order. Therefore sums over them do not depend on which rank computed which block.

    Args:
        builder: builder of the blocks.
        matrix_bytes: bytes that the matrices may take in memory; larger ones go to a temporary file.
        scratch: folder of that file; None for the default of `tempfile`.

    Raises:
        OSError: the disk has no space for the file.
    """

    def __init__(self, builder: BlockBuilder, *, matrix_bytes: int = MATRIX_BYTES, scratch: Path | None = None) -> None:
        layout = builder.layout
        self._builder, self._storage = builder, ScratchArrays(specs(layout), matrix_bytes, scratch)
        *matrices, self._early, self._late = self._storage.arrays
        self.influence, self.influence_error, self.correlation, self.correlation_error = matrices[:4]
        end = 6 if layout.conditioned else 4
        self.conditioned, self.conditioned_error = matrices[4:end] or (None, None)
        self.influence_draws, self.influence_draws_error = matrices[end:] or (None, None)
        self.train_mean, self.train_std = np.empty(layout.train), np.empty(layout.train)
        self.column_mean, self.column_std = np.empty(layout.columns), np.empty(layout.columns)
        self._sums = builder.grouping.zero(layout.batches) if builder.grouping else None

    def take(self, blocks: Sequence[Block]) -> None:
        """Store the next blocks."""
        for block in blocks:
            for place, part in enumerate((*block.matrices, block.early, block.late)):
                self._storage.write(place, block.rows, part)
            self.train_mean[block.rows], self.train_std[block.rows] = block.train_mean, block.train_std
            self.column_mean[:], self.column_std[:] = block.column_mean, block.column_std
            if self._sums and block.sums:
                self._sums.add_(block.sums)

    def finish(self) -> None:
        """Close the storage after the last block."""
        self._storage.close()

    @property
    def ridge(self) -> float | None:
        """Error variance r of the train losses in the conditioned influence, nat²; None without it."""
        conditioner = self._builder.covariances.conditioner
        return None if conditioner is None else conditioner.ridge

    def agreement(self) -> tuple[float, float]:
        """Agreement of influence between two halves of the chains (or draws): of ranks, and of sums over groups."""
        halves = torch.from_numpy(self._early), torch.from_numpy(self._late)
        return score_agreement(*halves), group_agreement(*halves)

    def stability(self) -> Float64[np.ndarray, " query"]:
        """Share of each query's extremes that both halves of the draws have; NaN for queries that are not compared."""
        layout = self._builder.layout
        out = np.full(layout.queries, np.nan)
        out[layout.scored] = top_stability(torch.from_numpy(self._early), torch.from_numpy(self._late)).numpy()
        return out

    def label_means(self) -> LabelMeans | None:
        """Means over pairs of labels; None without labels."""
        if self._builder.grouping is None or self._sums is None:
            return None
        return self._builder.grouping.means(
            self._sums, self._builder.covariances.share, self._builder.covariances.errors
        )


def compute(
    builder: BlockBuilder,
    workers: int,
    ranks: Ranks,
    *,
    everywhere: bool = True,
    matrix_bytes: int = MATRIX_BYTES,
    scratch: Path | None = None,
) -> Matrices | None:
    """Compute all matrices; every rank computes a share of the blocks. Collective.

    Args:
        builder: builder of the blocks, the same on every rank.
        workers: threads of this rank.
        ranks: the ranks.
        everywhere: return the matrices on every rank; otherwise on rank 0, and None on the others.
        matrix_bytes, scratch: see `Matrices`.

    Raises:
        OSError: the disk has no space for the temporary file, or failed.
        PeerFailedError: another rank failed.
    """
    with ranks.collective(_WHAT):
        kept = everywhere or ranks.rank == 0
        matrices = Matrices(builder, matrix_bytes=matrix_bytes, scratch=scratch) if kept else None
    waiting: list[Block] = []
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for rows in rounds(builder.layout, ranks.world_size):
            with ranks.collective(_WHAT):
                own = [pool.submit(builder.block, each) for each in rows[ranks.rank :: ranks.world_size]]
                if matrices:  # store the previous round while the next one is computed
                    matrices.take(waiting)
                done = [future.result() for future in own]
            waiting = _gather_blocks(ranks, done, everywhere)
    with ranks.collective(_WHAT):
        if matrices:
            matrices.take(waiting)
            matrices.finish()
    return matrices


def rounds(layout: MatrixShape, world_size: int) -> list[list[slice]]:
    """Group the blocks into rounds that are computed and exchanged together, of bounded size, the same on all ranks."""
    each = max(2, ROUND_BYTES // (layout.block_bytes * world_size))
    blocks, size = layout.blocks(), each * world_size
    return [blocks[start : start + size] for start in range(0, len(blocks), size)]


def specs(layout: MatrixShape) -> list[Spec]:
    """Shapes and dtypes of the stored arrays: the matrices, and the scores by either half of the draws."""
    matrix = Spec((layout.train, layout.columns), np.float32)
    return [matrix] * layout.matrices + [Spec((layout.train, len(layout.scored)), np.float64)] * 2


def _gather_blocks(ranks: Ranks, own: list[Block], everywhere: bool) -> list[Block]:
    """Gather the blocks of all ranks, in order; empty on ranks that do not keep them."""
    parts = ranks.gather(own)
    if everywhere:
        parts = ranks.broadcast(parts)
    return sorted((block for part in parts or () for block in part), key=lambda block: block.rows.start)


def labels_of(train: Any, query: Any, train_size: int, query_size: int) -> Labels | None:
    """Class indices of both axes; None if either is missing.

    Raises:
        ValueError: the labels are not one whole number for each example.
    """
    if train is None or query is None:
        return None
    of_train, of_query = np.asarray(train), np.asarray(query)
    for values, size, name in ((of_train, train_size, "train"), (of_query, query_size, "query")):
        if values.shape != (size,) or not np.issubdtype(values.dtype, np.integer):
            raise ValueError(
                f"{name}_labels has shape {values.shape} and dtype {values.dtype}; give one whole number for each of "
                f"the {size} {name} examples, -1 for none"
            )
    return Labels(of_train, of_query)
