"""Rows of a dataset, in the forms in which people have them: numbers of NumPy, torch and pandas, ranges, masks."""

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch import Tensor

_LISTS = (list, tuple, range)


@dataclass(frozen=True)
class Rows:
    """Positions in a dataset.

    Attributes:
        indices: the positions, in the order given.
        mask: length of the mask that they were given by; None where they were given as numbers.
    """

    indices: tuple[int, ...]
    mask: int | None = None


def rows_of(data: Any) -> Rows | None:
    """The rows that these values are: whole numbers, or a mask of True and False; None for a dataset.

    It takes ranges, lists and tuples, arrays, tensors, and what converts to an array of one dimension, such as an
    index or a column of pandas; of `np.nonzero` its tuple, of `np.argwhere` and `torch.nonzero` the one column.

    >>> rows_of(np.array([3, 5])), rows_of([False, True, True]), rows_of([("an", "example")])
    (Rows(indices=(3, 5), mask=None), Rows(indices=(1, 2), mask=3), None)

    Raises:
        ValueError: numbers in floating point that are whole, which may be meant as rows or as examples.
    """
    if isinstance(data, range):
        return Rows(tuple(data))
    values = _plain_values(data)
    if values is None:
        return None
    if values and all(isinstance(value, bool | np.bool_) for value in values):
        return Rows(tuple(i for i, kept in enumerate(values) if kept), len(values))
    if all(_is_whole(value) for value in values):
        return Rows(tuple(int(value) for value in values))
    if all(isinstance(value, float | np.floating) and float(value).is_integer() for value in values):
        raise ValueError(
            f"{len(values)} whole numbers in floating point, the first {values[0]}, may be rows or examples: give rows "
            "as whole numbers, for example values.astype(int), and examples as a dataset, for example "
            "torch.utils.data.TensorDataset(values)"
        )
    return None


def whole_number(value: Any) -> int | None:
    """The int that a whole number of Python, NumPy or torch is; None for anything else, booleans included."""
    (plain,) = _plain_items([value])
    return int(plain) if _is_whole(plain) else None


def _plain_values(data: Any) -> list[Any] | None:
    """The numbers in what may be a list of them, as those of Python or NumPy; None where it is something else."""
    if isinstance(data, tuple) and len(cast(Sequence[Any], data)) == 1 and _dimensions(data[0]) == 1:
        return _plain_values(data[0])
    if isinstance(data, _LISTS):
        return _plain_items(cast(Sequence[Any], data))
    found = _as_array(data)
    if found is None:
        return None
    if found.ndim == 2 and found.shape[1] == 1 and np.issubdtype(found.dtype, np.integer):
        found = found[:, 0]
    return list(found) if found.ndim == 1 else None


def _plain_items(values: Sequence[Any]) -> list[Any]:
    """The items, those that are arrays or tensors of no dimension as the numbers in them."""
    return [value.item() if _dimensions(value) == 0 else value for value in values]


def _dimensions(value: Any) -> int | None:
    return value.ndim if isinstance(value, np.ndarray | Tensor) else None


def _as_array(data: Any) -> np.ndarray | None:
    """The array of at most two dimensions that a value is or converts to, unless it is a dataset of its own kind."""
    if isinstance(data, Tensor):
        data = data.detach().cpu().numpy() if data.dim() <= 2 and not data.dtype.is_complex else None
    elif not isinstance(data, np.ndarray):
        # Frames of columns and datasets convert too; only what has one dimension holds rows.
        one = getattr(data, "ndim", None) == 1 and hasattr(data, "__array__")
        data = np.asarray(data) if one else None
    return data


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool | np.bool_)
