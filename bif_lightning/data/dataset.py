"""Batches of a map-style dataset by row number."""

import copy
import dataclasses
import hashlib
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from bif_lightning.data.tensors import plain_tensor
from bif_lightning.rng import seed_global

Batch = Any
"""What the collate function makes of a list of examples."""

Collate = Callable[[list[Any]], Batch]

CACHE_BYTES = 1 << 30
"""A dataset whose stacked tensors are smaller than this is kept stacked in memory."""

_PROBE = 8

_READING = threading.Lock()
"""Chains read minibatches from several threads; a dataset (an open file, a decoder) may not be thread-safe."""


class MapDataset(Protocol):
    """A dataset of known length with random access."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


def check_map_style(dataset: Any, name: str) -> None:
    """Check that a dataset has a length and random access, and is not empty.

    Raises:
        TypeError: an iterable stream.
        ValueError: an empty set.
    """
    if isinstance(dataset, torch.utils.data.IterableDataset) or not (
        callable(getattr(dataset, "__len__", None)) and callable(getattr(dataset, "__getitem__", None))
    ):
        raise TypeError(
            f"{name} is a {type(dataset).__name__}, which has no length or no random access; influence needs the "
            f"same examples at every draw: pass a map-style dataset, for example list(itertools.islice({name}, n))"
        )
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty; pass at least one example")


class Examples:
    """Batches of a dataset, by row number.

    Where every example consists of tensors, and stacking the whole set once gives the same bits as collating each
    batch (checked on examples spread over the set), batches are rows of the stacked set: the dataset is read once,
    and a batch costs an index. Otherwise each batch is collated again, the only way that is right for every
    structure that a collate function can return.

    Args:
        dataset: map-style; its i-th item must be the same at every access.
        collate: makes a batch of a list of items; the default is torch's.
        rows: use only these items, in this order.
    """

    def __init__(self, dataset: MapDataset, collate: Collate | None = None, rows: Sequence[int] | None = None) -> None:
        self.dataset = dataset
        self.collate: Collate = collate or default_collate
        self.rows = range(len(dataset)) if rows is None else rows
        self.repeats = True
        """Whether reading again, with the global generators in the same state, gives the same examples."""
        self._stacked: Batch | None = None
        self._tried = False

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def in_memory(self) -> bool:
        """Whether the set is kept stacked, so that a batch costs an index."""
        return self._stacked is not None

    def collated(self, indices: Sequence[int]) -> Batch:
        """The batch of these rows, made by the collate function from the dataset's items."""
        with _READING:
            return self.collate([self.item(i) for i in indices])

    def item(self, row: int) -> Any:
        """One example, read from the dataset."""
        return self.dataset[self.rows[row]]

    def batch(self, indices: Tensor) -> Batch:
        """The batch of these rows; from memory where `prepare` found the bits to be the same."""
        if self._stacked is not None:
            return _take(self._stacked, indices)
        return self.collated(cast(list[int], indices.tolist()))

    def batches(self, size: int) -> list[tuple[Batch, int]]:
        """All rows in order, in batches of at most `size`, each with its number of examples."""
        chunks = torch.arange(len(self), device="cpu").split(size)
        return [(self.batch(chunk), len(chunk)) for chunk in chunks]

    def prepare(self) -> None:
        """Stack the set in memory if that is safe and small enough. Called once, before the first batch; seeds the
        global generators."""
        if self._tried:
            return
        self._tried = True
        count = len(self)
        probe = torch.linspace(0, count - 1, min(_PROBE, count), device="cpu").long().unique()
        first = self.collated(cast(list[int], probe.tolist()))
        self.repeats = self._repeats(probe)
        bytes_each = _bytes(first, len(probe))
        if bytes_each is None or bytes_each * count > CACHE_BYTES:
            return
        try:
            stacked = self.collated(range(count))
        except (
            RuntimeError,
            ValueError,
            TypeError,
        ):  # ragged examples collate in small batches only, if at all
            return
        if (
            _bytes(stacked, count) is not None
            and self._collates_to_rows_of(stacked, probe)
            and _same(first, _take(stacked, probe))
        ):
            self._stacked = stacked

    def renew(self) -> None:
        """Forget what is kept in memory where the dataset now gives other examples, as far as a few of them show."""
        if self._stacked is None:
            return
        probe = torch.linspace(0, len(self) - 1, min(_PROBE, len(self)), device="cpu").long().unique()
        if not _same(self.collated(cast(list[int], probe.tolist())), _take(self._stacked, probe)):
            self._stacked, self._tried = None, False
            self.prepare()

    def _repeats(self, probe: Tensor) -> bool:
        found = list[str]()
        for _ in range(2):
            seed_global(torch.device("cpu"), 0)
            found.append(digest(self.collated(cast(list[int], probe.tolist()))))
        return found[0] == found[1]

    def _collates_to_rows_of(self, stacked: Batch, probe: Tensor) -> bool:
        """Compare one by one too: a collate function that pads to the longest example of a batch gives other rows."""
        return all(_same(_take(stacked, one), self.collated(cast(list[int], one.tolist()))) for one in probe.split(1))


