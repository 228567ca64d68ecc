"""One entry of every matrix, with standard errors and losses."""

import numpy as np

from bif_lightning.archive.read.parts import read_parts
from bif_lightning.archive.schema import DUMP
from bif_lightning.tensorboard.plugin.answers import Answer, as_json
from bif_lightning.tensorboard.plugin.matrix import Matrix, cells, matrix_of, shape_of
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.run_files import QUANTITIES, RunFiles, head

_LOSSES = ("train_loss", "train_std", "query_loss", "query_std")


def cell(files: RunFiles, parameters: Parameters) -> Answer:
    """Every effect of one train example and one query, with its standard error; and their losses."""
    step, asked = files.step(parameters), matrix_of(parameters)
    train, query = (
        parameters.rows(side, size)[:1]
        for side, size in zip(("train", "query"), shape_of(files, step, asked), strict=True)
    )
    present = [Matrix(quantity, asked.observable) for quantity in QUANTITIES]
    shapes = head(files, step).shapes
    values = {
        matrix.quantity: {
            "value": matrix.helps * _entry(files, step, matrix.name, train, query),
            "standard_error": _entry(files, step, matrix.error, train, query),
        }
        for matrix in present
        if matrix.name in shapes
    }
    # The columns of an observable need not be queries.
    names = _LOSSES if not asked.observable else _LOSSES[:2]
    losses = read_parts(files.dump(step), DUMP, names=names).values
    rows = {"train": int(train[0]), "query": int(query[0])}
    return as_json({"values": values} | {name: losses[name][rows[name.partition("_")[0]]] for name in losses})


def _entry(files: RunFiles, step: int, name: str, train: np.ndarray, query: np.ndarray) -> float:
    return float(cells(files, step, name, train, query)[0, 0])
