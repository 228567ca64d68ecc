"""Means of influence over pairs of a train label and a query label, summed over blocks of train rows.

Since Cov is bilinear, such a mean is the influence between the mean losses of two groups. Its standard error is
computed from its values in batches of draws.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from bif_lightning.statistics.influence import BatchCovariances, weighted_sum
from bif_lightning.statistics.standard_errors import ErrorModel, correlation_error, influence_error


@dataclass(frozen=True)
class Labels:
    """Class index of each train and each query example; −1 for none."""

    train: Int[np.ndarray, " train"]
    query: Int[np.ndarray, " query"]


@dataclass(frozen=True, kw_only=True)
class LabelMeans:
    """Mean influence of all train examples of one label on all queries of one label, for every pair of labels.

    Since Cov is bilinear, such a mean is the influence between the mean losses of two groups. Its standard error is
    computed from the draws of this mean, because the entries that it averages are far from independent.

    Attributes:
        train_labels, query_labels: label of each row and column, ascending.
        influence, correlation: means of the entries of the matrices of the same name.
        influence_standard_error, correlation_standard_error: Monte Carlo standard errors of these means.

    >>> means = snapshot.label_means  # of an Estimate whose train and query examples have labels
    >>> means.correlation.shape == (len(means.train_labels), len(means.query_labels))
    True
    """

    train_labels: Int[np.ndarray, " train_label"]
    query_labels: Int[np.ndarray, " query_label"]
    influence: Float[np.ndarray, "train_label query_label"]
    influence_standard_error: Float[np.ndarray, "train_label query_label"]
    correlation: Float[np.ndarray, "train_label query_label"]
    correlation_standard_error: Float[np.ndarray, "train_label query_label"]


@dataclass(frozen=True)
class LabelSums:
    """Sums over pairs of labels, for some train rows.

    Attributes:
        influence, correlation: sums of each batch's terms over entries; undefined entries count as 0.
        influence_bias, correlation_bias: sums of the biases of entries (`standard_errors`).
        defined: number of entries with a correlation.
    """

    influence: Float[np.ndarray, "batch train_label query_label"]
    correlation: Float[np.ndarray, "batch train_label query_label"]
    influence_bias: Float[np.ndarray, "train_label query_label"]
    correlation_bias: Float[np.ndarray, "train_label query_label"]
    defined: Float[np.ndarray, "train_label query_label"]

    def add_(self, other: "LabelSums") -> None:
        """Add the sums of further rows."""
        for mine, others in zip(vars(self).values(), vars(other).values(), strict=True):
            mine += others


@dataclass(frozen=True)
class _Groups:
    """Examples sorted by label.

    Attributes:
        order: the labelled examples, sorted by label.
        starts: start of each label in this order.
        labels: the labels, ascending.
    """

    order: Int[np.ndarray, " example"]
    starts: Int[np.ndarray, " label"]
    labels: Int[np.ndarray, " label"]

    @classmethod
    def of(cls, labels: Int[np.ndarray, " example"]) -> "_Groups":
        """Group examples by label; −1 means unlabelled."""
        labelled = np.flatnonzero(labels >= 0)
        order = labelled[np.argsort(labels[labelled], kind="stable")]
        present, starts = np.unique(labels[order], return_index=True)
        return cls(order, starts, present)

    @property
    def sizes(self) -> Int[np.ndarray, " label"]:
        """Number of examples of each label."""
        return np.diff(self.starts, append=len(self.order))

    def sums(self, values: Float[np.ndarray, "..."], axis: int) -> Float[np.ndarray, "..."]:
        """Add up the examples of each label along an axis, in sorted order, which is faster than a matrix product."""
        return np.add.reduceat(values.take(self.order, axis), self.starts, axis)


class LabelIndex:
    """Index of train rows and queries by label."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._train, self._query = _Groups.of(labels.train), _Groups.of(labels.query)
        self.train_labels, self.query_labels = (side.labels.astype(np.int64) for side in (self._train, self._query))

    @property
    def cells(self) -> int:
        """Number of pairs of a train label and a query label."""
        return len(self.train_labels) * len(self.query_labels)

    def zero(self, batches: int) -> LabelSums:
        """Sums over no rows."""
        shape = len(self.train_labels), len(self.query_labels)
        return LabelSums(*(np.zeros((batches, *shape)) for _ in range(2)), *(np.zeros(shape) for _ in range(3)))

    def add_rows_(
        self,
        sums: LabelSums,
        rows: slice,
        draws: BatchCovariances,
        moved: Float[np.ndarray, "batch row column"],
        biases: tuple[Float[np.ndarray, "row column"], Float[np.ndarray, "row column"]],
    ) -> None:
        """Add some train rows to the sums.

        Args:
            sums: sums to add to.
            rows: the train rows.
            draws: their covariances with all columns, the queries first.
            moved: their correlation with all columns, linearized in each batch (`influence.correlation`).
            biases: biases of their influence and correlation with all columns.
        """
        some = _Groups.of(self._labels.train[rows])
        if self.cells == 0 or len(some.order) == 0:
            return
        place, queries = np.searchsorted(self.train_labels, some.labels), len(self._labels.query)

        def of_blocks(values: np.ndarray) -> np.ndarray:
            known = np.nan_to_num(values[..., :queries], nan=0.0)
            return some.sums(self._query.sums(known, -1), -2)

        sums.influence[:, place] -= of_blocks(draws.covariance)
        sums.correlation[:, place] += of_blocks(moved)
        sums.influence_bias[place] += of_blocks(biases[0])
        sums.correlation_bias[place] += of_blocks(biases[1])
        sums.defined[place] += of_blocks((~np.isnan(moved[0])).astype(np.float64))

    def means(self, sums: LabelSums, share: Float[np.ndarray, " batch"], errors: ErrorModel) -> LabelMeans | None:
        """Compute means over pairs of labels and their standard errors; None if a side has no labels.

        Args:
            sums: sums over all rows.
            share: n_k/N, each batch's share of all draws.
            errors: model of the errors. The correlation of two group means is unknown; it is taken as 1, the case of
                largest skewness.
        """
        if self.cells == 0:
            return None
        size = self._train.sizes[:, None] * self._query.sizes
        covariance = weighted_sum(sums.influence / size, share)
        with np.errstate(invalid="ignore"):  # a pair of labels may have no defined correlation
            corr = weighted_sum(sums.correlation / sums.defined, share)
            biases = sums.influence_bias / size, sums.correlation_bias / sums.defined
        one = np.ones_like(covariance.value)
        return LabelMeans(
            train_labels=self.train_labels,
            query_labels=self.query_labels,
            influence=covariance.value,
            influence_standard_error=influence_error(covariance.standard_error, one, errors.influence, biases[0]),
            correlation=corr.value,
            correlation_standard_error=correlation_error(corr.standard_error, errors.correlation, biases[1]),
        )
