"""From the records of chains to the matrices of an estimate, a block of train rows at a time."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bif_lightning.config import Centring
from bif_lightning.diagnostics import score_agreement
from bif_lightning.influence import (
    Products,
    correlation,
    group_sums,
    inflation,
    influence,
    mean,
    products,
    spreads,
    weighted_mean,
)
from bif_lightning.moments import Moments, merge, stack
from bif_lightning.recorder import Record
from bif_lightning.result import LabelMeans

_BLOCK_ENTRIES = 1 << 18  # float64 numbers of one batch-by-batch block: 2 MB, a few of which stay in cache
_AGREEMENT_QUERIES = 64  # ranking every query of a large set would take longer than its matrix


@dataclass(frozen=True)
class Labels:
    """Class index of each train and each query example; −1 for none."""

    train: Int[np.ndarray, " train"]
    query: Int[np.ndarray, " query"]


class Matrices:
    """Influence and correlation of all train rows on all columns, with their standard errors.

    Rows are independent, so blocks of them are computed on several threads, each block by one thread: the bits
    do not depend on how many there are.
    """

    def __init__(
        self, records: Sequence[Record], shape: tuple[int, int, int], centring: Centring, labels: Labels | None
    ) -> None:
        train, columns, queries = shape
        self.records = records
        self.centring: Centring = centring
        self.influence, self.influence_error, self.correlation, self.correlation_error = (
            np.empty((train, columns), np.float32) for _ in range(4)
        )
        self.train_mean, self.train_std = np.empty(train), np.empty(train)
        self.column_mean, self.column_std = np.empty(columns), np.empty(columns)
        self._agreement = torch.linspace(0, queries - 1, min(queries, _AGREEMENT_QUERIES)).long()
        self._halves = torch.full((2, train, len(self._agreement)), torch.nan, dtype=torch.float64)
        self._queries = queries
        self._sums = None if labels is None else _LabelSums(labels)

    def fill(self, workers: int) -> None:
        """Compute every block."""
        train, columns = self.influence.shape
        batches = sum(len(record.lengths) for record in self.records)
        height = max(1, _BLOCK_ENTRIES // (batches * columns))
        blocks = [slice(start, min(start + height, train)) for start in range(0, train, height)]
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            filled = list(pool.map(self._fill_block, blocks))
        factor = inflation([sum(parts) for parts in zip(*(spread for spread, _ in filled), strict=True)])
        self.influence_error *= factor
        self.correlation_error *= factor
        if self._sums:
            self._sums.add([sums for _, sums in filled if sums is not None], factor)

    def agreement(self) -> float:
        """Spearman agreement of the influence from one half of the chains (or draws) with the other."""
        return score_agreement(self._halves[0], self._halves[1])

    def label_means(self) -> LabelMeans | None:
        """Block means over labels, where labels were given."""
        return self._sums.means() if self._sums else None

    def _fill_block(self, rows: slice) -> "tuple[list[float], _BlockSums | None]":
        parts = stack([record.moments(rows) for record in self.records])
        draws = products(parts, self.centring)
        covariance, (corr, moved) = influence(draws), correlation(draws)
        self.influence[rows] = covariance.value.float().numpy()
        self.influence_error[rows] = covariance.standard_error.float().numpy()
        self.correlation[rows] = corr.value.float().numpy()
        self.correlation_error[rows] = corr.standard_error.float().numpy()
        self._fill_margins(rows, parts, draws)
        for index, half in enumerate(_halves(len(self.records), parts.count.shape[1])):
            share = draws.share[half] / draws.share[half].sum()
            self._halves[index, rows] = -mean(draws.covariance[half][:, :, self._agreement], share)
        queries = slice(0, self._queries)
        sums = self._sums.block(rows, draws, moved[:, :, queries], queries) if self._sums else None
        return spreads(moved, draws.share, len(self.records)), sums

    def _fill_margins(self, rows: slice, parts: Moments, draws: Products) -> None:
        grand = merge(merge(parts))
        self.train_mean[rows] = grand.train_mean.numpy()
        self.train_std[rows] = mean(draws.train_variance, draws.share).sqrt().numpy()
        if rows.start == 0:
            self.column_mean[:] = grand.column_mean.numpy()
            self.column_std[:] = mean(draws.column_variance, draws.share).sqrt().numpy()


def _halves(chains: int, batches: int) -> tuple[Tensor, Tensor]:
    """Two halves of all batches: even and odd chains, or early and late batches of a single chain (maybe none)."""
    side = torch.arange(chains) % 2 if chains > 1 else torch.arange(batches) >= (batches + 1) // 2
    mask = side.bool().repeat_interleave(batches) if chains > 1 else side
    return ~mask, mask


@dataclass(frozen=True)
class _BlockSums:
    share: Float[Tensor, " batch"]
    influence: Float[Tensor, "batch train_label query_label"]
    correlation: Float[Tensor, "batch train_label query_label"]
    defined: Float[Tensor, "train_label query_label"]


class _LabelSums:
    """Sums of influence and correlation over blocks of equal labels, batch by batch of draws."""

    def __init__(self, labels: Labels) -> None:
        self.train_labels, self._train = _membership(labels.train)
        self.query_labels, self._query = _membership(labels.query)
        self._total: _BlockSums | None = None
        self._inflation = 1.0

    def block(self, rows: slice, draws: Products, moved: Tensor, queries: slice) -> _BlockSums:
        train = self._train[rows]
        defined = train.mT @ (~moved[0].isnan()).double() @ self._query
        return _BlockSums(
            draws.share,
            group_sums(-draws.covariance[:, :, queries], train, self._query),
            group_sums(moved, train, self._query),
            defined,
        )

    def add(self, blocks: Sequence[_BlockSums], error_inflation: float) -> None:
        self._inflation = error_inflation
        self._total = _BlockSums(
            blocks[0].share,
            torch.stack([b.influence for b in blocks]).sum(0),
            torch.stack([b.correlation for b in blocks]).sum(0),
            torch.stack([b.defined for b in blocks]).sum(0),
        )

    def means(self) -> LabelMeans | None:
        total = self._total
        if total is None or len(self.train_labels) == 0 or len(self.query_labels) == 0:
            return None
        size = self._train.sum(0)[:, None] * self._query.sum(0)[None, :]
        covariance = weighted_mean(total.influence / size, total.share)
        corr = weighted_mean(total.correlation / total.defined, total.share)
        return LabelMeans(
            train_labels=self.train_labels,
            query_labels=self.query_labels,
            influence=covariance.value.numpy(),
            influence_standard_error=self._inflation * covariance.standard_error.numpy(),
            correlation=corr.value.numpy(),
            correlation_standard_error=self._inflation * corr.standard_error.numpy(),
        )


def _membership(labels: np.ndarray) -> tuple[np.ndarray, Tensor]:
    values = np.unique(labels[labels >= 0]).astype(np.int64)
    return values, torch.from_numpy(labels[:, None] == values[None, :]).double()
