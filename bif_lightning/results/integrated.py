"""Influence over a whole training: the sum of the influences at its snapshots, each query on its own scale.

With B_t the influence matrix of the snapshot at step t, n train examples and

    s_t[j] = sd_i(B_t[i, j]),    z_t[i, j] = B_t[i, j] / s_t[j],

the integrated influence is I[i, j] = Σ_t z_t[i, j]. The scale is that of a query at a snapshot, since raw covariances
grow and shrink by orders with the curvature. It divides out how wrong the query still is: of a model that is linear in
its weights, with one output f_j of residual r_j, B_t[i, j] ∝ −r_j(t)·∇f_jᵀ(H + λ)⁻¹g_i(t), of which z_t keeps the sign
of r_j(t) and drops its size.

It has two standard errors, which answer different questions:

    of the estimates   Σ_t e_t[i, j] / s_t[j], e_t the Monte Carlo errors of the snapshots. Their errors may depend on
                       one another (common random numbers make them), and a sum of standard deviations bounds the
                       standard deviation of a sum whatever the dependence.
    of the moments     √(K/(K − 1)·Σ_t (z_t − z̄)²): how far the sum would move with K other moments of the same
                       training, were they drawn at random. It includes the first, and real change over training.

The error of s_t itself is left out: it moves a whole column at once, which changes no ranking, and is of order 1/√n.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

INTEGRATED_SIGN = (
    "integrated influence = sum over snapshots of the influence in standard deviations of its query's column. Its "
    "sign is that of the influence: of a query's loss, negative = the train example helps."
)

TOP = 10
"""Examples at either end of a query's ranking whose stability is measured."""

# Float64 adds multiples of one quantum exactly, in any order, up to 2^53 of them: the order of snapshots and the way
# that parts are merged change no bit of a sum below 2^17 (values), 2^27 (squares).
_QUANTUM, _SQUARE_QUANTUM = 2.0**-36, 2.0**-26


@dataclass
class IntegratedInfluence:
    """A sum over snapshots that grows by each: I, its errors, and how many snapshots each column is of.

    Three arrays of the size of one matrix, in float64, whatever the number of snapshots.

    Attributes:
        total: I, standard deviations of a column at a snapshot.
        squares: Σ z².
        errors: Σ e/s.
        counts: snapshots in each column.
        steps: that were pushed.

    >>> found = IntegratedInfluence.zeros(3, 1)
    >>> for step, column in enumerate(([-1.0, 0.0, 1.0], [-20.0, 0.0, 20.0])):
    ...     _ = found.push(step, np.array(column)[:, None], np.zeros((3, 1)))
    >>> found.total[:, 0].round(3).tolist(), found.counts.tolist()
    ([-2.449, 0.0, 2.449], [2])
    """

    total: Float[np.ndarray, "train query"]
    squares: Float[np.ndarray, "train query"]
    errors: Float[np.ndarray, "train query"]
    counts: Int[np.ndarray, " query"]
    steps: set[int] = field(default_factory=set[int])

    @classmethod
    def zeros(cls, train: int, query: int) -> "IntegratedInfluence":
        """The sum over no snapshot."""
        shape = train, query
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(query, np.int64))

    def push(
        self,
        step: int,
        influence: Float[np.ndarray, "train query"],
        standard_error: Float[np.ndarray, "train query"],
        counted: Bool[np.ndarray, " query"] | None = None,
    ) -> Bool[np.ndarray, " query"]:
        """Add a snapshot; a step that is in the sum already changes nothing.

        Args:
            step: of the snapshot.
            influence, standard_error: of it, in one unit.
            counted: columns to add; None for all.

        Returns:
            which columns were added: not those without variance, or with an infinite value, which have no scale. An
            entry that is NaN at a snapshot is NaN in the sum.
        """
        if step in self.steps:
            return np.zeros(len(self.counts), bool)
        self.steps.add(step)
        values = np.asarray(influence, np.float64)
        scale = _deviations(values)
        added = usable(scale) if counted is None else counted & usable(scale)
        z = values[:, added] / scale[added]
        self.total[:, added] += _whole(z, _QUANTUM)
        self.squares[:, added] += _whole(z * z, _SQUARE_QUANTUM)
        self.errors[:, added] += _whole(np.asarray(standard_error, np.float64)[:, added] / scale[added], _QUANTUM)
        self.counts += added
        return added

    def merge(self, other: "IntegratedInfluence") -> "IntegratedInfluence":
        """The sum over the snapshots of both, bitwise that of pushing them all into one.

        Raises:
            ValueError: a step is in both.
        """
        if both := self.steps & other.steps:
            raise ValueError(f"steps {sorted(both)} are in both sums; a snapshot counts once")
        return IntegratedInfluence(
            self.total + other.total,
            self.squares + other.squares,
            self.errors + other.errors,
            self.counts + other.counts,
            self.steps | other.steps,
        )

    @property
    def influence(self) -> Float[np.ndarray, "train query"]:
        """I; NaN in columns of no snapshot."""
        return np.where(self.counts > 0, self.total, np.nan)

    @property
    def standard_error(self) -> Float[np.ndarray, "train query"]:
        """Of the estimates: Σ e/s, a bound whatever their dependence."""
        return np.where(self.counts > 0, self.errors, np.nan)

    @property
    def moment_standard_error(self) -> Float[np.ndarray, "train query"]:
        """Of the moments: √(K/(K − 1)·Σ (z − z̄)²); NaN of fewer than two snapshots."""
        count = np.where(self.counts > 1, self.counts, np.nan)
        scatter = np.maximum(self.squares - self.total**2 / count, 0)
        return np.sqrt(count / (count - 1) * scatter)


