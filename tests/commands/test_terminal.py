"""Numbers with errors keep what is known and drop what is not, whatever their size."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bif_lightning.commands.terminal import columns, number, plain, table, with_error

pytestmark = pytest.mark.exact

FINITE = st.floats(min_value=-1e307, max_value=1e307)


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (0.0, 1e-3, "+0.0000 ± 0.0010"),
        (-123456.0, 7890.0, "-123456 ± 7890"),
        (1e7, 3e5, "(+1.000 ± 0.030)e7"),
        (0.5, 0.0, "+0.5 ± 0"),
        (0.5, math.nan, "+0.5 ± -"),
        (math.nan, 0.1, "-"),
        (math.inf, 0.1, "+inf ± -"),
        (None, None, "-"),
    ],
)
def test_with_error(value: float | None, error: float | None, shown: str) -> None:
    assert with_error(value, error) == shown


@given(FINITE, st.floats(min_value=0, exclude_min=True, max_value=1e307))
def test_the_value_shown_is_the_value_to_a_twentieth_of_its_error(value: float, error: float) -> None:
    shown = with_error(value, error)
    body, _, power = shown.strip("(").partition(")e")
    size = max(abs(value), error)
    # Nine decimals are shown at most: an error far below the value reads as 0.
    slack = max(error / 20, size * 1e-8, 5e-324)
    assert abs(float(f"{body.split()[0]}e{power or 0}") - value) <= slack


@given(st.none() | FINITE)
def test_number_has_three_digits(value: float | None) -> None:
    shown = number(value)
    if value is None:
        assert shown == "-"
    else:
        assert float(shown) == pytest.approx(value, rel=6e-3, abs=0)


@given(st.text(), st.integers(min_value=1, max_value=80))
def test_plain_is_one_printable_line_of_that_width(text: str, width: int) -> None:
    shown = plain(text, width)
    assert shown.isprintable()
    assert columns(shown) <= width


def test_columns_align_with_wide_characters() -> None:
    lines = table(["id", "n"], [["猫", "1"], ["ab", "10"]], left=["id"]).splitlines()
    assert [columns(line) for line in lines] == [6, 6, 6]
