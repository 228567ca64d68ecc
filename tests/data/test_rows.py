"""Rows in every form in which people have them are those of a list of int, and what is none is a dataset."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bif_lightning.data.rows import Rows, rows_of, whole_number

pytestmark = pytest.mark.exact

WANTED = (3, 5, 7, 9)
NUMBERS = np.array(WANTED)
MASK = np.isin(np.arange(12), NUMBERS)

FORMS: dict[str, Any] = {
    "list": list(WANTED),
    "tuple": WANTED,
    "range": range(3, 10, 2),
    "array": NUMBERS,
    "small integers": NUMBERS.astype(np.uint8),
    "list of NumPy's": list(NUMBERS),
    "list of tensors": [torch.tensor(i) for i in WANTED],
    "list of arrays without dimension": [np.array(i) for i in WANTED],
    "tensor": torch.tensor(WANTED),
    "pandas index": pd.Index(NUMBERS),
    "pandas column": pd.Series(NUMBERS),
    "pandas column that may lack values": pd.Series(NUMBERS, dtype="Int64"),
    "np.nonzero": np.nonzero(MASK),
    "np.argwhere": np.argwhere(MASK),
    "torch.nonzero": torch.nonzero(torch.tensor(MASK)),
}
MASKS: dict[str, Any] = {
    "NumPy": MASK,
    "torch": torch.tensor(MASK),
    "list": MASK.tolist(),
    "pandas": pd.Series(MASK),
    "pandas that may lack values": pd.Series(MASK, dtype="boolean"),
}
DATASETS: dict[str, Any] = {
    "examples": [(torch.zeros(2), 1)],
    "tensors": [torch.zeros(2), torch.zeros(2)],
    "one tensor": (torch.zeros(3, 4),),
    "numbers": [0.5, 1.0],
    "matrix": np.zeros((3, 4)),
    "sequences of tokens": torch.zeros(3, 4, dtype=torch.long),
    "texts": ["a", "b"],
    "frame": pd.DataFrame({"a": [1, 2]}),
}


@pytest.mark.parametrize("name", FORMS)
def test_numbers(name: str) -> None:
    found = rows_of(FORMS[name])
    assert found == Rows(WANTED)
    assert all(type(index) is int for index in found.indices)


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_the_rows_where_they_are_true(name: str) -> None:
    assert rows_of(MASKS[name]) == Rows(WANTED, mask=12)


@pytest.mark.parametrize("name", DATASETS)
def test_examples_are_no_rows(name: str) -> None:
    assert rows_of(DATASETS[name]) is None


@pytest.mark.parametrize("values", [[1.0, 3.0], np.array([1.0, 3.0]), torch.tensor([1.0, 3.0])])
def test_whole_numbers_in_floating_point_are_refused(values: Any) -> None:
    with pytest.raises(ValueError, match=r"may be rows or examples.*astype\(int\).*TensorDataset"):
        rows_of(values)


def test_single_numbers() -> None:
    assert [whole_number(value) for value in (3, np.int64(3), torch.tensor(3), np.array(3))] == [3] * 4
    assert [whole_number(value) for value in (True, np.True_, 3.0, "3", None)] == [None] * 5
