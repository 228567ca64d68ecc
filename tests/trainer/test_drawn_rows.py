"""Which rows a training loader draws: torch's samplers, others, weights, limits."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from bif_lightning.trainer.drawn_rows import drawn_rows, shares_without_replacement, weighted_rows

pytestmark = pytest.mark.exact

DATA = TensorDataset(torch.arange(12.0))


class Own(Sampler[int]):
    """Rows in a form of the user's, which counts its epochs."""

    def __init__(self, epochs: Any) -> None:
        self.epochs, self.asked = epochs, 0

    def __iter__(self) -> Iterator[int]:
        self.asked += 1
        return iter(self.epochs(self.asked))


def loader(**more: Any) -> DataLoader[Any]:
    return DataLoader(DATA, **{"batch_size": 4} | more)


ALL: dict[str, Any] = {
    "in order": {},
    "shuffled": {"shuffle": True},
    "drawn with replacement": {"sampler": RandomSampler(DATA, replacement=True, num_samples=5)},
    "divided among ranks": {"sampler": DistributedSampler(DATA, num_replicas=2, rank=0)},
    "own order": {"sampler": Own(lambda epoch: reversed(range(12)))},
    "batches by hand": {"batch_size": 1, "batch_sampler": BatchSampler(SequentialSampler(DATA), 5, False)},
    "list": {"sampler": list(range(12))},
    "weights, all drawn": {"sampler": WeightedRandomSampler(torch.arange(1.0, 13), 12, replacement=False)},
    "batches in own order": {"batch_size": 1, "batch_sampler": Own(lambda epoch: [range(6, 12), range(6)])},
}


@pytest.mark.parametrize("name", ALL)
def test_all_rows(name: str) -> None:
    found = drawn_rows(loader(**ALL[name]))
    assert (found.rows, found.words) == (None, "")


SOME: dict[str, Any] = {
    "SubsetRandomSampler": SubsetRandomSampler([7, 2, 5]),
    "own, in order": Own(lambda epoch: [7, 2, 5]),
    "own, shuffled": Own(lambda epoch: [7, 2, 5] if epoch % 2 else [5, 7, 2]),
    "list": [7, 2, 5],
    "own batches": Own(lambda epoch: [[7, 2], [5]]),
    "given batches": BatchSampler(SubsetRandomSampler([7, 2, 5]), 2, False),
    "weights, all drawn": WeightedRandomSampler([0, 0, 1, 0, 0, 5, 0, 3, 0, 0, 0, 0], 3, replacement=False),
}


@pytest.mark.parametrize("name", SOME)
def test_some_rows(name: str) -> None:
    sampler = SOME[name]
    found = drawn_rows(loader(sampler=sampler) if "batches" not in name else DataLoader(DATA, batch_sampler=sampler))
    assert found.rows is not None
    assert sorted(found.rows) == [2, 5, 7]
    assert "3 of 12 rows that the sampler" in found.words
    assert getattr(sampler, "asked", 0) == 0, "the state of the sampler is not touched"


def test_rows_that_come_more_often_count_more() -> None:
    found = drawn_rows(loader(sampler=Own(lambda epoch: [1, 1, 3])))
    assert found.rows == [1, 1, 3]


CHANGING: dict[str, Any] = {
    "changes": lambda epoch: torch.randperm(12)[:3].tolist(),
    "endless": lambda epoch: iter(int, 1),
    "fails": lambda epoch: 1 / 0,
}


@pytest.mark.parametrize("name", CHANGING)
def test_what_cannot_be_told_is_said(name: str) -> None:
    found = drawn_rows(loader(sampler=Own(CHANGING[name])))
    assert found.rows is None
    assert "cannot be told" in found.words
    assert "Subset" in found.words


