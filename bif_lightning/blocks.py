"""A block of train rows of the matrices, from the records of all chains: what one thread computes at a time.

Which rows make a block depends on the sizes alone, not on threads or ranks, and so the bits do not either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

from bif_lightning.config import Centring
from bif_lightning.influence import Products, correlation, influence, mean, products, spreads
from bif_lightning.label_sums import Grouping, Labels, LabelSums
from bif_lightning.moments import Moments, merge, stack
from bif_lightning.recorder import Record

_TILE_ENTRIES = 1 << 18  # float64 numbers of one batch-by-batch tile: 2 MB, a few of which stay in cache
_BLOCK_ENTRIES = 1 << 19  # of each matrix: 8 MB for the four, which travel between ranks together
_BLOCKS = 64  # at least, where there are rows enough: work for many threads and ranks
_AGREEMENT_QUERIES = 64  # ranking every query of a large set would take longer than its matrix


@dataclass(frozen=True)
class Layout:
    """Sizes of an estimate.

    Attributes:
        train, columns, queries: rows; columns of all observables; those of them that are query losses, which come
            first.
        batches: of draws, over all chains.
        cells: blocks of equal labels.
    """

    train: int
    columns: int
    queries: int
    batches: int
    cells: int = 0

    @property
    def scored(self) -> list[int]:
        """The queries whose scores are compared between two halves of the draws: at most 64, evenly spaced."""
        return torch.linspace(0, self.queries - 1, min(self.queries, _AGREEMENT_QUERIES)).long().tolist()

    def tiles(self, rows: slice) -> list[slice]:
        """These rows in pieces that fit into a cache."""
        height = self._tile
        return [slice(start, min(start + height, rows.stop)) for start in range(rows.start, rows.stop, height)]

    def blocks(self) -> list[slice]:
        """All rows in pieces of whole tiles."""
        rows = min(-(-self.train // _BLOCKS), max(1, _BLOCK_ENTRIES // self.columns))
        height = -(-rows // self._tile) * self._tile
        return [slice(start, min(start + height, self.train)) for start in range(0, self.train, height)]

    @property
    def block_bytes(self) -> int:
        """Memory of one finished block."""
        rows = self.blocks()[0].stop
        return rows * (4 * 4 * self.columns + 2 * 8 * len(self.scored)) + 2 * 8 * self.batches * self.cells

    @property
    def _tile(self) -> int:
        return max(1, _TILE_ENTRIES // (self.batches * self.columns))


@dataclass(frozen=True)
class Block:
    """What is known of some train rows.

    Attributes:
        rows: which.
        influence, correlation, and their errors (from single batches of draws: not yet inflated).
        early, late: influence from one half of the draws, and from the other, on the scored queries.
        train_mean, train_std: of their losses.
        column_mean, column_std: of all columns, the same in every block.
        spreads: of each tile (`influence.spreads`).
        sums: over blocks of equal labels; None without labels.
    """

    rows: slice
    influence: Float32[np.ndarray, "row column"]
    influence_error: Float32[np.ndarray, "row column"]
    correlation: Float32[np.ndarray, "row column"]
    correlation_error: Float32[np.ndarray, "row column"]
    early: Float64[np.ndarray, "row scored"]
    late: Float64[np.ndarray, "row scored"]
    train_mean: Float64[np.ndarray, " row"]
    train_std: Float64[np.ndarray, " row"]
    column_mean: Float64[np.ndarray, " column"]
    column_std: Float64[np.ndarray, " column"]
    spreads: list[list[float]]
    sums: LabelSums | None


@dataclass(frozen=True)
class Maker:
    """Makes blocks from the records of all chains.

    Attributes:
        records: of the chains, in their order.
        layout: sizes.
        centring: of the draws.
        grouping: by labels; None without them.
    """

    records: Sequence[Record]
    layout: Layout
    centring: Centring
    grouping: Grouping | None

    @classmethod
    def of(
        cls, records: Sequence[Record], shape: tuple[int, int, int], centring: Centring, labels: Labels | None = None
    ) -> "Maker":
        """Of an estimate with these train rows, columns, and query losses (the first of the columns)."""
        grouping = None if labels is None else Grouping(labels)
        batches = sum(len(record.lengths) for record in records)
        return cls(records, Layout(*shape, batches, grouping.cells if grouping else 0), centring, grouping)

    @property
    def share(self) -> Float64[Tensor, " batch"]:
        """n_k/N, each batch's share of all draws."""
        lengths = torch.tensor([length for record in self.records for length in record.lengths]).double()
        return lengths / lengths.sum()

    def block(self, rows: slice) -> Block:
        """Compute these rows, tile by tile."""
        block = self._empty(rows)
        for tile in self.layout.tiles(rows):
            self._fill(block, tile)
        return block

    def _empty(self, rows: slice) -> Block:
        height, of = rows.stop - rows.start, self.layout

        def matrix() -> np.ndarray:
            return np.empty((height, of.columns), np.float32)

        return Block(
            rows=rows,
            influence=matrix(),
            influence_error=matrix(),
            correlation=matrix(),
            correlation_error=matrix(),
            early=np.empty((height, len(of.scored))),
            late=np.empty((height, len(of.scored))),
            train_mean=np.empty(height),
            train_std=np.empty(height),
            column_mean=np.empty(of.columns),
            column_std=np.empty(of.columns),
            spreads=[],
            sums=self.grouping.zero(of.batches) if self.grouping else None,
        )

    def _fill(self, block: Block, tile: slice) -> None:
        parts = stack([record.moments(tile) for record in self.records])
        draws = products(parts, self.centring)
        covariance, (corr, moved) = influence(draws), correlation(draws)
        here = slice(tile.start - block.rows.start, tile.stop - block.rows.start)
        block.influence[here] = covariance.value.float().numpy()
        block.influence_error[here] = covariance.standard_error.float().numpy()
        block.correlation[here] = corr.value.float().numpy()
        block.correlation_error[here] = corr.standard_error.float().numpy()
        _fill_margins(block, here, parts, draws)
        for scores, half in zip((block.early, block.late), _halves(*parts.count.shape), strict=True):
            share = draws.share[half] / draws.share[half].sum()
            scores[here] = -mean(draws.covariance[half][:, :, self.layout.scored], share).numpy()
        block.spreads.append(spreads(moved, draws.share, len(self.records)))
        if self.grouping and block.sums:
            self.grouping.add_rows_(block.sums, tile, draws, moved)


def _fill_margins(block: Block, here: slice, parts: Moments, draws: Products) -> None:
    grand = merge(merge(parts))
    block.train_mean[here] = grand.train_mean.numpy()
    block.train_std[here] = mean(draws.train_variance, draws.share).sqrt().numpy()
    block.column_mean[:] = grand.column_mean.numpy()
    block.column_std[:] = mean(draws.column_variance, draws.share).sqrt().numpy()


def _halves(chains: int, batches: int) -> tuple[Bool[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """Two halves of all batches: even and odd chains, or early and late batches of a single chain (maybe none)."""
    side = torch.arange(chains) % 2 if chains > 1 else torch.arange(batches) >= (batches + 1) // 2
    mask = side.bool().repeat_interleave(batches) if chains > 1 else side
    return ~mask, mask
