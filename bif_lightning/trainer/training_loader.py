"""The training data of a Trainer as rows of one dataset, and what `training_step` gets of them.

A Trainer may have one loader, in any collection such as {"main": loader}, whose batches then come in that collection. A
loader without automatic batching (batch_size=None) may ask its dataset for whole batches, dataset[[3, 5]].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.data import DataLoader, IterableDataset, default_collate

from bif_lightning.data.dataset import Batch, Collate, Examples, MapDataset, examples_of
from bif_lightning.trainer.drawn_rows import copied_sampler


class _RowNumbers:
    """The rows of a dataset that makes batches itself, which are read where they are collated."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> int:
        return row


@dataclass(frozen=True)
class TrainingLoader:
    """The training loader of a Trainer.

    Attributes:
        loader: the one that it has; None where it has several, or something else.
        dataset: of the loader, if its rows are examples; else None.
        collate: of the loader, for lists of examples.
        in_batches: whether the dataset makes batches itself.
        lacks: why there are no rows, in words; "" where there are.
        spec: the collection that the loader, and so each batch, is in.
    """

    loader: DataLoader[Any] | None
    dataset: Any
    collate: Collate
    in_batches: bool
    lacks: str
    spec: TreeSpec

    def in_collection(self, collate: Collate) -> Collate:
        """The collate function, with its batch in the collection of the loader."""
        if self.spec.num_nodes == 1:
            return collate
        return lambda items: tree_unflatten([collate(items)], self.spec)

    def examples(self, data: Any, rows: Sequence[int] | None, collate: Collate | None) -> Examples:
        """Rows of a dataset, each as often as it is given; None for all.

        Args:
            data: the loader's own dataset, or any other.
            collate: the user's; None for that of the loader.
        """
        if self.in_batches and data is self.dataset and collate is None:
            assert self.loader is not None
            convert = cast(Callable[[Any], Batch], self.loader.collate_fn)
            read: Callable[[list[int]], Batch] = lambda numbers: convert(data[list(numbers)])  # noqa: E731
            return examples_of(_RowNumbers(data), self.in_collection(read), rows)
        return examples_of(cast(MapDataset, data), self.in_collection(collate or self.collate), rows)


def training_loader(trainer: Any) -> TrainingLoader:
    """The training loader of a Trainer in `fit`."""
    loaders, spec = tree_flatten(trainer.train_dataloader)
    loader = loaders[0] if len(loaders) == 1 and isinstance(loaders[0], DataLoader) else None
    if loader is None:
        lacks = f"{len(loaders)} loaders" if len(loaders) != 1 else f"of the type {type(loaders[0]).__name__}"
        return TrainingLoader(None, None, default_collate, False, f"is {lacks}", tree_flatten(0)[1])
    loader = cast(DataLoader[Any], loader)
    if isinstance(loader.dataset, IterableDataset):
        collate = loader.collate_fn if loader.batch_sampler is not None else default_collate
        return TrainingLoader(loader, None, collate, False, "is a stream", spec)
    if loader.batch_sampler is not None:
        return TrainingLoader(loader, loader.dataset, loader.collate_fn, False, "", spec)
    if _draws_several(loader):
        return TrainingLoader(loader, loader.dataset, default_collate, True, "", spec)
    lacks = "has whole batches as its items (the loader has batch_size=None)"
    return TrainingLoader(loader, None, default_collate, False, lacks, spec)


def _draws_several(loader: DataLoader[Any]) -> bool:
    """Whether the sampler gives lists of rows."""
    try:
        first = next(iter(copied_sampler(loader.sampler, loader.dataset)))
    except Exception:  # it cannot be copied or asked
        return False
    return isinstance(first, list | tuple) or (isinstance(first, Tensor | np.ndarray) and first.ndim > 0)


def source_of(examples: Examples) -> Any:
    """The dataset that examples are read from."""
    return examples.dataset.dataset if isinstance(examples.dataset, _RowNumbers) else examples.dataset