def _deviations(values: Float[np.ndarray, "train query"]) -> Float[np.ndarray, " query"]:
    """Standard deviation of each column over its known entries; NaN where there are none, or one is infinite."""
    # Of rows that lie in one piece, NumPy adds in an order that does not depend on how many there are: a query alone
    # has the bits that it has among others.
    rows = np.ascontiguousarray(values.T)
    known = ~np.isnan(rows)
    with np.errstate(invalid="ignore", over="ignore"):
        count = known.sum(1)
        mean = np.where(known, rows, 0).sum(1) / count
        return np.sqrt((np.where(known, rows - mean[:, None], 0) ** 2).sum(1) / count)


def usable(scale: Float[np.ndarray, " query"]) -> Bool[np.ndarray, " query"]:
    """Whether columns of these standard deviations can be divided by them."""
    return np.isfinite(scale) & (scale > 0)


def _whole(values: np.ndarray, quantum: float) -> np.ndarray:
    return np.round(values / quantum) * quantum


class DistinctColumns:
    """Knows which columns came before, bit for bit: snapshots of the same weights, with common random numbers.

    >>> known = DistinctColumns()
    >>> known.new(np.array([[1.0, 2.0]])).tolist(), known.new(np.array([[1.0, 3.0]])).tolist()
    ([True, True], [False, True])
    """

    def __init__(self) -> None:
        self._digests = set[tuple[int, bytes]]()

    def new(self, influence: Float[np.ndarray, "train query"]) -> Bool[np.ndarray, " query"]:
        """Which columns of a snapshot no earlier one had at the same place."""
        keys = [(at, _digest(column)) for at, column in enumerate(influence.T)]
        found = np.array([key not in self._digests for key in keys], bool)
        self._digests.update(keys)
        return found


def _digest(column: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(column).tobytes(), digest_size=16).digest()


def rank_agreement(
    one: Float[np.ndarray, "train query"], other: Float[np.ndarray, "train query"]
) -> Float[np.ndarray, " query"]:
    """Spearman correlation of each column of two estimates; NaN where one is constant or not finite.

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
    """Ranks, ties at their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def top_overlap(
    one: Float[np.ndarray, "train query"], other: Float[np.ndarray, "train query"], k: int = TOP
) -> Float[np.ndarray, " query"]:
    """Of each query's k most helpful and k most harmful examples by one estimate, the share in the other's.

    k is at most a quarter of the examples, so that chance does not fill it. NaN with fewer than 4 of them, and where a
    column is constant or not finite.
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
