"""The number of examples in a batch, from the lengths of its tensors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, cast

from torch import Tensor

from bif_lightning.losses.derived.intercept import NotSeparableError

BatchOf = Callable[[Sequence[int]], Any]
"""Indices of examples -> their collated batch, on the module's device."""


def examples_in(batch: Any) -> int:
    """The number of examples in a batch: the length that all its tensors of one dimension or more share.

    Args:
        batch: a tensor, or mappings, sequences and dataclasses with tensors in them, to any depth.

    Raises:
        NotSeparableError: the batch has no such tensor, or their lengths differ.

    >>> import torch
    >>> examples_in({"x": torch.zeros(3, 5), "y": torch.zeros(3), "scale": torch.tensor(1.0)})
    3
    """
    lengths = sorted({tensor.shape[0] for tensor in tensors_in(batch) if tensor.dim()})
    if len(lengths) != 1:
        found = f"tensors of lengths {lengths}" if lengths else "no tensor"
        raise NotSeparableError(
            f"the number of examples in a batch of type {type(batch).__name__} with {found} is ambiguous; pass "
            "size_of(batch) -> int"
        )
    return lengths[0]


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """All tensors of a batch, in order."""
    if isinstance(batch, Tensor):
        yield batch
        return
    for part in _parts(batch):
        yield from tensors_in(part)


def _parts(batch: Any) -> Sequence[Any]:
    if isinstance(batch, Mapping):
        return list(cast("Mapping[Any, Any]", batch).values())
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        return cast("Sequence[Any]", batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return [getattr(batch, field.name) for field in fields(batch)]
    return ()
