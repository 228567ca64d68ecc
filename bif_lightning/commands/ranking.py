"""The ranking of train examples for the command line: as plain data, as text, and as files."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from bif_lightning.archive.read import open_samples, ranking
from bif_lightning.archive.read.quantities import Quantity
from bif_lightning.archive.read.queries import default_quantity
from bif_lightning.archive.schema import LOSS
from bif_lightning.commands.terminal import number, plain, table, with_error
from bif_lightning.results.bands import is_clear
from bif_lightning.storage.spreadsheet import csv_text

FALSE_SHARE = 0.05
"""Most false ones, on average, among those that are called significant."""

_BLOCKS = "▁▂▃▄▅▆▇█"
_MOST_POINTS = 24  # of a curve in the terminal
_WIDTH = 110
_NONE = "None has an effect, as where what the queries measure is the same at every draw."
_IN_DOUBT = "?"


def chosen_queries(data: xr.Dataset, words: str | None, observable: str) -> list[int] | None:
    """Positions that words choose: numbers, ids, FIRST:LAST and label:NAME, separated by commas; None for all.

    Args:
        data: from `open_run`.
        words: as typed.
        observable: whose columns are chosen.

    Raises:
        ValueError: no query has such a label; of an unknown number or id, `ranking` says so.
    """
    if words is None:
        return None
    name = "influence" if observable == LOSS else f"{observable}_influence"
    axis = str(data[name].dims[-1]) if name in data else "query"
    names = [str(each) for each in data["query_id" if axis == "query" else axis].values.tolist()]
    found: list[int] = []
    for part in [words] if words in names else [each.strip() for each in words.split(",") if each.strip()]:
        found += _part(data, axis, names, part)
    return list(dict.fromkeys(found))


def _part(data: xr.Dataset, axis: str, names: Sequence[str], part: str) -> list[int]:
    first, colon, last = part.partition(":")
    if part in names and not part.isdecimal():
        return [names.index(part)]
    if colon and first == "label":
        return _labelled(data, last)
    if colon and all(not end or (end.isascii() and end.isdecimal()) for end in (first, last)):
        return list(range(len(names)))[slice(int(first or 0), int(last) if last else None)]
    rows: list[int] = data[axis].values.tolist() if axis == "query" else list(range(len(names)))
    if part.isascii() and part.isdecimal() and int(part) in rows:
        return [rows.index(int(part))]
    if part in names:
        return [names.index(part)]
    # `ranking` names the nearest.
    ranking(data, int(part) if part.isascii() and part.isdecimal() else part)
    return []


def _labelled(data: xr.Dataset, label: str) -> list[int]:
    if "query_label" not in data.coords:
        raise ValueError("the queries have no labels; choose them by number or id")
    labels: list[int] = data["query_label"].values.tolist()
    names = open_samples(data.attrs["directory"])[1].label_names or ()
    numbers = (
        {names.index(label)} if label in names else {int(label)} if label.isascii() and label.isdecimal() else set()
    )
    found = [row for row, each in enumerate(labels) if each in numbers]
    if not found:
        known = sorted({each for each in labels if each >= 0})
        words = ", ".join(names[each] if each < len(names) else str(each) for each in known[:20])
        raise ValueError(f"no query has the label {label!r}; the labels are {words}")
    return found


def ranked(
    data: xr.Dataset,
    queries: str | None,
    *,
    k: int,
    step: int | None,
    by: Quantity | Literal["integrated"] | None,
    observable: str,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The train examples by their effect on all or chosen queries, with the question that they answer.

    Args:
        data: from `open_run`.
        queries: which, in the words of `chosen_queries`.
        k: rows to print at each end.
        step, by, observable: as `archive.read.ranking` takes them.

    Returns:
        What is printed, and the whole table.

    Raises:
        ValueError: an unknown query, label, step or observable, or k below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    by = by or default_quantity(data, step)
    found = ranking(data, chosen_queries(data, queries, observable), step=step, by=by, observable=observable)
    rows: list[dict[Hashable, Any]] = found.to_dict("records")
    known = [row for row in rows if row["q_value"] <= FALSE_SHARE]
    answer = {
        "run": str(data.attrs["directory"]),
        "steps": found.attrs["steps"],
        "all_steps": found.attrs["all_steps"],
        "queries": queries or "all",
        "num_queries": len(found.attrs["queries"]),
        "observable": observable,
        "by": by,
        "units": found.attrs["units"],
        "sign": found.attrs["sign"],
        "error": found.attrs["error"],
        "train": len(found),
        "hurting": sum(row["effect"] < 0 for row in known),
        "helping": sum(row["effect"] > 0 for row in known),
        "false_share": FALSE_SHARE,
        "worst": [row for row in rows if row["effect"] < 0][:k],
        "best": [row for row in reversed(rows) if row["effect"] > 0][:k],
    }
    return answer, found


def ranked_text(answer: Mapping[str, Any]) -> str:
    """The answer of `ranked` as a table."""
    steps = answer["steps"]
    whole = answer["by"] == "integrated"
    at = f"over {len(steps)} snapshots, steps {steps[0]} to {steps[-1]}" if whole else f"at step {steps[0]}"
    units = "" if answer["units"] in ("", "1") else f", {answer['units']}"
    title = (
        f"{answer['train']} train examples by their mean effect on {plain(str(answer['queries']), 60)} "
        f"({answer['num_queries']}) queries {at}\n{answer['by']} on {answer['observable']}{units}, ± standard error; "
        "above 0 = helps"
    )
    rows = [*answer["worst"], *answer["best"]]
    optional = [name for name in ("label", "text") if any(row.get(name) is not None for row in rows)]
    head = ["rank", "train", "id", "effect", "", "q", "hurt", "loss", *optional]
    curves = len(answer["all_steps"]) > 1
    head += ["over training"] * curves
    body = [
        [
            str(row["rank"]),
            str(row["train"]),
            plain(row["id"], 30),
            with_error(row["effect"], row["standard_error"]),
            "" if is_clear(row["effect"], row["standard_error"]) else _IN_DOUBT,
            number(row["q_value"], 2),
            f"{row['share_hurt']:.0%}",
            number(row["loss"]),
            *(plain(str(row[name]), 24 if name == "label" else 40) for name in optional),
            *[_curve(row["over_steps"])] * curves,
        ]
        for row in rows
    ]
    parts = [title, table(head, body, left=["", "id", "over training", *optional]) if rows else _NONE]
    if any(row[4] for row in body):
        parts.append(f"{_IN_DOUBT} = within 1.96 standard errors of 0: the sign is not known")
    least = answer["false_share"]
    found = f"Of {answer['train']}, {answer['hurting']} hurt and {answer['helping']} help with q <= {least}"
    parts.append(f"{found}: at most {least:.0%} of these are false on average.")
    parts.append(fill(f"Standard errors: {answer['error']}.", _WIDTH))
    return "\n\n".join([*parts, fill(answer["sign"], _WIDTH)])


def _curve(values: Sequence[float]) -> str:
    """A curve of blocks, from the least of its values to the largest; of many, some that are evenly spread."""
    places = np.linspace(0, len(values) - 1, min(len(values), _MOST_POINTS)).round().astype(int)
    shown = np.array(values, np.float64)[places]
    known = shown[np.isfinite(shown)]
    if not len(known):
        return ""
    low, high = min(known.min(), 0.0), max(known.max(), 0.0)
    width = (high - low) or 1.0
    return "".join(_BLOCKS[round((each - low) / width * 7)] if np.isfinite(each) else " " for each in shown)


def write_csv(path: Path, answer: Mapping[str, Any], found: pd.DataFrame) -> None:
    """Write the whole table, each row with what it is: quantity, units, steps, queries, observable.

    Raises:
        OSError: the file cannot be written.
    """
    constants = ("units", "queries", "observable")
    steps, every = answer["steps"], answer["all_steps"]
    at = str(steps[0]) if len(steps) == 1 else f"{steps[0]}-{steps[-1]}"
    columns = [name for name in found if name != "over_steps"]
    head = [*map(str, columns), "steps", *constants, *(f"effect_at_{step}" for step in every)]
    more = [at, *(str(answer[name]) for name in constants)]
    rows = zip(found[columns].to_numpy(object).tolist(), found["over_steps"], strict=True)
    text = csv_text(head, ([*row, *more, *curve] for row, curve in rows))
    path.write_text(text, encoding="utf-8", errors="replace", newline="")


def write_ids(path: Path, found: pd.DataFrame) -> int:
    """Write the ids of those that hurt significantly, the most harmful first, one a line; returns their number.

    Raises:
        ValueError: an id has a line break.
        OSError: the file cannot be written.
    """
    columns = (found[name].tolist() for name in ("id", "effect", "q_value"))
    ids: list[str] = [each for each, effect, q in zip(*columns, strict=True) if effect < 0 and q <= FALSE_SHARE]
    for each in ids:
        if len(each.splitlines()) > 1:
            raise ValueError(f"the id {plain(each)!r} has a line break; a list of ids has one a line: use --csv")
    path.write_text("".join(f"{each}\n" for each in ids), encoding="utf-8", errors="replace", newline="")
    return len(ids)
