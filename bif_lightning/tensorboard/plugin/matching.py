"""Which examples of two runs are the same.

Ids alone do not tell: by default they are row numbers, which any two datasets share. Two examples of one id are the
same where both runs describe the same examples, or took that side from the same data. Else their labels and texts must
agree; and where ids are row numbers and there are no texts, the labels of all.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bif_lightning.archive.read.parts import read_parts
from bif_lightning.archive.schema import DUMP
from bif_lightning.results.examples import Samples
from bif_lightning.tensorboard.plugin.examples import examples_of, label_word
from bif_lightning.tensorboard.plugin.run_files import RunFiles, remembered, token


@dataclass(frozen=True)
class Matched:
    """Rows of one side here, ascending, the same examples there, and how many share an id only."""

    here: np.ndarray
    there: np.ndarray
    left_out: int


@dataclass(frozen=True)
class _Origin:
    """What a dump says of where its examples come from; empty where it says nothing."""

    examples: str
    data: dict[str, str]


def matched(here: RunFiles, there: RunFiles, steps: tuple[int, int], side: str) -> Matched:
    """The examples of one side that both runs have; the dump of each step says where they come from."""
    origins = _origin(here, steps[0]), _origin(there, steps[1])
    own, others = examples_of(here).side(side), examples_of(there).side(side)
    place = {name: row for row, name in enumerate(others.ids)}
    pairs = [(row, place[name]) for row, name in enumerate(own.ids) if name in place]
    same = pairs if _is_one_source(*origins, side) else _alike(own, others, pairs)
    found = np.array(same, np.int64).reshape(-1, 2)
    return Matched(found[:, 0], found[:, 1], len(pairs) - len(same))


def _is_one_source(one: _Origin, other: _Origin, side: str) -> bool:
    if one.examples and one.examples == other.examples:
        return True
    data = one.data.get(side, ""), other.data.get(side, "")
    # A fingerprint without a digest, as of augmented data, is a type and a size: any dataset may have it.
    return " " in data[0] and data[0] == data[1]


def _alike(own: Samples, others: Samples, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs of one id whose labels and texts agree; none where ids are row numbers, and nothing else tells."""
    same = [pair for pair in pairs if not _differ(own, others, *pair)]
    if (own.texts is not None and others.texts is not None) or not (_is_numbered(own) and _is_numbered(others)):
        return same
    labels = {label_word(own, row) for row, _ in same} - {None}
    return same if len(labels) > 1 and len(same) == len(pairs) else []


def _differ(own: Samples, others: Samples, row: int, place: int) -> bool:
    labels = label_word(own, row), label_word(others, place)
    if None not in labels and labels[0] != labels[1]:
        return True
    return own.texts is not None and others.texts is not None and own.texts[row] != others.texts[place]


def _is_numbered(samples: Samples) -> bool:
    """Whether its ids are row numbers of the dataset."""
    return all(name == str(row) for name, row in zip(samples.ids, samples.index.tolist(), strict=True))


def _origin(files: RunFiles, step: int) -> _Origin:
    path = files.dump(step)
    return remembered(("origin", str(path), token(path)), lambda: _read(path))


def _read(path: Path) -> _Origin:
    of = read_parts(path, DUMP, attrs=("samples_sha256",), names=("provenance_json",))
    try:
        data = json.loads(of.values["provenance_json"])["data"]
        data = {str(side): str(found) for side, found in data.items()}
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        data = {}
    return _Origin(str(of.attrs.get("samples_sha256", "")), data)
