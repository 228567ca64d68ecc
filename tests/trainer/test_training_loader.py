"""The training data of a Trainer as rows of one dataset: collections of loaders, and loaders without batching."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from bif_lightning.trainer.drawn_rows import drawn_rows
from bif_lightning.trainer.training_loader import source_of, training_loader

pytestmark = pytest.mark.exact

DATA = TensorDataset(torch.arange(12.0), torch.arange(12) % 3)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(DATA)


def found(loaders: Any) -> Any:
    return training_loader(SimpleNamespace(train_dataloader=loaders))


def unbatched(sampler: Any = None, data: Any = DATA) -> DataLoader[Any]:
    return DataLoader(data, batch_size=None, sampler=sampler)


plain = DataLoader(DATA, batch_size=4)

COLLECTIONS: dict[str, tuple[Any, Any]] = {
    "alone": (plain, lambda batch: batch),
    "dict": ({"main": plain}, lambda batch: {"main": batch}),
    "list": ([plain], lambda batch: [batch]),
    "nested": ({"a": (plain,)}, lambda batch: {"a": (batch,)}),
    "unbatched": ([unbatched(BatchSampler(RandomSampler(DATA), 4, False))], lambda batch: [batch]),
}


@pytest.mark.parametrize("name", COLLECTIONS)
def test_batches_come_as_training_step_gets_them(name: str) -> None:
    loaders, form = COLLECTIONS[name]
    loader = found(loaders)
    assert loader.lacks == ""
    assert loader.dataset is DATA
    for rows in (None, [3, 5, 7], [1, 1, 2]):
        examples = loader.examples(DATA, rows, None)
        assert source_of(examples) is DATA
        assert len(examples) == (12 if rows is None else 3)
        right = form(default_collate([DATA[row] for row in (rows or range(12))]))
        torch.testing.assert_close(examples.collated(range(len(examples))), right, rtol=0, atol=0)
        examples.prepare()
        torch.testing.assert_close(examples.batch(torch.arange(len(examples))), right, rtol=0, atol=0)
    other = loader.examples([DATA[2], DATA[4]], None, None)
    torch.testing.assert_close(other.collated([0, 1]), form(default_collate([DATA[2], DATA[4]])))


def test_a_collate_function_of_the_user_reads_rows() -> None:
    for name in ("dict", "unbatched"):
        loaders, form = COLLECTIONS[name]
        examples = found(loaders).examples(DATA, [3, 5], lambda items: [float(x) for x, _ in items])
        assert examples.collated([0, 1]) == form([3.0, 5.0])


LACKING: dict[str, tuple[Any, str]] = {
    "stream": (DataLoader(Stream(), batch_size=4), "is a stream"),
    "several": ({"a": plain, "b": plain}, "is 2 loaders"),
    "batches as items": (unbatched(SequentialSampler(DATA)), "whole batches"),
    "own class": (SimpleNamespace(), "is of the type SimpleNamespace"),
    "unbatched stream": (unbatched(data=Stream()), "is a stream"),
}


@pytest.mark.parametrize("name", LACKING)
def test_what_has_no_rows_says_why(name: str) -> None:
    loaders, why = LACKING[name]
    loader = found(loaders)
    assert why in loader.lacks
    assert loader.dataset is None
    assert loader.examples([1, 2, 3], None, None).collated([0, 1]).tolist() == [1, 2]


BATCHES: dict[str, Any] = {
    "by hand": lambda sampler: DataLoader(DATA, batch_sampler=BatchSampler(sampler, 2, False)),
    "without batching": lambda sampler: unbatched(BatchSampler(sampler, 2, False)),
}


@pytest.mark.parametrize("name", BATCHES)
def test_rows_that_batches_are_made_of(name: str) -> None:
    rows = drawn_rows(BATCHES[name](SubsetRandomSampler([7, 2, 5]))).rows
    assert rows is not None
    assert sorted(rows) == [2, 5, 7]
    assert drawn_rows(BATCHES[name](RandomSampler(DATA))).rows is None


def test_asking_a_sampler_leaves_it_as_it_is() -> None:
    class Counting(SequentialSampler):
        asked = 0

        def __iter__(self) -> Any:
            self.asked += 1
            return iter([[0, 1], [2, 3]])

    sampler = Counting(DATA)
    assert found(unbatched(sampler)).in_batches
    assert sampler.asked == 0
