"""The tests' own check of array annotations: it is on in the package, and it can fail."""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, Int
from torch import Tensor

from array_types import check_arrays, install
from bif_lightning.losses.token_losses import TokenValues
from bif_lightning.statistics.effective_dimension import effective_dimension


@check_arrays
def rows_of(matrix: Float[Tensor, "row column"], rows: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen column"]:
    return matrix[rows] if len(rows) != 1 else matrix[rows[0]]


@check_arrays
@dataclass
class Pair:
    one: Float[Tensor, " size"]
    other: Float[Tensor, " size"]
    name: int


@check_arrays
def each(values: Float[Tensor, " size"]) -> Iterator[Tensor]:
    yield from values


def test_what_fits_passes_and_each_call_has_sizes_of_its_own() -> None:
    for count in (2, 3):
        assert rows_of(torch.zeros(4, count), torch.arange(count)).shape == (count, count)
    assert Pair(torch.zeros(2), torch.ones(2), "a type checker's work").name  # pyright: ignore[reportArgumentType]
    assert len(list(each(torch.zeros(3)))) == 3


@pytest.mark.parametrize(
    ("matrix", "rows"),
    [
        (torch.zeros(4), torch.arange(2)),
        (torch.zeros(4, 2), torch.zeros(2)),
        (torch.zeros(4, 2), torch.arange(1)),  # of which the result has the wrong shape
    ],
    ids=["shape", "dtype", "result"],
)
def test_wrong_arrays_are_refused(matrix: Tensor, rows: Tensor) -> None:
    with pytest.raises(BeartypeCallHintViolation):
        rows_of(matrix, rows)


def test_sizes_of_one_name_are_the_same() -> None:
    with pytest.raises(BeartypeCallHintViolation, match="size"):
        Pair(torch.zeros(2), torch.zeros(3), 1)


def test_functions_and_dataclasses_of_the_package_are_checked() -> None:
    with pytest.raises(BeartypeCallHintViolation):
        effective_dimension(torch.zeros(2, 2), 1.0)
    with pytest.raises(BeartypeCallHintViolation):
        TokenValues(torch.zeros(2, dtype=torch.int64), torch.zeros(2), [])


MODULE = """
from jaxtyping import Float
from torch import Tensor
def first(values: Float[Tensor, " size"]) -> Tensor:
    return values[0]
"""


def test_bytecode_of_checked_modules_is_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "meta_path", sys.meta_path.copy())
    assert importlib.import_module("kept").first(torch.zeros(2, 3)).shape == (3,)
    install("kept")
    for _ in range(2):  # compiled, then read
        del sys.modules["kept"]
        with pytest.raises(BeartypeCallHintViolation):
            importlib.import_module("kept").first(torch.zeros(2, 3))
    del sys.modules["kept"]
    assert len(list((tmp_path / "__pycache__").glob("kept.*.pyc"))) == 2