def test_weights() -> None:
    found = drawn_rows(loader(sampler=WeightedRandomSampler([0.0, 1.0, 3.0] + [0.0] * 9, 100)))
    assert found.rows is not None
    counts = Counter(found.rows)
    assert set(counts) == {1, 2}
    assert counts[2] == 3 * counts[1]
    assert "weighs the rows" in found.words
    weights = torch.rand(50, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(torch.tensor(weighted_rows(weights)), minlength=50) / len(weighted_rows(weights))
    assert float((shares - weights / weights.sum()).abs().max()) < 1 / (32 * 50)


@pytest.mark.parametrize(
    ("more", "batches", "ranks", "count"),
    [
        ({}, 2, 1, 8),
        ({}, 1, 2, 8),
        ({"batch_size": 5, "drop_last": True}, float("inf"), 1, 10),
        ({"sampler": [7, 2, 5, 1, 0]}, 1, 1, 4),
        ({"shuffle": True}, 2, 1, 12),
        ({"shuffle": True, "batch_size": 5, "drop_last": True}, float("inf"), 1, 12),
    ],
)
def test_limits_hold_where_the_order_is_fixed(more: Any, batches: float, ranks: int, count: int) -> None:
    found = drawn_rows(loader(**more), batches, ranks)
    assert len(range(12) if found.rows is None else found.rows) == count
    assert (count == 12) == (not found.words)


class Reseeded(Sampler[int]):
    """Draws other rows in each epoch, by numbers of its own, as Lightning tells it the epoch or as it counts them."""

    def __init__(self, counts: bool) -> None:
        self.epoch, self.counts, self.generator = 0, counts, torch.Generator().manual_seed(0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = self.generator if self.counts else torch.Generator().manual_seed(self.epoch)
        return iter(torch.randperm(12, generator=generator)[:3].tolist())


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_numbers_of_its_own_do_not_hide_that_a_sampler_draws_others_in_each_epoch(counts: bool, batched: bool) -> None:
    sampler = Reseeded(counts)
    before = sampler.generator.get_state()
    found = drawn_rows(
        DataLoader(DATA, batch_sampler=BatchSampler(sampler, 2, False)) if batched else loader(sampler=sampler)
    )
    assert found.rows is None
    assert "which rows a Reseeded draws cannot be told" in found.words
    assert torch.equal(sampler.generator.get_state(), before)
    assert sampler.epoch == 0


@pytest.mark.parametrize(("size", "count"), [(12, 5), (12, 11), (200, 100), (200, 3)])
def test_rows_drawn_without_replacement_are_not_drawn_as_their_weights(size: int, count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(size, generator=generator, dtype=torch.float64) ** 2 + 0.01
    weights[3] = 0.0
    drawn = torch.stack([torch.multinomial(weights, count, generator=generator) for _ in range(20_000)])
    shares = torch.bincount(drawn.flatten(), minlength=size) / len(drawn)
    found = shares_without_replacement(weights, count)
    assert float(found.sum()) == pytest.approx(count, rel=1e-9)
    assert found[3] == 0
    # The error of 20,000 epochs is at most 0.0035 (one standard deviation); that of the formula is of order 1/n.
    assert float((found - shares).abs().max()) < 0.015 + 0.3 / size
    proportional = count * weights / weights.sum()
    assert count < 5 or float((proportional - shares).abs().max()) > 0.2


def test_a_batch_sampler_that_is_not_used_up() -> None:
    """The first batches of an epoch alone, where they are the same in each."""
    batched = lambda sampler: DataLoader(DATA, batch_sampler=sampler)  # noqa: E731
    for sampler in (BatchSampler([9, 8, 7, 6, 5], 2, False), Own(lambda epoch: [[9, 8], (7, 6), np.array([5])])):
        found = drawn_rows(batched(sampler), 2)
        assert found.rows == [9, 8, 7, 6]
        assert "first 4 of 5 rows" in found.words
    assert drawn_rows(batched(BatchSampler([9, 8, 7, 6, 5], 2, True))).rows == [9, 8, 7, 6]
    shuffled = Own(lambda epoch: [[9, 8], [7, 6]] if epoch % 2 else [[7, 6], [9, 8]])
    assert drawn_rows(batched(shuffled), 1).rows == [6, 7, 8, 9]


def test_a_sampler_of_fewer_rows_than_the_dataset_has() -> None:
    assert drawn_rows(loader(sampler=SequentialSampler(range(7)))).rows == range(7)
    assert drawn_rows(loader(sampler=RandomSampler(range(7)))).rows == range(7)
