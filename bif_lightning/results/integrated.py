"""Influence over a whole training: the sum of the standardized influences at its snapshots.

With B_t the influence matrix of the snapshot at step t, n train examples and

    s_t[j] = sd_i(B_t[i, j]),    z_t[i, j] = B_t[i, j] / s_t[j],

the integrated influence is I[i, j] = Σ_t z_t[i, j]. Each query is standardized at each snapshot, since raw covariances
change by orders of magnitude with the curvature. This also removes the size of the query's residual. For a model that
is linear in its weights, with one output f_j of residual r_j, B_t[i, j] ∝ −r_j(t)·∇f_jᵀ(H + λ)⁻¹g_i(t); z_t keeps the
sign of r_j(t), but not its size.

It has two standard errors, for different questions:

    of the estimates   Σ_t e_t[i, j] / s_t[j], with e_t the Monte Carlo errors of the snapshots. These errors may be
                       dependent (through common random numbers), and a sum of standard deviations bounds the standard
                       deviation of a sum for any dependence.
    of the moments     √(K/(K − 1)·Σ_t (z_t − z̄)²): how much the sum would vary over random choices of K snapshots of
                       the same training. It includes the first error, and true changes over training.

The error of s_t is left out: it scales a whole column, which changes no ranking, and is of order 1/√n.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int, UInt8

INTEGRATED_SIGN = (
    "integrated influence = sum over snapshots of the influence in standard deviations of its query's column. Its "
    "sign is that of the influence: of a query's loss, negative = the train example helps."
)

LEAST_SNAPSHOTS = 5
"""Snapshots from which on a run is ranked by their sum: sums of three were as often worse than the last snapshot as
better."""

TOP = 10
"""Number of examples at each end of a query's ranking whose stability is measured."""

REPEATED, COUNTED, WITHOUT_SCALE = range(3)
"""What became of a column of a snapshot: it was in the sum already, it was added, or it cannot be scaled."""

DIGEST_BYTES = 16

# Float64 adds multiples of one quantum exactly, up to 2^53 of them. Therefore the order of snapshots and of merging
# changes no bit of sums below 2^17 (values) and 2^27 (squares).
_QUANTUM, _SQUARE_QUANTUM = 2.0**-36, 2.0**-26


@dataclass
class IntegratedInfluence:
    """A sum over snapshots that grows by each: I, its errors, and what became of each column.

    Four arrays of the size of one matrix, in float64, whatever the number of snapshots.

    Attributes:
        total: I, in standard deviations of a column at a snapshot.
        squares: Σ z².
        errors: Σ e/s.
        every_second: I over the second, the fourth, ... snapshot; it and the rest of `total` are the halves whose
            rankings are compared.
        status: REPEATED, COUNTED or WITHOUT_SCALE of each column of each snapshot.
        digests: of each column of each snapshot, by which repeats are known.
        steps: of the snapshots, in the order in which they were pushed.

    >>> found = IntegratedInfluence.zeros(3, 1)
    >>> for step, column in enumerate(([-1.0, 0.0, 1.0], [-20.0, 0.0, 20.0], [-20.0, 0.0, 20.0])):
    ...     _ = found.push(step, np.array(column)[:, None], np.zeros((3, 1)))
    >>> found.total[:, 0].round(3).tolist(), found.counts.tolist()
    ([-2.449, 0.0, 2.449], [2])
    """

    total: Float[np.ndarray, "train query"]
    squares: Float[np.ndarray, "train query"]
    errors: Float[np.ndarray, "train query"]
    every_second: Float[np.ndarray, "train query"]
    status: UInt8[np.ndarray, "snapshot query"]
    digests: UInt8[np.ndarray, "snapshot query byte"]
    steps: list[int] = field(default_factory=list[int])

    @classmethod
    def zeros(cls, train: int, query: int) -> "IntegratedInfluence":
        """The sum over no snapshot."""
        total, squares, errors, every_second = np.zeros((4, train, query))
        status, digests = np.zeros((0, query), np.uint8), np.zeros((0, query, DIGEST_BYTES), np.uint8)
        return cls(total, squares, errors, every_second, status, digests)

    def push(
        self, step: int, influence: Float[np.ndarray, "train query"], standard_error: Float[np.ndarray, "train query"]
    ) -> UInt8[np.ndarray, " query"]:
        """Add a snapshot; a step that is in the sum already changes nothing.

        A column that is, bit for bit, that of an earlier snapshot is not added again: weights stood still, with common
        random numbers. An entry that is NaN at a snapshot is NaN in the sum.

        Args:
            step: of the snapshot.
            influence, standard_error: of it, in one unit.

        Returns:
            what became of each column: WITHOUT_SCALE are those that do not vary, or have an infinite value.
        """
        if step in self.steps:
            return np.full(len(self.counts), REPEATED, np.uint8)
        digest = _digests(influence)
        new = ~(self.digests == digest).all(2).any(0)
        values = np.asarray(influence, np.float64)
        scale = deviations(values)
        added = new & np.isfinite(scale) & (scale > 0)
        z = values[:, added] / scale[added]
        sums = [self.total, self.every_second] if len(self.steps) % 2 else [self.total]
        for each in sums:
            each[:, added] += _whole(z, _QUANTUM)
        self.squares[:, added] += _whole(z * z, _SQUARE_QUANTUM)
        self.errors[:, added] += _whole(np.asarray(standard_error, np.float64)[:, added] / scale[added], _QUANTUM)
        status = np.where(added, COUNTED, np.where(new, WITHOUT_SCALE, REPEATED)).astype(np.uint8)
        self.steps.append(step)
        self.status = np.concatenate([self.status, status[None]])
        self.digests = np.concatenate([self.digests, digest[None]])
        return status

    @property
    def counts(self) -> Int[np.ndarray, " query"]:
        """Snapshots in each column."""
        return (self.status == COUNTED).sum(0)

    @property
    def influence(self) -> Float[np.ndarray, "train query"]:
        """I; NaN in columns without snapshots."""
        return np.where(self.counts > 0, self.total, np.nan)

    @property
    def standard_error(self) -> Float[np.ndarray, "train query"]:
        """Standard error of the estimates: Σ e/s, a bound for any dependence."""
        return np.where(self.counts > 0, self.errors, np.nan)

    @property
    def moment_standard_error(self) -> Float[np.ndarray, "train query"]:
        """Standard error of the moments: √(K/(K − 1)·Σ (z − z̄)²); NaN with fewer than two snapshots."""
        count = np.where(self.counts > 1, self.counts, np.nan)
        scatter = np.maximum(self.squares - self.total**2 / count, 0)
        return np.sqrt(count / (count - 1) * scatter)

    @property
    def halves(self) -> tuple[Float[np.ndarray, "train query"], Float[np.ndarray, "train query"]]:
        """I over every second snapshot, and over the others; NaN in columns of no snapshot."""
        counted = self.status == COUNTED
        sums = (self.every_second, counted[1::2]), (self.total - self.every_second, counted[::2])
        one, other = (np.where(columns.any(0), values, np.nan) for values, columns in sums)
        return one, other

    @property
    def rank_agreement(self) -> Float[np.ndarray, " query"]:
        """Spearman correlation of the halves."""
        return rank_agreement(*self.halves)

    @property
    def top_overlap(self) -> Float[np.ndarray, " query"]:
        """Of the most helpful and most harmful examples by one half, the share in the other's."""
        return top_overlap(*self.halves)


