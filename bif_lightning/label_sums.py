"""Means of influence over blocks of equal labels: sums a block of train rows at a time, batch by batch of draws.

Cov is bilinear, so a block mean is itself an influence, and its error comes from its own batches of draws.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bif_lightning.influence import Products, weighted_mean
from bif_lightning.result import LabelMeans


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
        defined: how many entries of each block have a correlation.
    """

    influence: Float[Tensor, "batch train_label query_label"]
    correlation: Float[Tensor, "batch train_label query_label"]
    defined: Float[Tensor, "train_label query_label"]

    def add_(self, other: "LabelSums") -> None:
        """Take in the sums of further rows."""
        self.influence.add_(other.influence)
        self.correlation.add_(other.correlation)
        self.defined.add_(other.defined)


class Grouping:
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
        defined = torch.zeros(shape, dtype=torch.float64)
        return LabelSums(defined.new_zeros(batches, *shape), defined.new_zeros(batches, *shape), defined)

    def add_rows_(self, sums: LabelSums, rows: slice, draws: Products, moved: Tensor) -> None:
        """Add some train rows to the sums.

        Args:
            sums: to add to.
            rows: which of the train examples they are.
            draws: their products with all columns, the queries first.
            moved: their correlation with all columns, batch by batch (`influence.correlation`).
        """
        queries = len(self._query)
        covariance, moved = draws.covariance[:, :, :queries], moved[:, :, :queries]
        place = self._train[rows]
        known = (place < len(self.train_labels)).nonzero().flatten()
        place = place[known]
        defined = (~moved[0].isnan()).double()
        sums.influence.index_add_(1, place, self._by_query(-covariance)[:, known])
        sums.correlation.index_add_(1, place, self._by_query(moved)[:, known])
        sums.defined.index_add_(0, place, self._by_query(defined)[known])

    def means(self, sums: LabelSums, share: Float[Tensor, " batch"], error_inflation: float) -> LabelMeans | None:
        """Block means and their standard errors; None where a side has no label.

        Args:
            sums: of all rows.
            share: n_k/N, each batch's share of all draws.
            error_inflation: by what the errors from single batches are multiplied.
        """
        if self.cells == 0:
            return None
        size = _counts(self._train, len(self.train_labels))[:, None] * _counts(self._query, len(self.query_labels))
        covariance = weighted_mean(sums.influence / size, share)
        corr = weighted_mean(sums.correlation / sums.defined, share)
        return LabelMeans(
            train_labels=self.train_labels,
            query_labels=self.query_labels,
            influence=covariance.value.numpy(),
            influence_standard_error=error_inflation * covariance.standard_error.numpy(),
            correlation=corr.value.numpy(),
            correlation_standard_error=error_inflation * corr.standard_error.numpy(),
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
