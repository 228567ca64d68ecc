"""The conditioned influence: the influence after the draws have been told the training losses.

Take the draws as an ensemble from a broad prior, and every training loss at w* as a measurement of the weights with
error variance r. A Kalman update of the ensemble (Evensen 1994; for losses that are linear in the weights it is exact)
leaves, of the covariance C of train losses and c of train losses with the columns,

    conditioned influence = −r·(C + r·I)⁻¹·c,   which for r → ∞ is the influence −c itself.

It is the influence under a sharper localized posterior, whose precision is that of the draws plus (1/r)·Σ_i g_i·g_iᵀ,
the empirical Fisher metric: one set of draws serves a range of temperatures. With the K increments of the draws as rows
of A (train) and B (columns), C = AᵀA/K and, with s = K·r, all of it is

    −(s/K)·Aᵀ·(A·Aᵀ + s·I)⁻¹·B.

An increment is the difference of successive draws of a chain over √2, free of its slow drift, or the half difference
of an antithetic pair: either has the covariance of independent draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.config import Ridge
from bif_lightning.statistics.effective_dimension import ridge_for
from bif_lightning.statistics.influence import Estimates, weighted_mean
from bif_lightning.statistics.standard_errors import independent

_BLOCK = 1 << 12  # train rows at a time: all increments in float64 could be larger than the traces themselves
_LEAST = 4  # increments, below which there is nothing to condition on


def increments(trace: Float[Tensor, "draw x"], *, paired: bool) -> Float[Tensor, "increment x"]:
    """What changes from draw to draw of one chain, float64: (x_{t+1} − x_t)/√2, or (x₊ − x₋)/2 of antithetic pairs."""
    trace = trace.double()
    return (trace[0::2] - trace[1::2]) / 2 if paired else trace.diff(dim=0) / math.sqrt(2)


def conditioning_ridge(gram: Float[Tensor, "increment increment"], num_train: int) -> float:
    """s with Σ_k w_k/(w_k + s) = min(n/25, K/4, rank/2), w the eigenvalues of the Gram matrix A·Aᵀ, in nat².

    How many directions of the draws the measurements pin down: found without labels or retraining, it was within 0.015
    of the best retraining score on two networks. Half the rank, where few weights or examples leave it below K/2: the
    ridge would vanish with more.
    """
    values = torch.linalg.eigvalsh(gram)
    known = values[values > values[-1] * len(values) * torch.finfo(values.dtype).eps]
    return ridge_for(known, min(num_train / 25, len(values) / 4, len(known) / 2))


@dataclass(frozen=True)
class KalmanUpdate:
    """The update, ready to be applied to any rows of the train set.

    Attributes:
        train: a trace [draw, train] for each chain.
        reduced_columns: (A·Aᵀ + s·I)⁻¹·B, of the increments of all chains one after the other.
        inverse: (A·Aᵀ + s·I)⁻¹.
        ridge: r = s/K, nat².
        lengths: increments in each batch of consecutive ones, whose spread gives standard errors.
        paired: whether draws are antithetic pairs.
    """

    train: Sequence[Float[Tensor, "draw train"]]
    reduced_columns: Float[Tensor, "increment column"]
    inverse: Float[Tensor, "increment increment"]
    ridge: float
    lengths: tuple[int, ...]
    paired: bool

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
        """From the traces of all chains; None where nothing varies, there are too few draws, or `ridge` is None.

        Args:
            train, columns: a trace for each chain, nats.
            ridge: r in nat², or "auto" for `conditioning_ridge`.
            paired: draws are antithetic pairs.
            batches: about how many batches of increments give standard errors.
        """
        if ridge is None:
            return None
        num_train = train[0].shape[1]
        gram = sum(_gram([trace[:, rows] for trace in train], paired) for rows in _blocks(num_train))
        count = 0 if isinstance(gram, int) else len(gram)
        if isinstance(gram, int) or count < _LEAST or not float(gram.diagonal().sum()) > 0:
            return None
        s = conditioning_ridge(gram, num_train) if ridge == "auto" else ridge * count
        eye = torch.eye(count, dtype=gram.dtype)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + s * eye))
        reduced = inverse @ _stacked(columns, paired)
        # Neighbouring differences share a draw; pairs share nothing.
        each = _split(count // len(train), -(-batches // len(train)), least=1 if paired else 4)
        return cls(train, reduced, inverse, s / count, tuple(each * len(train)), paired)

    def rows(self, rows: slice) -> Estimates:
        """The conditioned influence of some train rows on all columns, and its standard error.

        Weighting the increments a little differently changes it, to first order, by their products with both sides
        reduced to what the others do not predict: (s·M·A)_k and (s·M·B)_k, M the inverse above. The error is that of
        a mean of these products over batches (infinitesimal jackknife; Efron 1982, Chap. 6), at a fixed ridge, widened
        by Student's t for their number.
        """
        train = _stacked([trace[:, rows] for trace in self.train], self.paired)
        count, s = len(train), self.ridge * len(train)
        value = -self.ridge * (train.mT @ self.reduced_columns)
        reduced = s * (self.inverse @ train)
        parts = zip(reduced.split(self.lengths), (s * self.reduced_columns).split(self.lengths), strict=True)
        batches = torch.stack([(left.mT @ right) / len(left) for left, right in parts])
        share = torch.tensor(self.lengths, dtype=torch.float64) / count
        error = weighted_mean(batches, share).standard_error
        return Estimates(value, error * independent(len(batches)).influence.factor)


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
    """The conditioned influence of all train examples, with its standard error, from stored traces.

    Args:
        train, columns: every draw of every chain, nats: `train` and `columns["loss"]` of `Estimate.traces`, or of
            `bif_lightning.open_traces`.
        ridge: r in nat²; "auto" for the label-free rule.
        paired: the draws are antithetic pairs, of the sampler `Pairs`.

    Raises:
        ValueError: too few draws, or none that varies.

    >>> from bif_lightning import conditioned_influence, open_traces
    >>> traces = open_traces(folder / "step=000000200.h5")
    >>> found = conditioned_influence(traces.train, traces.columns["loss"])
    >>> found.value.shape, found.ridge > 0
    ((24, 6), True)
    """
    rows, across = ([torch.from_numpy(np.asarray(trace)) for trace in side] for side in (train, columns))
    found = KalmanUpdate.of(rows, across, ridge, paired=paired)
    if found is None:
        raise ValueError(
            f"ridge is {ridge!r} and the traces have shape {tuple(train.shape)}: give a ridge above 0 or 'auto', and "
            f"traces of at least {_LEAST + 1} draws that vary"
        )
    entries = found.rows(slice(None))
    return Conditioned(entries.value.numpy(), entries.standard_error.numpy(), found.ridge)


def _stacked(traces: Sequence[Tensor], paired: bool) -> Float[Tensor, "increment x"]:
    return torch.cat([increments(trace, paired=paired) for trace in traces])


def _gram(traces: Sequence[Tensor], paired: bool) -> Float[Tensor, "increment increment"]:
    rows = _stacked(traces, paired)
    return rows @ rows.mT


def _blocks(size: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, size, _BLOCK)]


def _split(count: int, batches: int, least: int) -> list[int]:
    """`count` in nearly equal lengths, `batches` of them, of at least `least`."""
    parts = max(1, min(batches, count // least))
    long, rest = divmod(count, parts)
    return [long + 1] * rest + [long] * (parts - rest)
