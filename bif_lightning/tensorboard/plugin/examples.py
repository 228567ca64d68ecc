"""Who the examples of a run are: ids, labels, texts and pictures of one side, train or query."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bif_lightning.archive.read.examples import read_samples, read_thumbnail
from bif_lightning.archive.read.parts import read_parts
from bif_lightning.archive.schema import DUMP, class_name
from bif_lightning.results.examples import Samples
from bif_lightning.tensorboard.plugin.answers import Answer, RefusedError, as_json, as_numbers
from bif_lightning.tensorboard.plugin.matrix import matrix_of
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.run_files import RunFiles, remembered, token

SIDES = ("train", "query")
_HEAD = 80
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_PICTURE = 1 << 20


@dataclass(frozen=True)
class Examples:
    """Train and query examples of a run, from its samples file, or without one from its last dump."""

    train: Samples
    query: Samples

    def side(self, name: str) -> Samples:
        """Those of one side."""
        return self.train if name == "train" else self.query


def examples_of(files: RunFiles) -> Examples:
    """Who the examples are, read once."""
    path = files.samples()
    if path is None:
        return _of_dump(files)
    key = ("samples", str(path), token(path))
    return remembered(key, lambda: Examples(*read_samples(path, thumbnails=False)), _size)


def _of_dump(files: RunFiles) -> Examples:
    path = files.dump(files.steps[-1])
    names = [f"{side}_{part}" for side in SIDES for part in ("id", "index", "label")]

    def read() -> Examples:
        values = read_parts(path, DUMP, names=names).values
        return Examples(*(_bare(values, side) for side in SIDES))

    return remembered(("examples", str(path), token(path)), read, _size)


def _size(of: Examples) -> int:
    """Estimate their bytes in memory."""
    sides = (of.train, of.query)
    return sum(500 * len(side) + 2 * sum(map(len, side.texts or ())) for side in sides)


def _bare(values: Mapping[str, Any], side: str) -> Samples:
    return Samples(
        ids=tuple(map(str, values[f"{side}_id"])), index=values[f"{side}_index"], labels=values.get(f"{side}_label")
    )


def label_word(samples: Samples, row: int) -> str | None:
    """Class name of an example; None where it has no class."""
    if samples.labels is None or samples.labels[row] < 0:
        return None
    return class_name(samples.label_names, int(samples.labels[row]))


def samples(files: RunFiles, parameters: Parameters) -> Answer:
    """Ids, indices, labels, the user's columns and the beginning of each text, of one side.

    Given a `step` and the `matrix` of an observable whose columns are not queries, the query side lists these columns.
    """
    side = parameters.choice("side", SIDES)
    if side == "query" and parameters.has("matrix") and (names := _own_columns(files, parameters)):
        return as_json(_named(names))
    of = examples_of(files).side(side)
    texts = None if of.texts is None else [text[:_HEAD] for text in of.texts]
    return as_json(
        {
            "id": list(of.ids),
            "index": of.index,
            "label": of.labels,
            "label_names": None if of.label_names is None else list(of.label_names),
            "columns": dict(of.columns or {}),
            "text_head": texts,
            "own_columns": False,
        }
    )


def _own_columns(files: RunFiles, parameters: Parameters) -> list[str]:
    name = f"{matrix_of(parameters).observable}_column"
    values = read_parts(files.dump(files.step(parameters)), DUMP, names=(name,)).values
    return list(map(str, values.get(name, ())))


def _named(names: list[str]) -> dict[str, Any]:
    nothing = dict.fromkeys(("label", "label_names", "text_head"))
    return {"id": names, "index": list(range(len(names))), "columns": {}, "own_columns": True} | nothing


def text(files: RunFiles, parameters: Parameters) -> Answer:
    """The whole text of one example."""
    of = examples_of(files).side(parameters.choice("side", SIDES))
    row = parameters.number("row", 0, len(of) - 1)
    if of.texts is None:
        raise RefusedError(404, "These examples have no texts.")
    return as_json({"text": of.texts[row]})


def found(files: RunFiles, parameters: Parameters) -> Answer:
    """Rows of one side whose whole text has a word in it, in any case, int32; none where there are no texts."""
    of = examples_of(files).side(parameters.choice("side", SIDES))
    word = parameters.text("word").casefold()
    rows = [row for row, text in enumerate(of.texts or ()) if word in text.casefold()]
    return as_numbers({}, np.array(rows, np.int32))


def thumbnail(files: RunFiles, parameters: Parameters) -> Answer:
    """The picture of one example, a PNG."""
    path = files.samples()
    side = parameters.choice("side", SIDES)
    row = parameters.number("row", 0, 10**9)
    found = b"" if path is None else read_thumbnail(path, side, row, _MOST_PICTURE)
    if not found:
        raise RefusedError(404, f"{side} example {row} has no picture.")
    # Anything else, SVG or HTML say, could run a script in the page's name.
    if not found.startswith(_PNG):
        raise RefusedError(422, f"The picture of {side} example {row} is not a PNG, so it is not shown.")
    return Answer(found, kind="image/png")
