"""A block of train rows of the matrices, from the records of all chains: what one thread computes at a time.

Which rows make a block depends on the sizes alone, not on threads or ranks, and so the bits do not either.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

from bif_lightning.config import Centring, Ridge
from bif_lightning.curvature.closed_form import LinearizedPosterior
from bif_lightning.sampling.trace import ChainTrace
from bif_lightning.statistics.conditioned import KalmanUpdate
from bif_lightning.statistics.influence import BatchCovariances, correlation, influence, mean, products
from bif_lightning.statistics.label_means import LabelIndex, Labels, LabelSums
from bif_lightning.statistics.moments import Moments, merge, stack
from bif_lightning.statistics.standard_errors import (
    ErrorModel,
    chain_mean_covariance,
    correlation_bias,
    correlation_error,
    fit_error_model,
    independent,
    influence_error,
    merge_batches,
    no_bias,
)

_TILE_ENTRIES = 1 << 18  # float64 numbers of one batch-by-batch tile: 2 MB, a few of which stay in cache
_BLOCK_ENTRIES = 1 << 19  # of each matrix: 8 MB for the four, which travel between ranks together
_BLOCKS = 64  # at least, where there are rows enough: work for many threads and ranks
_SAMPLED = 64  # rows, and columns, whose draws show how long chains remember
_SAMPLE_ENTRIES = 1 << 20  # float64 numbers of all batches of those rows
_AGREEMENT_QUERIES = 64  # ranking every query of a large set would take longer than its matrix


@dataclass(frozen=True)
class MatrixShape:
    """Sizes of an estimate.

    Attributes:
        train, columns, queries: rows; columns of all observables; those of them that are query losses, which come
            first.
        batches: of draws, over all chains.
        cells: blocks of equal labels.
        conditioned: whether there is a conditioned influence.
    """

    train: int
    columns: int
    queries: int
    batches: int
    cells: int = 0
    conditioned: bool = False

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
        return rows * (4 * self.matrices * self.columns + 2 * 8 * len(self.scored)) + 2 * 8 * self.batches * self.cells

    @property
    def matrices(self) -> int:
        """Influence, correlation and, where there is one, conditioned influence; each with its standard error."""
        return 6 if self.conditioned else 4

    @property
    def _tile(self) -> int:
        return max(1, _TILE_ENTRIES // (self.batches * self.columns))


@dataclass(frozen=True)
class Block:
    """What is known of some train rows.

    Attributes:
        rows: which.
        influence, correlation, and their errors.
        early, late: influence from one half of the draws, and from the other, on the scored queries.
        train_mean, train_std: of their losses.
        column_mean, column_std: of all columns, the same in every block.
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
    sums: LabelSums | None
    conditioned: Float32[np.ndarray, "row column"] | None = None
    conditioned_error: Float32[np.ndarray, "row column"] | None = None

    @property
    def matrices(self) -> tuple[np.ndarray, ...]:
        """The matrices, each with its error."""
        always = self.influence, self.influence_error, self.correlation, self.correlation_error
        if self.conditioned is None or self.conditioned_error is None:
            return always
        return *always, self.conditioned, self.conditioned_error


