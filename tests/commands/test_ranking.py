"""`bif-lightning ranking` on a real run: what it prints and writes, and what it says when something is wrong."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bif_lightning.archive.read import open_run, ranking
from bif_lightning.commands.cli import main

Capture = pytest.CaptureFixture[str]


def printed(capsys: Capture, *arguments: object) -> str:
    assert main(["ranking", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys: Capture, *arguments: object) -> str:
    assert main(["ranking", *map(str, arguments)]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    return found.err.splitlines()[-1]


def answer(capsys: Capture, *arguments: object) -> Any:
    return json.loads(printed(capsys, *arguments, "--json"))


def test_the_most_harmful_come_first(run: Path, capsys: Capture) -> None:
    """Columns of the three queries are COLUMN, COLUMN and -COLUMN, times 3 at step 200: the mean is COLUMN."""
    text = printed(capsys, run)
    assert "5 train examples by their mean effect on all (3) queries at step 200\ninfluence on loss, nat^2" in text
    rows = [row for line in text.splitlines() if len(row := line.split()) > 9 and row[0].isdigit() and row[1].isdigit()]
    assert [row[2] for row in rows] == ["dog/3", "dog/1", "猫/2", "cat/1"]
    assert rows[0][:9] == ["1", "4", "dog/3", "-1.50", "±", "0.25", "4.9e-09", "67%", "1"]
    assert rows[1][6] == "?", "within its error of zero"
    assert "Of 5, 1 hurt and 2 help with q <= 0.05: at most 5% of these are false on average." in text
    assert "a bound for any dependence between them" in text
    assert "positive = it falls = it helps" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        ("0,2", [0, 2]),
        ("q/c", [2]),
        ("7", [1]),
        ("0:2", [0, 1]),
        ("1:", [1, 2]),
        ("label:dog", [0, 2]),
        ("label:0", [1]),
    ],
)
def test_which_queries(run: Path, capsys: Capture, words: str, rows: list[int]) -> None:
    found = answer(capsys, run, "--queries", words)
    assert (found["queries"], found["num_queries"]) == (words, len(rows))
    expected = ranking(open_run(run), rows)
    assert [row["effect"] for row in found["worst"]] == expected.effect[expected.effect < 0].tolist()


def test_k_and_step_and_quantity(run: Path, capsys: Capture) -> None:
    found = answer(capsys, run, "-k", 1, "--step", 10, "--by", "correlation")
    assert (len(found["worst"]), len(found["best"]), found["steps"], found["by"]) == (1, 1, [10], "correlation")
    found = answer(capsys, run, "--observable", "margin", "--queries", "hard")
    assert (found["observable"], found["num_queries"]) == ("margin", 1)


def test_the_table_and_the_ids_are_written(run: Path, tmp_path: Path, capsys: Capture) -> None:
    table, ids = tmp_path / "all.csv", tmp_path / "drop.txt"
    text = printed(capsys, run, "--queries", "label:dog", "--csv", table, "--ids", ids)
    assert f"Written: {table}" in text
    rows = list(csv.DictReader(table.open(encoding="utf-8", newline="")))
    expected = ranking(open_run(run), [0, 2])
    assert [row["id"] for row in rows] == expected.id.tolist()
    np.testing.assert_allclose([float(row["effect"]) for row in rows], expected.effect)
    np.testing.assert_allclose([float(row["effect_at_10"]) for row in rows], [each[1] for each in expected.over_steps])
    named = {(row["queries"], row["units"], row["steps"], row["quantity"], row["observable"]) for row in rows}
    assert named == {("label:dog", "nat^2", "200", "influence", "loss")}
    assert ids.read_text().splitlines() == expected.id[(expected.effect < 0) & (expected.q_value <= 0.05)].tolist()


def test_all_queries_write_the_ids_of_what_hurts(run: Path, tmp_path: Path, capsys: Capture) -> None:
    ids = tmp_path / "drop.txt"
    assert answer(capsys, run, "--ids", ids)["ids_written"] == 1
    assert ids.read_text() == "dog/3\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--queries", "label:cow"), "no query has the label 'cow'; the labels are cat, dog"),
        (("--queries", "qq"), "no query is called 'qq'; the nearest are"),
        (("--queries", "9"), "no query has the number 9: there are 3"),
        (("--queries", "3:"), "no query is chosen; the run has 3"),
        (("--step", "11"), "the run has no step 11; the nearest are 10"),
        (("-k", "0"), "k is 0; it must be at least 1"),
        (("--csv", "/nowhere/at/all.csv"), "No such file or directory"),
    ],
)
def test_what_is_refused(run: Path, capsys: Capture, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(capsys, run, *arguments)
