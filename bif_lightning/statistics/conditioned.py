"""The conditioned influence: what the influence becomes once the draws are conditioned on the training losses.

Take the draws as an ensemble from a broad prior, and every training loss at w* as a measurement of the weights with
error variance r. A Kalman update of the ensemble (Evensen 1994; exact for losses that are linear in the weights)
leaves, of the covariance C of train losses and c of train losses with the columns,

    conditioned influence = −r·(C + r·I)⁻¹·c,   which tends to the influence −c as r → ∞.

It is the influence under a sharper localized posterior, whose precision is that of the draws plus (1/r)·Σ_i g_i·g_iᵀ,
the empirical Fisher metric: one set of draws serves a range of temperatures. With the K increments of the draws as rows
of A (train) and B (columns), C = AᵀA/K. With s = K·r, the push-through identity gives two forms of the same matrix,

    −(s/K)·Aᵀ·(A·Aᵀ + s·I)⁻¹·B  =  −(s/K)·(AᵀA + s·I)⁻¹·AᵀB,

of which the smaller is solved: increments x increments, or train x train. The second reads the draws a block at a time,
so that time and memory grow linearly with their number.

An increment is the difference of successive draws of a chain over √2, free of the chain's slow drift, or the half
difference of an antithetic pair: either has the covariance of independent draws.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.config import Ridge
from bif_lightning.statistics.effective_dimension import ridge_for
from bif_lightning.statistics.influence import Estimates, weighted_sum
from bif_lightning.statistics.standard_errors import independent

LEAST_INCREMENTS = 4
"""Increments below which there is nothing to condition on."""

_BLOCK = 1 << 12  # train rows at a time: all increments in float64 could be larger than the traces themselves
_ENTRIES = 1 << 20  # float64 numbers of a block of increments: 8 MB


def increments(trace: Float[Tensor, "draw x"], *, paired: bool) -> Float[Tensor, "increment x"]:
    """Take the changes from draw to draw of one chain, float64: (x_{t+1} − x_t)/√2, or (x₊ − x₋)/2 of pairs."""
    trace = trace.double()
    return (trace[0::2] - trace[1::2]) / 2 if paired else trace.diff(dim=0) / math.sqrt(2)


def count_increments(draws: int, *, paired: bool) -> int:
    """Count the increments of one chain."""
    return draws // 2 if paired else draws - 1


def update_bytes(num_increments: int, train: int, columns: int) -> int:
    """Count the memory of the update while it is solved: a Gram matrix, its factor and its inverse, and the columns.

    >>> update_bytes(num_increments=24_000, train=100, columns=10)
    2168000
    """
    smaller = min(num_increments, train)
    return 8 * (3 * smaller**2 + (num_increments + smaller) * columns)


def conditioning_ridge(gram: Float[Tensor, "x x"], num_train: int, num_increments: int) -> float:
    """Find s with Σ_k w_k/(w_k + s) = min(n/25, K/4, rank/2), w the eigenvalues of A·Aᵀ or of AᵀA, in nat².

    Either Gram matrix serves, as they differ by eigenvalues of zero alone. The sum counts the directions of the draws
    that the measurements pin down. Found without labels or retraining, it was within 0.015 of the best retraining score
    on two networks. Half the rank applies where few weights or examples leave it below K/2: the ridge would vanish with
    more.
    """
    values = torch.linalg.eigvalsh(gram)
    known = values[values > values[-1] * num_increments * torch.finfo(values.dtype).eps]
    return ridge_for(known, min(num_train / 25, num_increments / 4, len(known) / 2))


class _Piece(NamedTuple):
    """Some increments of one chain, all of one batch."""

    batch: int
    chain: int
    where: slice


@dataclass(frozen=True)
class _Ensemble:
    """Increments of the draws of all chains.

    Attributes:
        train, columns: a trace for each chain.
        paired: whether draws are antithetic pairs.
        lengths: increments in each batch of consecutive ones, chain after chain.
    """

    train: Sequence[Float[Tensor, "draw train"]]
    columns: Sequence[Float[Tensor, "draw column"]]
    paired: bool
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, train: Sequence[Tensor], columns: Sequence[Tensor], *, paired: bool, batches: int) -> "_Ensemble":
        """Divide the increments into about so many batches."""
        # Neighbouring differences share a draw; pairs share nothing.
        least, each = 1 if paired else 4, count_increments(len(train[0]), paired=paired)
        lengths = _split(each, -(-batches // len(train)), least) if each > 0 else []
        return cls(train, columns, paired, tuple(lengths * len(train)))

    @property
    def count(self) -> int:
        """K."""
        return sum(self.lengths)

    @property
    def num_train(self) -> int:
        """n."""
        return self.train[0].shape[1]

    def stacked(self, traces: Sequence[Tensor], rows: slice = slice(None)) -> Float[Tensor, "increment x"]:
        """All increments of some rows, one chain after the other."""
        return torch.cat([increments(trace[:, rows], paired=self.paired) for trace in traces])

    def pieces(self) -> Iterator[_Piece]:
        """All increments in pieces of bounded size, in order."""
        most = max(1, _ENTRIES // (self.num_train + self.columns[0].shape[1]))
        batches = len(self.lengths) // len(self.train)
        for batch, length in enumerate(self.lengths):
            first = batch // batches * batches
            start = sum(self.lengths[first:batch])
            for begin in range(start, start + length, most):
                yield _Piece(batch, batch // batches, slice(begin, min(begin + most, start + length)))

    def some(
        self, traces: Sequence[Tensor], piece: _Piece, weights: Float[Tensor, "x y"] | None = None
    ) -> Float[Tensor, "increment y"]:
        """The increments of one piece, or their product with some weights."""
        _, chain, at = piece
        draws = slice(2 * at.start, 2 * at.stop) if self.paired else slice(at.start, at.stop + 1)
        trace = traces[chain][draws].double()
        return increments(trace if weights is None else trace @ weights, paired=self.paired)


@dataclass(frozen=True)
class _ByIncrements:
    """The form that solves increments x increments.

    Attributes:
        of: the increments.
        s: K·r, nat².
        inverse: M = (A·Aᵀ + s·I)⁻¹.
        reduced: M·B.
    """

    of: _Ensemble
    s: float
    inverse: Float[Tensor, "increment increment"]
    reduced: Float[Tensor, "increment column"]

    @classmethod
    def solve(cls, of: _Ensemble, ridge: float | Literal["auto"]) -> "_ByIncrements | None":
        """Solve for the columns; None where nothing varies."""
        gram = torch.zeros((), dtype=torch.float64)
        for start in range(0, of.num_train, _BLOCK):
            rows = of.stacked(of.train, slice(start, start + _BLOCK))
            gram = gram + rows @ rows.mT
        s = _ridge_of(gram, of, ridge)
        if s is None:
            return None
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + s * torch.eye(len(gram), dtype=gram.dtype)))
        return cls(of, s, inverse, inverse @ of.stacked(of.columns))

    def value(self, rows: slice) -> Float[Tensor, "row column"]:
        """−(s/K)·Aᵀ·M·B of some train rows."""
        return -(self.s / self.of.count) * (self.of.stacked(self.of.train, rows).mT @ self.reduced)

    def products(self, rows: slice) -> Float[Tensor, "batch row column"]:
        """Mean products of (s·M·A)_k and (s·M·B)_k in each batch."""
        train = self.s * (self.inverse @ self.of.stacked(self.of.train, rows))
        parts = zip(train.split(self.of.lengths), (self.s * self.reduced).split(self.of.lengths), strict=True)
        return torch.stack([(left.mT @ right) / len(left) for left, right in parts])


@dataclass(frozen=True)
class _ByExamples:
    """The form that solves train x train.

    By Woodbury's identity s·M·X = X − A·P·AᵀX, so that s·M·A = s·A·P and s·M·B = B − A·W.

    Attributes:
        of: the increments.
        s: K·r, nat².
        inverse: P = (AᵀA + s·I)⁻¹.
        solved: W = P·AᵀB.
        reduced: B − A·W.
    """

    of: _Ensemble
    s: float
    inverse: Float[Tensor, "train train"]
    solved: Float[Tensor, "train column"]
    reduced: Float[Tensor, "increment column"]

    @classmethod
    def solve(cls, of: _Ensemble, ridge: float | Literal["auto"]) -> "_ByExamples | None":
        """Solve for the columns; None where nothing varies."""
        gram = torch.zeros(of.num_train, of.num_train, dtype=torch.float64)
        cross = gram.new_zeros(of.num_train, of.columns[0].shape[1])
        for piece in of.pieces():
            train = of.some(of.train, piece)
            gram.addmm_(train.mT, train)
            cross.addmm_(train.mT, of.some(of.columns, piece))
        s = _ridge_of(gram, of, ridge)
        if s is None:
            return None
        gram.diagonal().add_(s)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        solved = inverse @ cross
        reduced = [of.some(of.columns, piece) - of.some(of.train, piece, solved) for piece in of.pieces()]
        return cls(of, s, inverse, solved, torch.cat(reduced))

    def value(self, rows: slice) -> Float[Tensor, "row column"]:
        """−(s/K)·W of some train rows."""
        return -(self.s / self.of.count) * self.solved[rows]

    def products(self, rows: slice) -> Float[Tensor, "batch row column"]:
        """Mean products of (s·M·A)_k and (s·M·B)_k in each batch."""
        weights, done = self.s * self.inverse[:, rows], 0
        out = weights.new_zeros(len(self.of.lengths), weights.shape[1], self.reduced.shape[1])
        for piece in self.of.pieces():
            train = self.of.some(self.of.train, piece, weights)
            out[piece.batch].addmm_(train.mT, self.reduced[done : done + len(train)])
            done += len(train)
        return out / torch.tensor(self.of.lengths, dtype=out.dtype)[:, None, None]


@dataclass(frozen=True)
class KalmanUpdate:
    """The update, ready to be applied to any rows of the train set.

    Attributes:
        form: the system that was solved, the smaller of the two.
    """

    form: _ByIncrements | _ByExamples

    @classmethod
    def of(
        cls,
        train: Sequence[Float[Tensor, "draw train"]],
        columns: Sequence[Float[Tensor, "draw column"]],
        ridge: Ridge = "auto",
        *,
        paired: bool = False,
        batches: int = 24,
    ) -> "KalmanUpdate | None":
        """Solve for the traces of all chains; None where nothing varies, draws are too few, or `ridge` is None.

        Args:
            train, columns: a trace for each chain, all of the same length, nats.
            ridge: r in nat², or "auto" for `conditioning_ridge`.
            paired: draws are antithetic pairs.
            batches: about how many batches of increments give standard errors.
        """
        ensemble = _Ensemble.of(train, columns, paired=paired, batches=batches)
        if ridge is None or ensemble.count < LEAST_INCREMENTS:
            return None
        smaller = _ByIncrements if ensemble.count <= ensemble.num_train else _ByExamples
        form = smaller.solve(ensemble, ridge)
        return None if form is None else cls(form)

    @property
    def ridge(self) -> float:
        """r = s/K, nat²."""
        return self.form.s / self.form.of.count

    @property
    def lengths(self) -> tuple[int, ...]:
        """Increments in each batch of consecutive ones, whose spread gives standard errors."""
        return self.form.of.lengths

    def rows(self, rows: slice) -> Estimates:
        """Compute the conditioned influence of some train rows on all columns, and its standard error.

        Weighting the increments a little differently changes it, to first order, by their products with both sides
        reduced to what the others do not predict: (s·M·A)_k and (s·M·B)_k, M = (A·Aᵀ + s·I)⁻¹. The error is that of
        a mean of these products over batches (infinitesimal jackknife; Efron 1982, Chap. 6), at a fixed ridge, widened
        by Student's t for their number.
        """
        share = np.array(self.lengths) / self.form.of.count
        terms = share[:, None, None] * self.form.products(rows).numpy()
        error = weighted_sum(terms, share).standard_error
        return Estimates(self.form.value(rows).numpy(), error * independent(len(share)).influence.factor)


@dataclass(frozen=True)
class Conditioned:
    """A conditioned influence.

    Attributes:
        value: in nat x the unit of the columns.
        standard_error: Monte Carlo standard error of each entry, same unit.
        ridge: r, nat².
    """

    value: Float[np.ndarray, "train column"]
    standard_error: Float[np.ndarray, "train column"]
    ridge: float


def conditioned_influence(
    train: Float[np.ndarray, "chain draw train"],
    columns: Float[np.ndarray, "chain draw column"],
    ridge: float | Literal["auto"] = "auto",
    *,
    paired: bool = False,
) -> Conditioned:
    """Compute the conditioned influence of all train examples, with its standard error, from stored traces.

    −r·(C + r·I)⁻¹·c, with C the covariance of the increments of train losses and c theirs with the columns: the
    ensemble Kalman update of Evensen (1994) with every train loss as a measurement of error variance r.

    Args:
        train, columns: every draw of every chain, nats: `train` and `columns["loss"]` of `Estimate.traces`, or of
            `bif_lightning.open_traces`.
        ridge: r in nat²; "auto" for the rule of `conditioning_ridge`, which needs no labels.
        paired: the draws are antithetic pairs, of the sampler `Pairs`.

    Raises:
        ValueError: too few draws, or none that varies.

    >>> draws = np.random.default_rng(0).normal(size=(2, 50, 3))  # of 3 weights
    >>> train, queries = draws @ np.eye(3), draws @ np.array([[1.0], [0.0], [0.0]])
    >>> found = conditioned_influence(train, queries, ridge=0.1)
    >>> found.value.shape, bool((abs(found.value[0]) > 3 * abs(found.value[1:])).all())
    ((3, 1), True)
    """
    rows, across = ([torch.from_numpy(np.asarray(trace)) for trace in side] for side in (train, columns))
    found = KalmanUpdate.of(rows, across, ridge, paired=paired)
    if found is None:
        raise ValueError(
            f"ridge is {ridge!r} and the traces have shape {tuple(train.shape)}: give a ridge above 0 or 'auto', and "
            f"traces of at least {LEAST_INCREMENTS + 1} draws that vary"
        )
    entries = found.rows(slice(None))
    return Conditioned(entries.value, entries.standard_error, found.ridge)


def _ridge_of(gram: Tensor, of: _Ensemble, ridge: float | Literal["auto"]) -> float | None:
    """s, nat²; None where nothing varies."""
    if not float(gram.diagonal().sum()) > 0:
        return None
    return conditioning_ridge(gram, of.num_train, of.count) if ridge == "auto" else ridge * of.count


def _split(count: int, batches: int, least: int) -> list[int]:
    """Split `count` into at most `batches` nearly equal lengths of at least `least`."""
    parts = max(1, min(batches, count // least))
    long, rest = divmod(count, parts)
    return [long + 1] * rest + [long] * (parts - rest)
