"""Text for a terminal: tables, numbers with their errors, and strings from data that cannot harm it."""

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any


def plain(text: str, width: int = 60) -> str:
    """One printable line of at most `width` columns: white space joined, control characters escaped.

    >>> plain("two\\nlines"), plain("red \\x1b[31m"), plain("abcdef", width=4)
    ('two lines', 'red \\\\x1b[31m', 'abc…')
    """
    # A text can be a book: what is cut anyway need not be read.
    joined = " ".join(text[: 20 * width].split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)
    if columns(shown) <= width:
        return shown
    while columns(shown) > width - 1:
        shown = shown[:-1]
    return shown + "…"


def columns(text: str) -> int:
    """Terminal columns that a printable text takes: two for a wide character, none for a combining one.

    >>> columns("猫"), columns("e\\u0301")
    (2, 1)
    """
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str] = ()) -> str:
    """Aligned columns under `head`; those named in `left` to the left, the others to the right.

    >>> print(table(["id", "loss"], [["a", "10.5"], ["bc", "9"]], left=["id"]))
    id  loss
    a   10.5
    bc     9
    """
    widths = [max(columns(cell) for cell in column) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded: list[str] = []
        for name, cell, width in zip(head, cells, widths, strict=True):
            space = " " * (width - columns(cell))
            padded.append(cell + space if name in left else space + cell)
        return "  ".join(padded).rstrip()

    return "\n".join([line(head), *(line(row) for row in rows)])


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits; "-" where there is none.

    >>> number(0.123456), number(1234.5), number(None), number(float("nan"))
    ('0.123', '1234', '-', '-')
    """
    if value is None or math.isnan(value):
        return "-"
    value += 0.0  # no "-0"
    if 10 ** (digits - 1) <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def with_error(value: float | None, error: float | None) -> str:
    """A signed number and its standard error, to two significant digits of the error.

    >>> with_error(0.51234, 0.0213), with_error(-1.5e-7, 2e-8), with_error(0.5, None)
    ('+0.512 ± 0.021', '(-1.50 ± 0.20)e-7', '+0.5 ± -')
    """
    if value is None or math.isnan(value):
        return "-"
    if error is None or not math.isfinite(error) or error <= 0 or math.isinf(value):
        return f"{value:+.3g} ± {'0' if error == 0 else '-'}"
    power = math.floor(math.log10(max(abs(value), error)))
    last = math.floor(math.log10(error)) - 1  # power of ten of the error's second digit
    if -4 <= power < 6:
        decimals = min(9, max(0, -last))
        return f"{value:+.{decimals}f} ± {error:.{decimals}f}"
    decimals = min(9, max(0, power - last))
    # Decimal, as 10.0**power is 0 for the smallest powers.
    scaled, its_error = (Decimal(each).scaleb(-power) for each in (value, error))
    return f"({scaled:+.{decimals}f} ± {its_error:.{decimals}f})e{power}"


def as_json(value: object) -> str:
    """One JSON document, NaN and infinity as null."""
    return json.dumps(_without_nan(value), indent=2, ensure_ascii=False, allow_nan=False)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: None stands for both."""
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
