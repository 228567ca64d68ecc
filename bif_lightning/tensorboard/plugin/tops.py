"""The train examples that help and hurt a query most, and the queries that a train example helps and hurts most."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bif_lightning.archive.read.parts import read_parts
from bif_lightning.archive.schema import DUMP
from bif_lightning.results.bands import is_clear
from bif_lightning.results.estimate import CONDITIONED_SIGN, CORRELATION_SIGN, INFLUENCE_SIGN
from bif_lightning.tensorboard.plugin.answers import Answer, as_json
from bif_lightning.tensorboard.plugin.matrix import Matrix, cells, matrix_of, shape_of
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.run_files import RunFiles, head

SIGNS = {"influence": INFLUENCE_SIGN, "correlation": CORRELATION_SIGN, "conditioned": CONDITIONED_SIGN}
_MOST = 1000


@dataclass(frozen=True)
class Ranked:
    """One row or column of a matrix in the order of its effect.

    Attributes:
        values, errors: as stored.
        effect: the values with the sign that helps made positive.
        order: positions, most helpful first; NaN is last.
    """

    values: np.ndarray
    errors: np.ndarray
    effect: np.ndarray
    order: np.ndarray

    @property
    def rank(self) -> np.ndarray:
        """Place of each position in the order, from 0."""
        return np.argsort(self.order)


def top(files: RunFiles, parameters: Parameters) -> Answer:
    """The two lists of cards, and how far they can be trusted."""
    step, matrix = files.step(parameters), matrix_of(parameters)
    return as_json(top_lists(files, step, matrix, parameters))


def top_lists(files: RunFiles, step: int, matrix: Matrix, parameters: Parameters) -> dict[str, Any]:
    """What `top` answers, as data."""
    k = parameters.number("k", 1, _MOST, 10)
    now = ranked(files, step, matrix, parameters)
    before = ranked(files, files.step(parameters, "since"), matrix, parameters) if parameters.has("since") else None
    known = int(np.isfinite(now.effect).sum())
    best = [row for row in now.order[:known][:k] if now.effect[row] > 0]
    worst = [row for row in now.order[:known][::-1][:k] if now.effect[row] < 0]
    words = ("lowers", "raises") if matrix.observable else ("helps", "hurts")
    of = head(files, step)
    return {
        words[0]: _cards(best, now, before, 1),
        words[1]: _cards(worst, now, before, -1),
        "kind": "observable" if matrix.observable else "loss",
        **_stability(files, step, parameters, matrix),
        "sign": SIGNS[matrix.quantity],
        "verdict": of.attrs.get("verdict"),
        "verdict_text": of.values.get("chains/verdict"),
    }


def ranked(files: RunFiles, step: int, matrix: Matrix, parameters: Parameters) -> Ranked:
    """The column of `query`, or the row of `train`, that a request asks for."""
    shape = shape_of(files, step, matrix)
    if parameters.has("query"):
        pair = (None, parameters.rows("query", shape[1])[:1])
    else:
        pair = (parameters.rows("train", shape[0])[:1], None)
    values = cells(files, step, matrix.name, *pair).ravel()
    effect = values * matrix.helps
    order = np.argsort(-effect, kind="stable")
    return Ranked(values, cells(files, step, matrix.error, *pair).ravel(), effect, order)


def _cards(rows: list[int], now: Ranked, before: Ranked | None, direction: int) -> list[dict[str, Any]]:
    return [
        {
            "row": int(row),
            "value": float(now.values[row]),
            "standard_error": float(now.errors[row]),
            "clear": bool(is_clear(now.values[row], now.errors[row])),
            "rank": position + 1,
            **_since(row, before, direction),
        }
        for position, row in enumerate(rows)
    ]


def _since(row: int, before: Ranked | None, direction: int) -> Mapping[str, Any]:
    """Value and rank at the earlier step; no rank where it had the other sign then."""
    if before is None:
        return {"rank_since": None, "value_since": None}
    same = before.effect[row] * direction > 0
    known = int(np.isfinite(before.effect).sum())
    position = int(before.rank[row])
    rank = position + 1 if direction > 0 else known - position
    return {"rank_since": rank if same else None, "value_since": float(before.values[row])}


def _stability(files: RunFiles, step: int, parameters: Parameters, matrix: Matrix) -> dict[str, Any]:
    share = math.nan
    if parameters.has("query") and not matrix.observable:
        stored = read_parts(files.dump(step), DUMP, names=("top_stability",)).values.get("top_stability")
        rows = parameters.rows("query", 10**9)
        share = math.nan if stored is None or rows[0] >= len(stored) else float(stored[rows[0]])
    if math.isnan(share):
        return {"stability": None, "stability_text": "How stable this ranking is was not measured."}
    sentence = (
        "Of the 10 most helpful and 10 most harmful by one half of the draws (of Subspace, of the examples behind its "
        f"curvature), the other half finds {share:.0%} too."
    )
    return {"stability": share, "stability_text": sentence}
