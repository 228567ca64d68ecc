"""Examples for checks: those of rare structure are among them."""

from typing import Any

import numpy as np
import pytest
import torch

from bif_lightning.data.dataset import Examples
from bif_lightning.data.variety import form_of, varied_items

pytestmark = pytest.mark.exact

FULL, CUT = torch.ones(6, dtype=torch.bool), torch.tensor([True] * 5 + [False])
RARE: dict[str, tuple[Any, Any]] = {
    "length": (torch.zeros(6), torch.zeros(4)),
    "mask": ({"x": torch.ones(6), "mask": FULL}, {"x": torch.ones(6), "mask": CUT}),
    "weights in floating point": ((torch.ones(6), 1), (torch.tensor([1.0] * 5 + [0.0]), 1)),
    "ignored labels": ((0, torch.arange(1, 7)), (0, torch.tensor([1, 2, 3, 4, 5, -100]))),
    "an unlabelled example": ((torch.ones(2), 1), (torch.ones(2), -1)),
    "missing values": ([np.ones(6)], [np.array([1.0] * 5 + [np.nan])]),
    "list of tokens": ({"input_ids": [5, 2, 3]}, {"input_ids": [5, 2]}),
    "nested lists": ([[1, 2], [3]], [[1, 2], [3, 4]]),
    "text": ("a few words", "many more words than there are in all of the others together"),
    "kind": (1.0, None),
}


@pytest.mark.parametrize("name", RARE)
@pytest.mark.parametrize("place", [1, 18, 39])  # none of the eight that are spread evenly
def test_a_rare_form_is_among_them(name: str, place: int) -> None:
    usual, rare = RARE[name]
    assert form_of(usual) != form_of(rare)
    data = [usual] * 41
    data[place] = rare
    found = varied_items(Examples(data), 8)
    assert place in found
    assert found[place] is rare
    assert len(found) == 8
    assert list(found) == sorted(found)


def test_classes_and_values_are_no_forms() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [(torch.randn(5, generator=generator), torch.tensor(label % 3), label % 3) for label in range(9)]
    assert len({form_of(row) for row in rows}) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 64, 65, 1000])
def test_alike_examples_are_spread_evenly(size: int) -> None:
    found = list(varied_items(Examples([torch.zeros(2)] * size), 8))
    assert found[0] == 0
    assert len(found) == min(size, 8)
    assert size < 8 or found[-1] >= size - 1 - size // 8


def test_all_forms_differ() -> None:
    found = varied_items(Examples([torch.ones(length) for length in range(1, 101)]), 8)
    assert len(found) == 8
    assert max(found) == 99


def test_each_example_is_read_once() -> None:
    class Counting(list[Any]):
        read = list[int]()

        def __getitem__(self, index: Any) -> Any:
            self.read.append(index)
            return super().__getitem__(index)

    data = Counting([torch.zeros(2)] * 200)
    varied_items(Examples(data), 8)
    assert len(data.read) == len(set(data.read)) <= 72
