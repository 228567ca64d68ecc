"""Who the train and query examples are: ids, labels, texts and thumbnails, for files, plots and tables."""

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
    """

    ids: tuple[str, ...]
    index: Int[np.ndarray, " sample"]
    labels: Int[np.ndarray, " sample"] | None = None
    label_names: tuple[str, ...] | None = None
    texts: tuple[str, ...] | None = None
    thumbnails: tuple[bytes, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)
