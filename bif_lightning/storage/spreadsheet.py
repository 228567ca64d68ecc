"""Tables for spreadsheets, of texts that anybody may have written."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV. A text that a spreadsheet would take for a formula begins with an apostrophe; NaN is empty.

    >>> csv_text(["id", "effect"], [["=1+1", -0.5], ["b", float("nan")]]).split()
    ['id,effect', "'=1+1,-0.5", 'b,']
    """
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow([_cell(each) for each in head])
    table.writerows([_cell(each) for each in row] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return f"'{value}" if value.lstrip(" \n").startswith(_FORMULA) or value.startswith("\n") else value
    return "" if value is None or value != value else value
