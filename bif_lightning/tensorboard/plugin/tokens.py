"""Influence of each token of a train example on each token of a query, where the dump holds tokens."""

from typing import Any

import numpy as np

from bif_lightning.tensorboard.plugin.answers import Answer, RefusedError, as_json
from bif_lightning.tensorboard.plugin.matrix import matrix_of, shape_of
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.run_files import RunFiles, has, remembered, token

_MOST_CELLS = 1 << 20
_MOST_WITH_ERRORS = 1 << 18
_QUANTITIES = ("correlation", "influence")


def tokens(files: RunFiles, parameters: Parameters) -> Answer:
    """Tokens of one train example and one query, and the matrix between them; null where a token has no loss."""
    step, matrix = files.step(parameters), matrix_of(parameters)
    if not has(files, step, "tokens"):
        raise RefusedError(404, "This dump has no tokens; estimate with per_token=True to have them.")
    if matrix.name not in _QUANTITIES:
        raise RefusedError(404, f"Tokens have no {matrix.name}; choose correlation or influence.")
    size = shape_of(files, step, matrix)
    train, query = (parameters.number(side, 0, most - 1) for side, most in zip(("train", "query"), size, strict=True))
    stored = _stored(files, step)
    rows, columns = stored.train.rows_of(train), stored.query.rows_of(query)
    cells = len(rows) * len(columns)
    if cells > _MOST_CELLS:
        raise RefusedError(400, f"The pair has {cells:,} cells of tokens; at most {_MOST_CELLS:,} are shown.")
    found = stored.tokens.matrix(rows, columns, matrix.name, errors=cells <= _MOST_WITH_ERRORS)
    sides = _side(stored, "train", train, rows), _side(stored, "query", query, columns)
    positions = np.ix_(*(side["position"] for side in sides))
    shape = [len(side["tokens"]) for side in sides]
    return as_json(
        {
            "train": _shown(sides[0]),
            "query": _shown(sides[1]),
            "value": _spread(found.value, shape, positions),
            "standard_error": _spread(found.standard_error, shape, positions),
        }
    )


def _stored(files: RunFiles, step: int) -> Any:
    # xarray, which the module brings along, takes a second that only this question is worth.
    from bif_lightning.archive.read.tokens import open_tokens

    path = files.dump(step)
    samples = files.samples()
    key = ("tokens", str(path), token(path), "" if samples is None else token(samples))
    return remembered(key, lambda: open_tokens(path), lambda _: 1 << 22)


def _side(stored: Any, side: str, row: int, own: np.ndarray) -> dict[str, Any]:
    """All tokens of one sequence; where texts are not known, only those with a loss, by their positions."""
    axis = stored.train if side == "train" else stored.query
    position, loss = axis.position[own], axis.loss[own]
    texts = stored.texts(side, row)
    if texts is None:
        return {"tokens": [f"#{each}" for each in position], "position": np.arange(len(own)), "loss": loss}
    if len(position) and not 0 <= position.min() <= position.max() < len(texts):
        raise RefusedError(422, f"The tokens of {side} example {row} do not fit its text.")
    return {"tokens": texts, "position": position, "loss": loss}


def _shown(side: dict[str, Any]) -> dict[str, Any]:
    loss = np.full(len(side["tokens"]), np.nan)
    loss[side["position"]] = side["loss"]
    return {"tokens": side["tokens"], "loss": loss}


def _spread(values: np.ndarray | None, shape: list[int], positions: Any) -> np.ndarray | None:
    if values is None:
        return None
    whole = np.full(shape, np.nan)
    whole[positions] = values
    return whole
