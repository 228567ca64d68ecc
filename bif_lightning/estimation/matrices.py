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
"""Memory of the blocks of one round, of all ranks together: 64 MB. One round is computed while the last is stored."""

_WHAT = "the matrices"


class Matrices:
    """Influence and correlation of all train rows on all columns, with their standard errors.

    Blocks are taken in their order, so that sums over them do not depend on who computed which.

    Args:
        maker: of the blocks.
        matrix_bytes: what the matrices may take in memory; beyond, they lie in a temporary file.
        scratch: folder of that file; None for the default of `tempfile`.

    Raises:
        OSError: there is no room for the file.
    """

    def __init__(self, maker: BlockBuilder, *, matrix_bytes: int = MATRIX_BYTES, scratch: Path | None = None) -> None:
        layout = maker.layout
        self._maker, self._storage = maker, ScratchArrays(specs(layout), matrix_bytes, scratch)
        *matrices, self._early, self._late = self._storage.arrays
        self.influence, self.influence_error, self.correlation, self.correlation_error = matrices[:4]
        self.conditioned, self.conditioned_error = matrices[4:] if layout.conditioned else (None, None)
        self.train_mean, self.train_std = np.empty(layout.train), np.empty(layout.train)
        self.column_mean, self.column_std = np.empty(layout.columns), np.empty(layout.columns)
        self._sums = maker.grouping.zero(layout.batches) if maker.grouping else None

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
        """All blocks are in."""
        self._storage.close()

    @property
    def ridge(self) -> float | None:
        """r of the conditioned influence, nat²; None where there is none."""
        conditioner = self._maker.covariances.conditioner
        return None if conditioner is None else conditioner.ridge

    def agreement(self) -> tuple[float, float]:
        """Of the influence from one half of the chains (or draws) with the other: on ranks, and on groups."""
        halves = torch.from_numpy(self._early), torch.from_numpy(self._late)
        return score_agreement(*halves), group_agreement(*halves)

    def stability(self) -> Float64[np.ndarray, " query"]:
        """Share of each query's extremes by one half of the draws that the other finds; NaN for those not compared."""
        layout = self._maker.layout
        out = np.full(layout.queries, np.nan)
        out[layout.scored] = top_stability(torch.from_numpy(self._early), torch.from_numpy(self._late)).numpy()
        return out

    def label_means(self) -> LabelMeans | None:
        """Block means over labels, where labels were given."""
        if self._maker.grouping is None or self._sums is None:
            return None
        return self._maker.grouping.means(self._sums, self._maker.covariances.share, self._maker.covariances.errors)


def compute(
    maker: BlockBuilder,
    workers: int,
    ranks: Ranks,
    *,
    everywhere: bool = True,
    matrix_bytes: int = MATRIX_BYTES,
    scratch: Path | None = None,
) -> Matrices | None:
    """All matrices: every rank computes a share of the blocks. Collective.

    Args:
        maker: of the blocks, the same on every rank.
        workers: threads of this rank.
        ranks: the ranks.
        everywhere: every rank gets the matrices; else rank 0 alone does, and the others get None.
        matrix_bytes, scratch: see `Matrices`.

    Raises:
        OSError: there is no room for the temporary file, or the disk failed.
        PeerFailedError: another rank failed.
    """
    with ranks.collective(_WHAT):
        kept = everywhere or ranks.rank == 0
        matrices = Matrices(maker, matrix_bytes=matrix_bytes, scratch=scratch) if kept else None
    waiting: list[Block] = []
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for rows in rounds(maker.layout, ranks.world_size):
            with ranks.collective(_WHAT):
                own = [pool.submit(maker.block, each) for each in rows[ranks.rank :: ranks.world_size]]
                if matrices:  # the blocks of the last round are stored while the next are computed
                    matrices.take(waiting)
                done = [future.result() for future in own]
            waiting = _shared(ranks, done, everywhere)
    with ranks.collective(_WHAT):
        if matrices:
            matrices.take(waiting)
            matrices.finish()
    return matrices


def rounds(layout: MatrixShape, world_size: int) -> list[list[slice]]:
    """The blocks in groups that are computed and handed over together, of bounded size and alike on all ranks."""
    each = max(2, ROUND_BYTES // (layout.block_bytes * world_size))
    blocks, size = layout.blocks(), each * world_size
    return [blocks[start : start + size] for start in range(0, len(blocks), size)]


def specs(layout: MatrixShape) -> list[Spec]:
    """The stored arrays: the matrices, and the scores from either half of the draws."""
    matrix = Spec((layout.train, layout.columns), np.float32)
    return [matrix] * layout.matrices + [Spec((layout.train, len(layout.scored)), np.float64)] * 2


def _shared(ranks: Ranks, own: list[Block], everywhere: bool) -> list[Block]:
    """The blocks of all ranks in order, where they are kept; else none."""
    parts = ranks.gather(own)
    if everywhere:
        parts = ranks.broadcast(parts)
    return sorted((block for part in parts or () for block in part), key=lambda block: block.rows.start)


def labels_of(train: Any, query: Any, train_size: int, query_size: int) -> Labels | None:
    """Class indices of both axes; None where either is missing.

    Raises:
        ValueError: not one whole number for each example.
    """
    if train is None or query is None:
        return None
    of_train, of_query = np.asarray(train), np.asarray(query)
    for values, size, name in ((of_train, train_size, "train"), (of_query, query_size, "query")):
        if values.shape != (size,) or not np.issubdtype(values.dtype, np.integer):
            raise ValueError(
                f"{name}_labels: shape {values.shape}, {values.dtype}; give one whole number for each of the "
                f"{size} {name} examples, -1 for none"
            )
    return Labels(of_train, of_query)
