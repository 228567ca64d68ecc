"""The tests' own check of array annotations: it is on in the package, and it can fail."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, Int
from torch import Tensor

from array_types import check_arrays
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
