"""What of a batch belongs to each of its examples: rows of tensors, entries of lists, and values that all share.

vmap maps a training step over rows of tensors; whatever else a batch holds reaches the step as it is. Values that are
the same in every batch (None, numbers, texts) may do so. Of a list with an entry for each example, such as names of
files, the step gets one entry that fails where it is read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, cast

from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from bif_lightning.losses.derived.intercept import NotSeparableError

_VALUES: Final = (type(None), bool, int, float, complex, str, bytes)
_LEAVES: Final = (Tensor, *_VALUES)
_ROW: Final = object()


def _fail(*args: object, **kwargs: object) -> NoReturn:
    raise NotSeparableError("the step reads an entry of a list that the batch holds beside its tensors")


_USES: Final = ("__bool__", "__eq__", "__ne__", "__hash__", "__str__", "__repr__", "__format__", "__getattr__")
_Unread: Final = type("_Unread", (), dict.fromkeys(_USES, _fail))
"""Stands for an entry of a list. What is not defined for every object, such as a length, fails by itself."""


@dataclass(frozen=True)
class _Entries:
    """A list, or tuple, with an entry for each example."""

    kind: type


@dataclass(frozen=True)
class ExampleForm:
    """The form of a batch of one, as found by comparing it with a batch of several.

    Attributes:
        spec: the containers.
        leaves: what is in them, in order: a row of a tensor, an entry of a list, or a value.
    """

    spec: TreeSpec
    leaves: tuple[object, ...]

    @classmethod
    def of(cls, batch: Any, single: Any, size: int) -> "ExampleForm":
        """Compare a batch of `size` examples with a batch of one of them.

        Raises:
            NotSeparableError: an example cannot be taken out of a batch.
        """
        leaves, spec = _flat(batch)
        alone, own = _flat(single)
        if (length := _length(leaves)) != size:
            raise NotSeparableError(f"the batch of {size} holds tensors of length {length}")
        if spec != own:
            raise NotSeparableError("the containers of a batch depend on the number of examples")
        return cls(spec, tuple(_kind(*pair, size) for pair in zip(leaves, alone, strict=True)))

    def rows(self, batch: Any) -> list[Tensor]:
        """The tensors of a batch whose rows are examples, in order.

        Raises:
            NotSeparableError: the batch has another form.
        """
        leaves, spec = _flat(batch)
        size = _length(leaves)
        if spec != self.spec:
            kinds = ", ".join(type(leaf).__name__ for leaf in leaves)
            raise NotSeparableError(f"the batch holds {kinds}, in other containers than before")
        for leaf, kind in zip(leaves, self.leaves, strict=True):
            if kind is _ROW and not isinstance(leaf, Tensor):
                raise NotSeparableError(f"the batch holds {type(leaf).__name__} in place of a tensor")
            if isinstance(kind, _Entries) and not (is_list_of_values(leaf) and len(leaf) == size):
                raise NotSeparableError(f"the batch of {size} holds {leaf!r} in place of a list of as many entries")
            if kind is not _ROW and not isinstance(kind, _Entries) and not _equal(leaf, kind):
                raise NotSeparableError(f"the batch holds {leaf!r} in place of {kind!r}")
        return [leaf for leaf, kind in zip(leaves, self.leaves, strict=True) if kind is _ROW]

    def example(self, rows: Sequence[Tensor]) -> Any:
        """The batch of one with these rows of the tensors."""
        left = iter(rows)
        return tree_unflatten([_alone(kind, left) for kind in self.leaves], self.spec)


def _alone(kind: object, rows: Iterator[Tensor]) -> object:
    if kind is _ROW:
        return next(rows)[None]
    return kind.kind([_Unread()]) if isinstance(kind, _Entries) else kind


def _flat(batch: Any) -> tuple[list[Any], TreeSpec]:
    return tree_flatten(batch, is_leaf=is_list_of_values)


def is_list_of_values(part: Any) -> bool:
    """Whether it is a list or tuple of plain values (numbers, texts, None), which may be one for each example."""
    if type(part) not in (list, tuple) or not part:
        return False
    return all(isinstance(item, _VALUES) for item in cast(Sequence[Any], part))


def _length(leaves: Sequence[Any]) -> int:
    """The number of examples: the length of all tensors."""
    for leaf in leaves:
        if not (isinstance(leaf, _LEAVES) or is_list_of_values(leaf)):
            raise NotSeparableError(f"the batch holds {type(leaf).__name__}, and not only tensors in plain containers")
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if any(not tensor.dim() for tensor in tensors) or not tensors:
        raise NotSeparableError("the batch holds a tensor without rows" if tensors else "the batch holds no tensor")
    lengths = sorted({len(tensor) for tensor in tensors})
    if len(lengths) > 1:
        raise NotSeparableError(f"the batch holds tensors of lengths {lengths}")
    return lengths[0]


def _kind(leaf: Any, alone: Any, size: int) -> object:
    if isinstance(leaf, Tensor) and isinstance(alone, Tensor):
        return _ROW
    if is_list_of_values(leaf) and is_list_of_values(alone) and (len(leaf), len(alone)) == (size, 1):
        return _Entries(type(leaf))
    if not _equal(leaf, alone):
        raise NotSeparableError(f"the batch of {size} holds {leaf!r}, and a batch of one {alone!r}")
    return leaf


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other
