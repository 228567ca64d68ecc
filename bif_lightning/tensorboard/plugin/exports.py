"""CSV exports of the views, with ids, labels, values and standard errors.

Values have the names and signs of the dump: influence below 0 helps.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bif_lightning.results.examples import Samples
from bif_lightning.storage.spreadsheet import csv_text
from bif_lightning.tensorboard.plugin.answers import Answer, RefusedError
from bif_lightning.tensorboard.plugin.compare import pair_of, rank_agreement
from bif_lightning.tensorboard.plugin.examples import SIDES, examples_of, label_word
from bif_lightning.tensorboard.plugin.matrix import Matrix, cells, matrix_of, shape_of
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.run_files import RunFiles
from bif_lightning.tensorboard.plugin.tops import stored, top_lists
from bif_lightning.tensorboard.plugin.views import class_means, ordered, window_of

_MOST_CELLS = 1 << 18


def as_csv(head: Sequence[str], rows: Iterable[Sequence[Any]], name: str) -> Answer:
    """A table to download (`storage.spreadsheet`)."""
    headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    body = csv_text(head, rows).encode("utf-8", "replace")
    return Answer(body, kind="text/csv; charset=utf-8", headers=headers)


def export_top(files: RunFiles, parameters: Parameters) -> Answer:
    """The lists of the cards."""
    step, matrix = files.step(parameters), matrix_of(parameters)
    lists = top_lists(files, step, matrix, parameters)
    side = "train" if parameters.has("query") else "query"
    who = None if side == "query" and matrix.observable else examples_of(files).side(side)
    other = "query" if side == "train" else "train"
    asked, whole = parameters.text(other), lists["over"] == "training"
    if not whole:
        matrix = matrix_of(Parameters({"matrix": lists["matrix"]}))

    head = ["step", other, "effect", "rank", side, "id", "label", "quantity", "value", "standard_error", "clear"]
    head += [matrix.name, f"{matrix.name}_standard_error"] if whole else ["rank_since", "value_since"]
    name = "integrated" if whole else matrix.name
    rows = [
        [step, asked, effect, card["rank"], card["row"], *_who(who, card["row"]), name]
        + [stored(card["value"], whole, matrix), card["standard_error"], card["clear"]]
        + (_snapshot(card, matrix) if whole else [card["rank_since"], _stored(card["value_since"], matrix)])
        for effect in ("helps", "hurts", "lowers", "raises")
        for card in lists.get(effect, ())
    ]
    return as_csv(head, rows, "influence_top_training" if whole else f"influence_top_step_{step}")


def _snapshot(card: Mapping[str, Any], matrix: Matrix) -> list[Any]:
    """What stands beside the value of a card."""
    return [_stored(card["snapshot"]["value"], matrix), card["snapshot"]["standard_error"]]


def _stored(value: float | None, matrix: Matrix) -> float | None:
    return None if value is None else stored(value, False, matrix)


def _who(of: Samples | None, row: int) -> tuple[str | None, str | None]:
    return (None, None) if of is None else (of.ids[row], label_word(of, row))


def export_window(files: RunFiles, parameters: Parameters) -> Answer:
    """Every entry of a window, a line each, not pooled.

    Raises:
        RefusedError: 400, the window has more than 262,144 entries.
    """
    step, matrix = files.step(parameters), matrix_of(parameters)
    shape = shape_of(files, step, matrix)
    window = window_of(parameters, *ordered(files, matrix, parameters))
    if len(window.rows) * len(window.columns) > _MOST_CELLS:
        entries = len(window.rows) * len(window.columns)
        raise RefusedError(
            400, f"The window has {entries:,} entries; zoom in to at most {_MOST_CELLS:,} and export again."
        )
    values, errors = (cells(files, step, name, window.rows, window.columns) for name in (matrix.name, matrix.error))
    of = examples_of(files)
    queries = of.query if shape[1] == len(of.query) else None
    head = [
        "step",
        "train",
        "train_id",
        "train_label",
        "query",
        "query_id",
        "query_label",
        matrix.name,
        "standard_error",
    ]
    rows = (
        [step, train, *_who(of.train, train), query, *_who(queries, query), value, error]
        for train, line, line_errors in zip(window.rows.tolist(), values.tolist(), errors.tolist(), strict=True)
        for query, value, error in zip(window.columns.tolist(), line, line_errors, strict=True)
    )
    return as_csv(head, rows, f"influence_window_step_{step}")


def export_classes(files: RunFiles, parameters: Parameters) -> Answer:
    """Every block of a class of train examples and a class of queries, a line each."""
    step, matrix = files.step(parameters), matrix_of(parameters)
    found = class_means(files, step, matrix)
    head = ["step", "train_label", "train_name", "query_label", "query_name", matrix.name, "standard_error", "count"]
    sides = [list(zip(found[f"{side}_label"].tolist(), found[f"{side}_name"], strict=True)) for side in SIDES]
    numbers = [found[name].ravel().tolist() for name in ("value", "standard_error", "count")]
    pairs = [(step, *train, *query) for train in sides[0] for query in sides[1]]
    return as_csv(
        head, ([*pair, *row] for pair, *row in zip(pairs, *numbers, strict=True)), f"influence_classes_step_{step}"
    )


def export_compare_ranks(here: RunFiles, there: RunFiles, parameters: Parameters) -> Answer:
    """Rank correlation of each query between two dumps, a line each."""
    pair = pair_of(here, there, parameters)
    queries, agreement = rank_agreement(pair, len(pair.common.columns))
    of = examples_of(here).query
    who = None if pair.matrix.observable else of
    rows = (
        [query, *_who(who, query), value] for query, value in zip(queries.tolist(), agreement.tolist(), strict=True)
    )
    return as_csv(["query", "id", "label", "rank_correlation"], rows, "influence_compare_ranks")


def trajectory_csv(found: Mapping[str, Any], matrix: Matrix, parameters: Parameters) -> Answer:
    """A trajectory of stored values, a line for each step, with the rows or the classes that it is of."""
    names = ["train_class", "query_class"] if parameters.has("train_class") else ["train", "query"]
    pair = [parameters.text(name) for name in names]
    columns = [found[name] for name in ("steps", "value", "standard_error", "low", "high", "verdict")]
    changes = {change["step"]: change["kind"] for change in found["changes"]}
    rows = [[step, *pair, *row, changes.get(step)] for step, *row in zip(*columns, strict=True)]
    head = ["step", *names, matrix.name, "standard_error", "low", "high", "verdict", "change"]
    return as_csv(head, rows, "influence_trajectory")


def trust_csv(found: Mapping[str, Any]) -> Answer:
    """The diagnostics, a line for each step."""
    columns = {name: values for name, values in found.items() if isinstance(values, list)} | found["metrics"]
    head = ["step" if name == "steps" else name for name in columns]
    return as_csv(head, zip(*columns.values(), strict=True), "influence_trust")