class RepeatedExamples(Examples):
    """Examples of which some count several times, each kept once.

    Args:
        dataset, collate: as of `Examples`.
        rows: positions in the dataset, each as often as it counts.
    """

    def __init__(self, dataset: MapDataset, collate: Collate | None, rows: Sequence[int]) -> None:
        once = sorted(set(rows))
        self._once = Examples(dataset, collate, once)
        place = {row: index for index, row in enumerate(once)}
        self._places = torch.tensor([place[row] for row in rows], device="cpu")
        super().__init__(dataset, collate, rows)

    @property
    def in_memory(self) -> bool:
        """Whether the set is kept stacked, so that a batch costs an index."""
        return self._once.in_memory

    def batch(self, indices: Tensor) -> Batch:
        """The batch of these rows."""
        return self._once.batch(self._places[indices])

    def prepare(self) -> None:
        """Stack the rows, each once, in memory if that is safe and small enough; seeds the global generators."""
        self._once.prepare()
        self.repeats = self._once.repeats

    def renew(self) -> None:
        """See `Examples.renew`."""
        self._once.renew()


def examples_of(dataset: MapDataset, collate: Collate | None, rows: Sequence[int] | None) -> Examples:
    """The examples of these rows, which may repeat; None for all."""
    if rows is None or len(set(rows)) == len(rows):
        return Examples(dataset, collate, rows)
    return RepeatedExamples(dataset, collate, rows)


def spread_rows(size: int, count: int) -> Tensor:
    """`count` of `size` positions, spread evenly; all where there are fewer."""
    return torch.linspace(0, size - 1, min(count, size), device="cpu").long().unique()


def move(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: move(value, device) for key, value in cast(dict[Any, Any], batch).items()}
    if isinstance(batch, list):
        return [move(value, device) for value in cast(list[Any], batch)]
    if isinstance(batch, tuple):
        values = [move(value, device) for value in cast(tuple[Any, ...], batch)]
        return type(batch)(*values) if getattr(batch, "_fields", None) else tuple(values)
    to = getattr(batch, "to", None)  # Hugging Face's BatchEncoding and the like move themselves
    return to(device) if callable(to) else batch


def copied(batch: Batch) -> Batch:
    """A copy for code that may write into a batch; the batch itself where it holds an object that cannot be copied."""
    try:
        return copy.deepcopy(batch)
    except Exception:
        return batch


def digest(batch: Batch) -> str:
    """A hash of what a batch holds: tensors, text and numbers, in containers of any depth."""
    found = hashlib.sha256()
    _feed(found, batch)
    return found.hexdigest()[:16]


def _feed(found: Any, value: Any, within: frozenset[int] = frozenset()) -> None:
    if isinstance(value, Mapping):
        value = [(str(key), part) for key, part in cast(Mapping[Any, Any], value).items()]
    if isinstance(value, Tensor):
        _feed_tensor(found, value)
    elif isinstance(value, list | tuple):
        for part in cast(Sequence[Any], value):
            _feed(found, part, within)
    elif isinstance(value, str | int | float | bytes):
        found.update(repr(value).encode())
    elif isinstance(value, np.ndarray | np.generic):
        _feed(found, _content(np.asarray(value)), within)
    elif (own := _attributes(value)) and id(value) not in within:  # objects may hold each other
        _feed(found, own, within | {id(value)})


def _content(array: "np.ndarray[Any, Any]") -> list[Any]:
    values = array.tolist() if array.dtype == object else array.tobytes()
    return [str(array.dtype), array.shape, values]


def _feed_tensor(found: Any, value: Tensor) -> None:
    if value.is_nested or value.layout is not torch.strided:
        sparse = None if value.is_nested else value.detach().to_sparse_coo().coalesce()
        _feed(found, value.unbind() if sparse is None else (sparse.indices(), sparse.values()))
        return
    bits = plain_tensor(value.detach()).cpu().reshape(-1).contiguous()
    found.update(f"{value.dtype} {tuple(value.shape)}".encode() + bits.view(torch.uint8).numpy().tobytes())


def _attributes(value: object) -> dict[str, Any]:
    """Fields of a dataclass, attributes of another object: batches of graphs are objects."""
    if isinstance(value, type | types.ModuleType):
        return {}
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return dict(getattr(value, "__dict__", {}))


def _children(batch: Batch) -> list[Any] | None:
    """Parts of a plain container, in order; None for any other type."""
    if type(batch) is dict:
        return list(cast(dict[Any, Any], batch).values())
    return list(cast(Sequence[Any], batch)) if type(batch) in (list, tuple) else None


def _bytes(batch: Batch, count: int) -> float | None:
    """Bytes of an example; None unless a batch holds plain tensors with one row an example, and no others."""
    if isinstance(batch, Tensor):
        plain = type(batch) is Tensor and batch.layout is torch.strided and not batch.is_nested
        rows = plain and batch.dim() > 0 and batch.shape[0] == count
        return batch.numel() * batch.element_size() / count if rows else None
    parts = _children(batch)
    sizes = None if parts is None else [_bytes(part, count) for part in parts]
    return None if sizes is None or None in sizes else sum(cast(list[float], sizes))


def _take(batch: Batch, indices: Tensor) -> Batch:
    if isinstance(batch, Tensor):
        return batch.index_select(0, indices.to(batch.device))
    if isinstance(batch, dict):
        return {key: _take(value, indices) for key, value in cast(dict[Any, Any], batch).items()}
    return type(batch)(_take(part, indices) for part in cast(list[Any], batch))


def _same(left: Batch, right: Batch) -> bool:
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if type(left) is not type(right):
        return False
    one, other = _children(left), _children(right)
    if one is None or other is None or len(one) != len(other):
        return False
    keys = list(left) == list(right) if isinstance(left, dict) else True
    return keys and all(_same(a, b) for a, b in zip(one, other, strict=True))