def deviations(values: Float[np.ndarray, "train query"]) -> Float[np.ndarray, " query"]:
    """Standard deviation of each column over its known entries; NaN if there are none, or one is infinite."""
    # NumPy adds contiguous rows in an order that does not depend on their number. Therefore a single query has the same
    # bits as among others.
    rows = np.ascontiguousarray(values.T)
    known = ~np.isnan(rows)
    with np.errstate(invalid="ignore", over="ignore"):
        count = known.sum(1)
        mean = np.where(known, rows, 0).sum(1) / count
        return np.sqrt((np.where(known, rows - mean[:, None], 0) ** 2).sum(1) / count)


def _whole(values: np.ndarray, quantum: float) -> np.ndarray:
    return np.round(values / quantum) * quantum


def _digests(influence: Float[np.ndarray, "train query"]) -> UInt8[np.ndarray, "query byte"]:
    rows = np.ascontiguousarray(np.asarray(influence).T)
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=DIGEST_BYTES).digest() for row in rows)
    return np.frombuffer(digests, np.uint8).reshape(len(rows), DIGEST_BYTES)


def rank_agreement(
    one: Float[np.ndarray, "train query"], other: Float[np.ndarray, "train query"]
) -> Float[np.ndarray, " query"]:
    """Spearman correlation of each column of two estimates; NaN if one is constant or not finite.

    >>> rank_agreement(np.array([[1.0], [2.0], [9.0]]), np.array([[0.1], [0.2], [0.3]])).round(6).tolist()
    [1.0]
    """
    return np.array([_spearman(left, right) for left, right in zip(one.T, other.T, strict=True)])


def _spearman(left: np.ndarray, right: np.ndarray) -> float:
    if not np.isfinite(left).all() or not np.isfinite(right).all():
        return np.nan
    ranks = [_ranks(each) for each in (left, right)]
    if any(np.ptp(each) == 0 for each in ranks):
        return np.nan
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, with ties at their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def top_overlap(
    one: Float[np.ndarray, "train query"], other: Float[np.ndarray, "train query"], k: int = TOP
) -> Float[np.ndarray, " query"]:
    """Share of each query's k most helpful and k most harmful examples that two estimates have in common.

    k is limited to a quarter of the examples, to keep agreement by chance low. NaN with fewer than 4 examples, and for
    columns that are constant or not finite.
    """
    k = min(k, len(one) // 4)
    varies = [np.isfinite(each).all(0) & (np.ptp(np.nan_to_num(each), axis=0) > 0) for each in (one, other)]
    if k < 1:
        return np.full(one.shape[1], np.nan)
    left, right = (np.argsort(each, axis=0, kind="stable") for each in (one, other))
    ends: Iterable[slice] = (slice(None, k), slice(-k, None))
    shared = [
        sum(len(np.intersect1d(left[end, at], right[end, at])) for end in ends) / (2 * k) for at in range(one.shape[1])
    ]
    return np.where(varies[0] & varies[1], shared, np.nan)
