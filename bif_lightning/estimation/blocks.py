"""Blocks of train rows of the matrices, computed from covariances; one thread computes one block at a time.

The division into blocks depends on the sizes alone. Therefore results are bitwise the same on any number of threads and
ranks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64

from bif_lightning.sampling.covariances import Covariances, RowCovariances
from bif_lightning.statistics.influence import Estimates, correlation, correlation_values, influence
from bif_lightning.statistics.label_means import LabelIndex, Labels, LabelSums
from bif_lightning.statistics.moments import merge_means
from bif_lightning.statistics.standard_errors import ErrorScale, correlation_bias, correlation_error, influence_error

_TILE_ENTRIES = 1 << 18  # float64 numbers of one tile for all batches: 2 MB, a few of which stay in cache
_BLOCK_ENTRIES = 1 << 19  # of each matrix: 8 MB for four matrices, which ranks exchange together
_BLOCKS = 64  # fewest blocks if there are enough rows, as work for many threads and ranks
_AGREEMENT_QUERIES = 64  # ranking every query of a large set would take longer than its matrix


@dataclass(frozen=True)
class MatrixShape:
    """Sizes of an estimate.

    Attributes:
        train: number of rows.
        columns: number of columns of all observables.
        queries: number of columns that are query losses; they come first.
        batches: number of batches of draws, over all chains.
        cells: number of pairs of a train label and a query label.
        conditioned: whether there is a conditioned influence.
        drawn_batches: number of batches behind the influence of the draws alone; 0 where there is none.
    """

    train: int
    columns: int
    queries: int
    batches: int
    cells: int = 0
    conditioned: bool = False
    drawn_batches: int = 0

    @property
    def scored(self) -> list[int]:
        """The queries whose scores are compared between two halves of the draws: at most 64, evenly spaced."""
        return torch.linspace(0, self.queries - 1, min(self.queries, _AGREEMENT_QUERIES), device="cpu").long().tolist()

    def tiles(self, rows: slice) -> list[slice]:
        """Divide rows into tiles that fit into a cache."""
        height = self._tile
        return [slice(start, min(start + height, rows.stop)) for start in range(rows.start, rows.stop, height)]

    def blocks(self) -> list[slice]:
        """Divide all rows into blocks of whole tiles."""
        rows = min(-(-self.train // _BLOCKS), max(1, _BLOCK_ENTRIES // self.columns))
        height = -(-rows // self._tile) * self._tile
        return [slice(start, min(start + height, self.train)) for start in range(0, self.train, height)]

    @property
    def block_bytes(self) -> int:
        """Bytes of one computed block."""
        rows = self.blocks()[0].stop
        return rows * (4 * self.matrices * self.columns + 2 * 8 * len(self.scored)) + 2 * 8 * self.batches * self.cells

    @property
    def matrices(self) -> int:
        """Number of matrices: influence, correlation, those that not all estimates have, and their standard errors."""
        return 2 * (2 + self.conditioned + (self.drawn_batches > 0))

    @property
    def _tile(self) -> int:
        return max(1, _TILE_ENTRIES // (max(self.batches, self.drawn_batches) * self.columns))


@dataclass(frozen=True)
class Block:
    """Results for some train rows.

    Attributes:
        rows: the train rows.
        influence, correlation, conditioned, influence_draws: the matrices; `…_error` are their standard errors.
        early, late: influence on the scored queries by either half of the draws.
        train_mean, train_std: mean and standard deviation of the train losses.
        column_mean, column_std: mean and standard deviation of all columns, the same in every block.
        sums: sums over pairs of labels; None without labels.
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
    influence_draws: Float32[np.ndarray, "row column"] | None = None
    influence_draws_error: Float32[np.ndarray, "row column"] | None = None

    @property
    def matrices(self) -> tuple[np.ndarray, ...]:
        """The matrices, each followed by its standard error."""
        always = self.influence, self.influence_error, self.correlation, self.correlation_error
        further = self.conditioned, self.conditioned_error, self.influence_draws, self.influence_draws_error
        return *always, *(matrix for matrix in further if matrix is not None)