@dataclass(frozen=True)
class BlockBuilder:
    """Makes blocks from the records of all chains.

    Attributes:
        records: of the chains, in their order.
        layout: sizes.
        centring: of the draws.
        grouping: by labels; None without them.
        precision: how errors are made.
        conditioner: makes the conditioned influence; None where there is none.
        linear: what is known of the losses' linear parts; None where nothing is.
    """

    records: Sequence[ChainTrace]
    layout: MatrixShape
    centring: Centring
    grouping: LabelIndex | None
    precision: ErrorModel
    conditioner: KalmanUpdate | None = None
    linear: LinearizedPosterior | None = None

    @classmethod
    def of(
        cls,
        records: Sequence[ChainTrace],
        shape: tuple[int, int, int],
        centring: Centring,
        labels: Labels | None = None,
        *,
        ridge: Ridge = None,
        paired: bool = False,
        linear: LinearizedPosterior | None = None,
    ) -> "BlockBuilder":
        """Of an estimate with these train rows, columns, and query losses (the first of the columns).

        Args:
            ridge: of the conditioned influence, made where draws are kept and their linear parts are not known.
            paired: draws are antithetic pairs.
        """
        grouping = None if labels is None else LabelIndex(labels)
        # On one thread, as blocks are: bits must not depend on how many there are.
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            precision = pool.submit(_precision, records, shape, centring).result()
            known = ridge if linear is None and records[0].traces else None
            conditioner = pool.submit(_conditioner, records, known, paired).result()
        cells = grouping.cells if grouping else 0
        if linear is not None:
            precision = independent(linear.groups)
        batches = len(records) * precision.parts if linear is None else linear.groups
        layout = MatrixShape(*shape, batches, cells, conditioner is not None)
        return cls(records, layout, centring, grouping, precision, conditioner, linear)

    @property
    def share(self) -> Float64[Tensor, " batch"]:
        """n_k/N, each batch's share of all draws."""
        if self.linear is not None:
            return torch.full((self.linear.groups,), 1 / self.linear.groups, dtype=torch.float64)
        lengths = torch.tensor([list(record.lengths) for record in self.records]).double()
        merged_lengths = torch.stack([chunk.sum(1) for chunk in lengths.tensor_split(self.precision.parts, 1)], 1)
        return merged_lengths.flatten() / merged_lengths.sum()

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
            sums=self.grouping.zero(of.batches) if self.grouping else None,
            conditioned=matrix() if self.conditioner else None,
            conditioned_error=matrix() if self.conditioner else None,
        )

    def _fill(self, block: Block, tile: slice) -> None:
        parts = stack([record.moments(tile) for record in self.records])
        if self.linear is None:
            parts = merge_batches(parts, self.precision.parts)
        draws, lacking = products(parts, self.centring), chain_mean_covariance(parts, self.centring)
        if self.linear:
            draws, lacking = self.linear.products(tile), no_bias(lacking)
        covariance, (corr, moved) = influence(draws), correlation(draws)
        biases = lacking.covariance, correlation_bias(corr.value, draws, lacking)
        error = influence_error(covariance.standard_error, corr.value, self.precision.influence, biases[0])
        corr_error = correlation_error(corr.standard_error, self.precision.correlation, biases[1])
        here = slice(tile.start - block.rows.start, tile.stop - block.rows.start)
        block.influence[here] = covariance.value.float().numpy()
        block.influence_error[here] = error.float().numpy()
        block.correlation[here] = corr.value.float().numpy()
        block.correlation_error[here] = corr_error.float().numpy()
        if self.conditioner and block.conditioned is not None and block.conditioned_error is not None:
            entries = self.conditioner.rows(tile)
            block.conditioned[here] = entries.value.float().numpy()
            block.conditioned_error[here] = entries.standard_error.float().numpy()
        _fill_margins(block, here, parts, draws)
        groups = parts.count.shape if self.linear is None else (1, self.linear.groups)
        for scores, half in zip((block.early, block.late), _halves(*groups), strict=True):
            share = draws.share[half] / draws.share[half].sum()
            scores[here] = -mean(draws.covariance[half][:, :, self.layout.scored], share).numpy()
        if self.grouping and block.sums:
            self.grouping.add_rows_(block.sums, tile, draws, moved, biases)


def _conditioner(records: Sequence[ChainTrace], ridge: Ridge, paired: bool) -> KalmanUpdate | None:
    if ridge is None:
        return None
    train, columns = [record.train[0] for record in records], [record.columns[0] for record in records]
    return KalmanUpdate.of(train, columns, ridge, paired=paired)


def _precision(records: Sequence[ChainTrace], shape: tuple[int, int, int], centring: Centring) -> ErrorModel:
    """How errors are made, from evenly spaced rows and columns."""
    batches = sum(len(record.lengths) for record in records)
    rows = max(1, min(_SAMPLED, _SAMPLE_ENTRIES // (batches * shape[1])))
    sample = stack([record.moments(slice(0, shape[0], -(-shape[0] // rows))) for record in records])
    columns = slice(0, shape[1], -(-shape[1] // _SAMPLED))
    train = sample.count, sample.train_mean, sample.column_mean[..., columns], sample.train_square
    return fit_error_model(Moments(*train, sample.column_square[..., columns], sample.comoment[..., columns]), centring)


def _fill_margins(block: Block, here: slice, parts: Moments, draws: BatchCovariances) -> None:
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
