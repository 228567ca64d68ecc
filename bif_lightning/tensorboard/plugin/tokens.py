"""Effect of each token of a train example on each token of a query, where the dump holds tokens."""

from typing import Any

import numpy as np

from bif_lightning.tensorboard.plugin.answers import Answer, RefusedError, as_json
from bif_lightning.tensorboard.plugin.matrix import Matrix, matrix_of, shape_of
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.run_files import RunFiles, has, remembered, token

_MOST_CELLS = 1 << 20
_MOST_WITH_ERRORS = 1 << 18
_QUANTITIES = ("correlation", "influence")


def tokens(files: RunFiles, parameters: Parameters) -> Answer:
    """Tokens of one train example and one query, and the effects between them; null where a token has no loss.

    `whole` of a side is the effect between each of its tokens and the loss of the other sequence, summed over tokens.
    """
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
    wholes = stored.tokens.with_sequences(rows, columns, matrix.name)
    sides = _side(stored, "train", train, rows), _side(stored, "query", query, columns)
    positions = np.ix_(*(side["position"] for side in sides))
    shape = [len(side["tokens"]) for side in sides]
    return as_json(
        {
            **{
                name: _shown(side) | _with_whole(side, whole, matrix)
                for name, side, whole in zip(("train", "query"), sides, wholes, strict=True)
            },
            "value": _spread(matrix.effect(found.value), shape, positions),
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
        names = [f"#{each} " for each in position]
        return {"tokens": names, "position": np.arange(len(own)), "loss": loss, "named": False}
    if len(position) and not 0 <= position.min() <= position.max() < len(texts):
        raise RefusedError(422, f"The tokens of {side} example {row} do not fit its text.")
    return {"tokens": texts, "position": position, "loss": loss, "named": True}


def _shown(side: dict[str, Any]) -> dict[str, Any]:
    loss = np.full(len(side["tokens"]), np.nan)
    loss[side["position"]] = side["loss"]
    return {"tokens": side["tokens"], "named": side["named"], "loss": loss}


def _with_whole(side: dict[str, Any], found: Any, matrix: Matrix) -> dict[str, Any]:
    """Effect of each token with the whole other sequence, and its standard error; NaN for tokens without a loss."""
    value, error = (np.full(len(side["tokens"]), np.nan) for _ in range(2))
    value[side["position"]] = matrix.effect(found.value).ravel()
    error[side["position"]] = found.standard_error.ravel()
    return {"whole": value, "whole_standard_error": error}


def _spread(values: np.ndarray | None, shape: list[int], positions: Any) -> np.ndarray | None:
    if values is None:
        return None
    whole = np.full(shape, np.nan)
    whole[positions] = values
    return whole
