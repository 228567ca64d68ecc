"""Means of influence over blocks of equal labels: sums a block of train rows at a time, batch by batch of draws.

Cov is bilinear, so a block mean is itself an influence, and its error comes from its own batches of draws.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bif_lightning.results.estimate import LabelMeans
from bif_lightning.statistics.influence import BatchCovariances, weighted_mean
from bif_lightning.statistics.standard_errors import ErrorModel, correlation_error, influence_error


@dataclass(frozen=True)
class Labels:
    """Class index of each train and each query example; −1 for none."""

    train: Int[np.ndarray, " train"]
    query: Int[np.ndarray, " query"]


@dataclass(frozen=True)
class LabelSums:
    """Sums over blocks of equal labels, of some train rows.

    Attributes:
        influence, correlation: sums of the entries of each block, batch by batch; undefined ones count as 0.
        influence_bias, correlation_bias: sums of what each entry is biased by (`errors`).
        defined: how many entries of each block have a correlation.
    """

    influence: Float[Tensor, "batch train_label query_label"]
    correlation: Float[Tensor, "batch train_label query_label"]
    influence_bias: Float[Tensor, "train_label query_label"]
    correlation_bias: Float[Tensor, "train_label query_label"]
    defined: Float[Tensor, "train_label query_label"]

    def add_(self, other: "LabelSums") -> None:
        """Take in the sums of further rows."""
        self.influence.add_(other.influence)
        self.correlation.add_(other.correlation)
        self.influence_bias.add_(other.influence_bias)
        self.correlation_bias.add_(other.correlation_bias)
        self.defined.add_(other.defined)


class LabelIndex:
    """Which train rows and queries have which label."""

    def __init__(self, labels: Labels) -> None:
        self.train_labels, self._train = _places(labels.train)
        self.query_labels, self._query = _places(labels.query)

    @property
    def cells(self) -> int:
        """Blocks of equal labels."""
        return len(self.train_labels) * len(self.query_labels)

    def zero(self, batches: int) -> LabelSums:
        """Sums of no rows."""
        shape = len(self.train_labels), len(self.query_labels)
        whole = torch.zeros(shape, dtype=torch.float64)
        each = whole.new_zeros(batches, *shape)
        return LabelSums(each, each.clone(), whole, whole.clone(), whole.clone())

    def add_rows_(
        self, sums: LabelSums, rows: slice, draws: BatchCovariances, moved: Tensor, biases: tuple[Tensor, Tensor]
    ) -> None:
        """Add some train rows to the sums.

        Args:
            sums: to add to.
            rows: which of the train examples they are.
            draws: their products with all columns, the queries first.
            moved: their correlation with all columns, batch by batch (`influence.correlation`).
            biases: of influence and of correlation, with all columns.
        """
        queries = len(self._query)
        covariance, moved = draws.covariance[:, :, :queries], moved[:, :, :queries]
        place = self._train[rows]
        known = (place < len(self.train_labels)).nonzero().flatten()
        place = place[known]
        defined = (~moved[0].isnan()).double()
        sums.influence.index_add_(1, place, self._by_query(-covariance)[:, known])
        sums.correlation.index_add_(1, place, self._by_query(moved)[:, known])
        for sum_of, bias in zip((sums.influence_bias, sums.correlation_bias), biases, strict=True):
            sum_of.index_add_(0, place, self._by_query(bias[:, :queries])[known])
        sums.defined.index_add_(0, place, self._by_query(defined)[known])

    def means(self, sums: LabelSums, share: Float[Tensor, " batch"], reach: ErrorModel) -> LabelMeans | None:
        """Block means and their standard errors; None where a side has no label.

        Args:
            sums: of all rows.
            share: n_k/N, each batch's share of all draws.
            reach: how errors are made. Means of losses over a group are taken to be correlated, so that their products
                are as skewed as can be.
        """
        if self.cells == 0:
            return None
        size = _counts(self._train, len(self.train_labels))[:, None] * _counts(self._query, len(self.query_labels))
        covariance = weighted_mean(sums.influence / size, share)
        corr = weighted_mean(sums.correlation / sums.defined, share)
        biases = sums.influence_bias / size, sums.correlation_bias / sums.defined
        one = torch.ones_like(covariance.value)
        covariance_error = influence_error(covariance.standard_error, one, reach.influence, biases[0])
        corr_error = correlation_error(corr.standard_error, reach.correlation, biases[1])
        return LabelMeans(
            train_labels=self.train_labels,
            query_labels=self.query_labels,
            influence=covariance.value.numpy(),
            influence_standard_error=covariance_error.numpy(),
            correlation=corr.value.numpy(),
            correlation_standard_error=corr_error.numpy(),
        )

    def _by_query(self, values: Float[Tensor, "*batch row query"]) -> Float[Tensor, "*batch row query_label"]:
        """Sums over the queries of each label: by scattering, as a product with every label costs far more."""
        out = torch.zeros(*values.shape[:-1], len(self.query_labels) + 1, dtype=torch.float64)
        return out.scatter_add_(-1, self._query.expand_as(values), values.nan_to_num(nan=0.0))[..., :-1]


def _places(labels: np.ndarray) -> tuple[np.ndarray, Int[Tensor, " example"]]:
    """The labels that occur, ascending, and the place of each example's among them (one past the last for none)."""
    values = np.unique(labels[labels >= 0]).astype(np.int64)
    place = np.where(labels >= 0, np.searchsorted(values, labels), len(values))
    return values, torch.from_numpy(place.astype(np.int64))


def _counts(places: Tensor, size: int) -> Tensor:
    return places.bincount(minlength=size + 1)[:size].double()
