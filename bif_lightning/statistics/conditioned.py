"""The conditioned influence: influence after the draws are conditioned on the train losses by a Kalman update.

The draws are an ensemble from a broad prior, and every train loss at w* is a measurement of the weights with error
variance r. Let C be the covariance of the train losses, and c that of train losses with the columns. A Kalman update of
the ensemble (Evensen 1994; exact for losses that are linear in the weights) turns the influence −c into

    conditioned influence = −r·(C + r·I)⁻¹·c,   which tends to −c as r → ∞.

It is the influence under a sharper localized posterior, whose precision has the additional term (1/r)·Σ_i g_i·g_iᵀ, the
empirical Fisher metric. One set of draws thus serves a range of temperatures.

Let the K increments of the draws be the rows of A (train) and B (columns), so that C = AᵀA/K, and let s = K·r. By the
push-through identity

    −(s/K)·Aᵀ·(A·Aᵀ + s·I)⁻¹·B  =  −(s/K)·(AᵀA + s·I)⁻¹·AᵀB.

The smaller system is solved: increments x increments, or train x train. The second form reads the draws in blocks, and
its time and memory grow linearly with their number.

An increment is the difference of successive draws of a chain divided by √2, which removes slow drift, or half the
difference of an antithetic pair. Both have the covariance of independent draws.
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
"""Fewest increments for an update."""

_BLOCK = 1 << 12  # train rows at a time: all increments in float64 could be larger than the traces
_ENTRIES = 1 << 20  # float64 numbers in a block of increments: 8 MB


def increments(trace: Float[Tensor, "draw x"], *, paired: bool) -> Float[Tensor, "increment x"]:
    """Compute the increments of one chain in float64: (x_{t+1} − x_t)/√2, or (x₊ − x₋)/2 of pairs."""
    trace = trace.double()
    return (trace[0::2] - trace[1::2]) / 2 if paired else trace.diff(dim=0) / math.sqrt(2)


def count_increments(draws: int, *, paired: bool) -> int:
    """Count the increments of one chain."""
    return draws // 2 if paired else draws - 1


def update_bytes(num_increments: int, train: int, columns: int) -> int:
    """Count the bytes of the update while it is solved: a Gram matrix, its factor and inverse, and the columns.

    >>> update_bytes(num_increments=24_000, train=100, columns=10)
    2168000
    """
    smaller = min(num_increments, train)
    return 8 * (3 * smaller**2 + (num_increments + smaller) * columns)


def conditioning_ridge(gram: Float[Tensor, "x x"], num_train: int, num_increments: int) -> float:
    """Find s with Σ_k w_k/(w_k + s) = min(n/25, K/4, rank/2), w the eigenvalues of A·Aᵀ or of AᵀA, in nat².

    Both Gram matrices have the same eigenvalues, except for zeros. The sum is the number of directions of the draws
    that the measurements determine. The rule needs no labels or retraining; its scores were within 0.015 of the best
    retraining score on two networks. The limit rank/2 applies if few weights or examples make the rank smaller than
    K/2, since the ridge would vanish at a larger value.
    """
    values = torch.linalg.eigvalsh(gram)
    known = values[values > values[-1] * num_increments * torch.finfo(values.dtype).eps]
    return ridge_for(known, min(num_train / 25, num_increments / 4, len(known) / 2))


class _Piece(NamedTuple):
    """A slice of the increments of one chain, within one batch."""

    batch: int
    chain: int
    where: slice


@dataclass(frozen=True)
class _Ensemble:
    """Increments of the draws of all chains.

    Attributes:
        train, columns: the traces of each chain.
        paired: whether draws are antithetic pairs.
        lengths: number of increments in each batch of consecutive increments, chain after chain.
    """

    train: Sequence[Float[Tensor, "draw train"]]
    columns: Sequence[Float[Tensor, "draw column"]]
    paired: bool
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, train: Sequence[Tensor], columns: Sequence[Tensor], *, paired: bool, batches: int) -> "_Ensemble":
        """Divide the increments into about `batches` batches."""
        # Neighbouring differences share a draw; pairs do not.
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
        """All increments of some rows, chain after chain."""
        return torch.cat([increments(trace[:, rows], paired=self.paired) for trace in traces])

    def pieces(self) -> Iterator[_Piece]:
        """Divide all increments into pieces of bounded size, in order."""
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
        """The increments of one piece, multiplied by the weights if given."""
        _, chain, at = piece
        draws = slice(2 * at.start, 2 * at.stop) if self.paired else slice(at.start, at.stop + 1)
        trace = traces[chain][draws].double()
        return increments(trace if weights is None else trace @ weights, paired=self.paired)


@dataclass(frozen=True)
class _ByIncrements:
    """The update by the system of size increments x increments.

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
        """Solve for the columns; None if no train loss varies."""
        gram = torch.zeros((), dtype=torch.float64, device="cpu")
        for start in range(0, of.num_train, _BLOCK):
            rows = of.stacked(of.train, slice(start, start + _BLOCK))
            gram = gram + rows @ rows.mT
        s = _ridge_of(gram, of, ridge)
        if s is None:
            return None
        inverse = torch.cholesky_inverse(
            torch.linalg.cholesky(gram + s * torch.eye(len(gram), dtype=gram.dtype, device="cpu"))
        )
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
    """The update by the system of size train x train.

    By Woodbury's identity s·M·X = X − A·P·AᵀX. Therefore s·M·A = s·A·P and s·M·B = B − A·W.

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
        """Solve for the columns; None if no train loss varies."""
        gram = torch.zeros(of.num_train, of.num_train, dtype=torch.float64, device="cpu")
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
        return out / torch.tensor(self.of.lengths, dtype=out.dtype, device="cpu")[:, None, None]


@dataclass(frozen=True)
class KalmanUpdate:
    """A solved Kalman update, which gives the conditioned influence of any train rows.

    Attributes:
        form: the smaller of the two systems, solved.
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
        """Solve the update; None if no train loss varies, there are too few draws, or `ridge` is None.

        Args:
            train, columns: traces of each chain, all of the same length, nats.
            ridge: r in nat², or "auto" for `conditioning_ridge`.
            paired: whether draws are antithetic pairs.
            batches: approximate number of batches of increments, for standard errors.
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
        """Number of increments in each batch; standard errors come from the variance between batches."""
        return self.form.of.lengths

    def rows(self, rows: slice) -> Estimates:
        """Compute the conditioned influence of some train rows on all columns, and its standard error.

        The derivative of the conditioned influence with respect to the weight of increment k is the product of
        (s·M·A)_k and (s·M·B)_k, M = (A·Aᵀ + s·I)⁻¹. The standard error is that of the mean of these products over
        batches (infinitesimal jackknife; Efron 1982, Chap. 6), at a fixed ridge. It is widened by Student's t for the
        number of batches.
        """
        share = np.array(self.lengths) / self.form.of.count
        terms = share[:, None, None] * self.form.products(rows).numpy()
        error = weighted_sum(terms, share).standard_error
        return Estimates(self.form.value(rows).numpy(), error * independent(len(share)).influence.factor)


@dataclass(frozen=True)
class Conditioned:
    """A conditioned influence.

    Attributes:
        value: conditioned influence, in nat x the unit of the columns.
        standard_error: Monte Carlo standard error of each entry, in the same unit.
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

    It is −r·(C + r·I)⁻¹·c, with C the covariance of the train losses and c that of train losses with the columns: the
    ensemble Kalman update of Evensen (1994), with every train loss as a measurement of error variance r.

    Args:
        train, columns: every draw of every chain, nats: `train` and `columns["loss"]` of `Estimate.traces`, or of
            `bif_lightning.open_traces`.
        ridge: r in nat²; "auto" for the rule of `conditioning_ridge`, which needs no labels.
        paired: whether the draws are antithetic pairs, of the sampler `Pairs`.

    Raises:
        ValueError: there are too few draws, or no train loss varies.

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
    """s, nat²; None if no train loss varies."""
    if not float(gram.diagonal().sum()) > 0:
        return None
    return conditioning_ridge(gram, of.num_train, of.count) if ridge == "auto" else ridge * of.count


def _split(count: int, batches: int, least: int) -> list[int]:
    """Split `count` into at most `batches` nearly equal lengths of at least `least`."""
    parts = max(1, min(batches, count // least))
    long, rest = divmod(count, parts)
    return [long + 1] * rest + [long] * (parts - rest)
