"""The train examples that help and hurt a query most, and the queries that a train example helps and hurts most.

Values are effects: above 0, the train example helps. `stored` turns them back.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bif_lightning.archive.read.parts import read_parts
from bif_lightning.archive.schema import DUMP
from bif_lightning.results.bands import is_clear
from bif_lightning.tensorboard.plugin.answers import Answer, RefusedError, as_json
from bif_lightning.tensorboard.plugin.matrix import Matrix, cells, matrix_of, shape_of
from bif_lightning.tensorboard.plugin.over_training import columns_over_training
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.run_files import RunFiles, head

_MOST = 1000


@dataclass(frozen=True)
class Ranked:
    """One row or column of a matrix in the order of its effect.

    Attributes:
        effect: with the sign that helps made positive.
        errors: standard error of each.
        order: positions, most helpful first; NaN is last.
    """

    effect: np.ndarray
    errors: np.ndarray
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
    """What `top` answers, as data.

    `over` "training" ranks a query by its effect over the whole training, with the step beside it; where that cannot
    be, the effect at the step alone ranks, and `over_text` says why.
    """
    wanted = parameters.choice("over", ("step", "training"), "step") == "training"
    why = None
    if wanted:
        try:
            return _over_training(files, step, matrix, parameters)
        except RefusedError as refusal:
            if refusal.status == 400:
                raise
            why, matrix = str(refusal), replace(matrix, quantity="influence")
    now = ranked(files, step, matrix, parameters)
    before = ranked(files, files.step(parameters, "since"), matrix, parameters) if parameters.has("since") else None
    alone = f"Ranked by the {matrix.words} at step {step} alone. ± is its Monte Carlo standard error."
    return {
        **_lists(now, parameters, matrix, lambda row, direction: _since(row, before, direction)),
        **_stability(files, step, parameters, matrix),
        "over": "step",
        "matrix": matrix.asked,
        "over_text": alone if why is None else f"{why.removesuffix('.')}. {alone}",
        **_verdict(files, step),
    }


def _over_training(files: RunFiles, step: int, matrix: Matrix, parameters: Parameters) -> dict[str, Any]:
    if matrix.observable or not parameters.has("query"):
        raise RefusedError(404, "A ranking over the whole training is of a query's loss.")
    here = ranked(files, step, matrix, parameters)
    shape = shape_of(files, step, matrix)
    found = columns_over_training(files, parameters.rows("query", shape[1])[:1])
    effect = -found.influence[:, 0]
    if len(effect) != len(here.effect):
        raise RefusedError(404, f"The dump of step {step} has other train examples than the last one.")
    now = Ranked(effect, found.standard_error[:, 0], np.argsort(-effect, kind="stable"))
    count = int(found.counts[0])
    share, agreement = float(found.top_overlap[0]), float(found.rank_agreement[0])
    stable = (
        f"Of the 10 most helpful and 10 most harmful by every second snapshot, the others find {share:.0%} too; their "
        f"ranks correlate by {agreement:.2f}."
    )
    return {
        **_lists(now, parameters, matrix, lambda row, direction: _beside(row, here, direction)),
        "stability": share,
        "stability_text": "How stable this ranking is was not measured." if math.isnan(share) else stable,
        "over": "training",
        "matrix": "influence",
        "over_text": (
            f"Ranked by the effect over the whole training: the sum over {count} snapshots, steps {found.steps[0]} "
            f"to {found.steps[-1]}, each in standard deviations (sd) of this query's column. ± bounds its Monte Carlo "
            f"standard error. Beside it: the {matrix.words} at step {step}."
        ),
        "steps": found.steps,
        **_verdict(files, step),
    }


def _lists(
    now: Ranked, parameters: Parameters, matrix: Matrix, more: Callable[[int, int], Mapping[str, Any]]
) -> dict[str, Any]:
    """The two lists of cards; `more` says what further numbers a row has."""
    k = parameters.number("k", 1, _MOST, 10)
    known = int(np.isfinite(now.effect).sum())
    best = [row for row in now.order[:known][:k] if now.effect[row] > 0]
    worst = [row for row in now.order[:known][::-1][:k] if now.effect[row] < 0]
    words = ("lowers", "raises") if matrix.observable else ("helps", "hurts")
    nothing = {} if best or worst else {"none_text": _none(known, matrix)}
    return nothing | {
        words[0]: _cards(best, now, lambda row: more(row, 1)),
        words[1]: _cards(worst, now, lambda row: more(row, -1)),
        "kind": "observable" if matrix.observable else "loss",
    }


def _verdict(files: RunFiles, step: int) -> dict[str, Any]:
    of = head(files, step)
    return {"verdict": of.attrs.get("verdict"), "verdict_text": of.values.get("chains/verdict")}


def ranked(files: RunFiles, step: int, matrix: Matrix, parameters: Parameters) -> Ranked:
    """The column of `query`, or the row of `train`, that a request asks for."""
    shape = shape_of(files, step, matrix)
    if parameters.has("query"):
        pair = (None, parameters.rows("query", shape[1])[:1])
    else:
        pair = (parameters.rows("train", shape[0])[:1], None)
    effect = matrix.effect(cells(files, step, matrix.name, *pair).ravel())
    return Ranked(effect, cells(files, step, matrix.error, *pair).ravel(), np.argsort(-effect, kind="stable"))


def stored(value: float, whole: bool, matrix: Matrix) -> float:
    """A value of the lists as the quantity of the dump: over the whole training, that is the integrated influence."""
    return -value if whole or matrix.helps < 0 else value


def _none(known: int, matrix: Matrix) -> str:
    what = matrix.observable or "one of the two losses"
    if known:
        return f"None: the {matrix.words} is 0 everywhere, since {what} is the same at every draw of this snapshot."
    return f"Undefined: {what} is the same at every draw of this snapshot."


def _cards(rows: list[int], now: Ranked, more: Callable[[int], Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "row": int(row),
            "value": float(now.effect[row]),
            "standard_error": float(now.errors[row]),
            "clear": bool(is_clear(now.effect[row], now.errors[row])),
            "rank": position + 1,
            **more(row),
        }
        for position, row in enumerate(rows)
    ]


def _beside(row: int, here: Ranked, direction: int) -> Mapping[str, Any]:
    """Value, error and rank at the step that is shown; no rank where it has the other sign there."""
    found = _since(row, here, direction)
    beside = {"value": found["value_since"], "standard_error": float(here.errors[row]), "rank": found["rank_since"]}
    return {"rank_since": None, "value_since": None, "snapshot": beside}


def _since(row: int, before: Ranked | None, direction: int) -> Mapping[str, Any]:
    """Value and rank at the earlier step; no rank where it had the other sign then."""
    if before is None:
        return {"rank_since": None, "value_since": None}
    same = before.effect[row] * direction > 0
    known = int(np.isfinite(before.effect).sum())
    position = int(before.rank[row])
    rank = position + 1 if direction > 0 else known - position
    return {"rank_since": rank if same else None, "value_since": float(before.effect[row])}


def _stability(files: RunFiles, step: int, parameters: Parameters, matrix: Matrix) -> dict[str, Any]:
    """How stable the ranking of a query is; measured of the influence on losses alone, which is that of its effect."""
    nothing = {"stability": None, "stability_text": f"How stable a ranking by the {matrix.words} is was not measured."}
    if not parameters.has("query") or matrix.observable or matrix.quantity != "influence":
        return nothing
    found = read_parts(files.dump(step), DUMP, names=("top_stability",)).values.get("top_stability")
    row = int(parameters.rows("query", 10**9)[0])
    if found is None or row >= len(found) or not np.isfinite(found).any():
        return nothing
    share = float(found[row])
    if math.isnan(share):
        known = found[np.isfinite(found)]
        rest = f"was measured for {len(known)} of {len(found)} queries, not for this one; their median is"
        return nothing | {"stability_text": f"How stable this ranking is {rest} {np.median(known):.0%}."}
    sentence = (
        "Of the 10 most helpful and 10 most harmful by one half of the draws (of Subspace, of the examples behind its "
        f"curvature), the other half finds {share:.0%} too."
    )
    return {"stability": share, "stability_text": sentence}
