"""Descriptions of the train and query examples: ids, labels, texts and thumbnails."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Descriptions of one set of examples, in the order of its axis.

    Attributes:
        ids: a unique string for each example.
        index: position of each example in the dataset that it came from.
        labels: class index of each example, −1 where it has none; None if no example has one.
        label_names: name of each class, by class index; None if unknown.
        texts: text of each example; None if there are none.
        thumbnails: PNG bytes of each example, b"" where it has none; None if there are none.
        columns: further values to sort by, by name: a float64 array (NaN where unknown) or an object array of str, with
            one entry for each example; None if there are none.
        tokens: texts of the tokens of each example, whose concatenation is its text; None if there are none.
        token_ids: ids of the same tokens in their vocabulary; None if unknown.

    >>> samples = Samples(ids=("a", "b"), index=np.array([0, 7]), labels=np.array([1, 0]), label_names=("cat", "dog"))
    >>> len(samples), samples.label_names[samples.labels[0]]
    (2, 'dog')
    """

    ids: tuple[str, ...]
    index: Int[np.ndarray, " sample"]
    labels: Int[np.ndarray, " sample"] | None = None
    label_names: tuple[str, ...] | None = None
    texts: tuple[str, ...] | None = None
    thumbnails: tuple[bytes, ...] | None = None
    columns: Mapping[str, np.ndarray] | None = None
    tokens: tuple[tuple[str, ...], ...] | None = None
    token_ids: tuple[Int[np.ndarray, " _"], ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)