@dataclass(frozen=True)
class BlockBuilder:
    """Computes blocks from covariances.

    Attributes:
        covariances: covariances of train losses and columns.
        layout: sizes of the matrices.
        grouping: the labels of both axes; None without labels.
    """

    covariances: Covariances
    layout: MatrixShape
    grouping: LabelIndex | None

    @classmethod
    def of(cls, covariances: Covariances, shape: tuple[int, int, int], labels: Labels | None = None) -> "BlockBuilder":
        """Create the builder of an estimate; `shape` is the number of train rows, columns, and query losses."""
        grouping = None if labels is None else LabelIndex(labels)
        cells = grouping.cells if grouping else 0
        conditioned = covariances.conditioner is not None
        drawn = 0 if covariances.drawn is None else len(covariances.drawn.share)
        layout = MatrixShape(*shape, len(covariances.share), cells, conditioned, drawn)
        return cls(covariances, layout, grouping)

    def block(self, rows: slice) -> Block:
        """Compute a block, tile by tile."""
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
            conditioned=matrix() if of.conditioned else None,
            conditioned_error=matrix() if of.conditioned else None,
            influence_draws=matrix() if of.drawn_batches else None,
            influence_draws_error=matrix() if of.drawn_batches else None,
        )

    def _fill(self, block: Block, tile: slice) -> None:
        found, errors = self.covariances.rows(tile), self.covariances.errors
        draws = found.batches
        covariance, (corr, moved) = influence(draws), correlation(draws.standardized())
        biases = found.chain_means.covariance, correlation_bias(corr.value, draws, found.chain_means)
        error = influence_error(covariance.standard_error, corr.value, errors.influence, biases[0])
        corr_error = correlation_error(corr.standard_error, errors.correlation, biases[1])
        here = slice(tile.start - block.rows.start, tile.stop - block.rows.start)
        block.influence[here] = covariance.value
        block.influence_error[here] = error
        block.correlation[here] = corr.value
        block.correlation_error[here] = corr_error
        conditioner = self.covariances.conditioner
        if conditioner and block.conditioned is not None and block.conditioned_error is not None:
            entries = conditioner.rows(tile)
            block.conditioned[here] = entries.value
            block.conditioned_error[here] = entries.standard_error
        drawn = self.covariances.drawn
        if drawn and found.drawn and block.influence_draws is not None and block.influence_draws_error is not None:
            entries = _influence_of(found.drawn, drawn.errors.influence)
            block.influence_draws[here] = entries.value
            block.influence_draws_error[here] = entries.standard_error
        _fill_margins(block, here, found)
        for scores, half in zip((block.early, block.late), self.covariances.halves, strict=True):
            with np.errstate(invalid="ignore"):  # a half without batches gives NaN scores
                scores[here] = -draws.covariance[half][:, :, self.layout.scored].sum(0) / draws.share[half].sum()
        if self.grouping and block.sums:
            self.grouping.add_rows_(block.sums, tile, draws, moved, biases)


def _influence_of(found: RowCovariances, scale: ErrorScale) -> Estimates:
    """The influence alone, with the standard error that it has beside a correlation."""
    plain, corr = influence(found.batches), correlation_values(found.batches.standardized())
    return Estimates(plain.value, influence_error(plain.standard_error, corr, scale, found.chain_means.covariance))


def _fill_margins(block: Block, here: slice, found: RowCovariances) -> None:
    chains, train_mean, column_mean = merge_means(found.moments)
    share = chains / chains.sum()
    block.train_mean[here], block.column_mean[:] = (np.einsum("c,cx->x", share, x) for x in (train_mean, column_mean))
    block.train_std[here], block.column_std[:] = found.batches.stds
