"""Examples that a check sees the most with: such as differ in their lengths, masks and missing entries.

These decide how a loss divides a batch among its examples, and how a collate function orders and fills it. Often most
examples are alike in them.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from bif_lightning.data.dataset import Batch, Examples, spread_rows

POOL = 64
"""Examples that are read to choose among, evenly spread."""

_PARTS = 64
_CHECKED = 8


@dataclass(frozen=True)
class CheckedExamples:
    """A few examples of a set, that losses are checked on.

    Attributes:
        name: of the set.
        rows: of the examples in it.
        collated: makes a batch of some of these rows.
        prepare: makes it ready for the module.
    """

    name: str
    rows: list[int]
    collated: Callable[[Sequence[int]], Batch]
    prepare: Callable[[Batch], Batch]

    @classmethod
    def of(cls, name: str, examples: Examples, prepare: Callable[[Batch], Batch]) -> "CheckedExamples":
        """Those that a check sees the most with. Each is read once: an augmentation would differ from itself."""
        items = varied_items(examples, _CHECKED)
        return cls(name, list(items), lambda rows: examples.collate([items[row] for row in rows]), prepare)

    def batch_of(self, rows: Sequence[int]) -> Batch:
        """The batch of some of these rows, ready for the module."""
        return self.prepare(self.collated(rows))

    def batch(self) -> Batch:
        """The batch of all of them."""
        return self.batch_of(self.rows)


def varied_items(examples: Examples, count: int) -> dict[int, Any]:
    """Items of `count` examples by row, in order: of rare forms up to a half of them, and evenly spread ones.

    Each is read once.
    """
    spread = spread_rows(len(examples), count).tolist()
    items = {row: examples.item(row) for row in sorted({*spread, *spread_rows(len(examples), POOL).tolist()})}
    forms = {row: form_of(item) for row, item in items.items()}
    common, firsts = Counter(forms.values()), dict[Hashable, int]()
    rarity = {row: common[form] for row, form in forms.items()}
    for row in sorted(items, key=rarity.__getitem__):
        firsts.setdefault(forms[row], row)
    rare = list(firsts.values())[: count // 2]
    rest = [row for row in spread if row not in rare]
    left = min(count, len(items)) - len(rare)
    chosen = [*rare, *(rest[place] for place in spread_rows(len(rest), left).tolist())] if left else rare
    return {row: items[row] for row in sorted(chosen)}


def form_of(item: Any) -> Hashable:
    """The form of an item: lengths, and in powers of two how many entries are 0, NaN or (if whole numbers) below 0.

    >>> form_of(torch.tensor([1, 0, -100])) == form_of([5, 0, -1]), form_of([1, 2]) == form_of([1, 2, 3])
    (True, False)
    """
    if isinstance(item, Tensor):
        plain = item.layout is torch.strided and not item.is_nested and not item.is_complex()
        return _form_of_tensor(item.detach()) if plain else str(item.layout)
    if isinstance(item, np.ndarray):
        return _form_of_array(cast("np.ndarray[Any, Any]", item))
    if isinstance(item, Mapping):
        return tuple((str(key), form_of(value)) for key, value in cast("Mapping[Any, Any]", item).items())
    if isinstance(item, list | tuple):
        return _form_of_sequence(cast("Sequence[Any]", item))
    if isinstance(item, str | bytes):
        return type(item).__name__, len(item.split()).bit_length()
    if isinstance(item, int | float):
        return type(item).__name__, isinstance(item, int) and item < 0, math.isnan(item)
    return type(item).__name__


def _form_of_sequence(items: Sequence[Any]) -> Hashable:
    if items and all(isinstance(item, Number) and not isinstance(item, complex) for item in items):
        return _form_of_array(np.asarray(items))
    return len(items), tuple(form_of(item) for item in items[:_PARTS])


def _form_of_tensor(item: Tensor) -> Hashable:
    zeros = item.numel() - int(item.count_nonzero())
    negative = 0 if item.is_floating_point() else int((item < 0).sum())
    if not item.dim() and (item.is_floating_point() or item.dtype == torch.bool):
        return (), zeros, negative, int(item.isnan())  # a weight or a mask
    return _counted(tuple(item.shape), zeros, negative, int(item.isnan().sum()))


def _form_of_array(item: "np.ndarray[Any, Any]") -> Hashable:
    if item.dtype.kind not in "biuf":
        return item.shape, item.dtype.kind
    zeros = item.size - int(np.count_nonzero(item))
    negative = 0 if item.dtype.kind == "f" else int((item < 0).sum())
    return _counted(item.shape, zeros, negative, int(np.isnan(item).sum()))


def _counted(shape: tuple[int, ...], zeros: int, negative: int, missing: int) -> Hashable:
    # A single number is a label or a target as often as not: its class says nothing of the form.
    return shape, zeros.bit_length() if shape else 0, negative.bit_length(), missing.bit_length()
