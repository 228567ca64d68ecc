"""The matrices of a dump, and their cells.

Answers that are shown hold effects, whose sign is the same for every quantity: above 0, the train example helps. Tables
to save hold the quantities of the dump under their names.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from cachetools import LRUCache

from bif_lightning.archive.read.cells import read_cells
from bif_lightning.exceptions import UnreadableFileError
from bif_lightning.tensorboard.plugin.answers import RefusedError
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.run_files import QUANTITIES, RunFiles, head, token

WHOLE_CELLS = 1 << 24
"""Largest matrix, in cells, that is read whole and cached."""

_MATRICES: LRUCache[tuple[str, str, str], np.ndarray] = LRUCache(256 << 20, getsizeof=lambda values: values.nbytes)


@dataclass(frozen=True)
class Matrix:
    """Which matrix of a dump: of the query losses, or of an observable.

    Attributes:
        quantity: correlation, influence or conditioned.
        observable: its name; empty for the losses of the queries.
    """

    quantity: str
    observable: str = ""

    @property
    def name(self) -> str:
        """Of its dataset."""
        return f"{self.observable}_{self.quantity}" if self.observable else self.quantity

    @property
    def asked(self) -> str:
        """How requests call it."""
        return f"{self.observable}:{self.quantity}" if self.observable else self.quantity

    @property
    def error(self) -> str:
        """Name of the dataset of its standard errors."""
        return f"{self.name}_standard_error"

    @property
    def helps(self) -> int:
        """Sign of the values that help, or that lower the observable."""
        return 1 if self.quantity == "correlation" else -1

    @property
    def words(self) -> str:
        """What is shown, in running text."""
        name = {"correlation": "correlation", "influence": "effect", "conditioned": "conditioned effect"}[self.quantity]
        preposition = "with" if self.quantity == "correlation" else "on"
        return f"{name} {preposition} {self.observable}" if self.observable else name

    def effect(self, values: np.ndarray) -> np.ndarray:
        """Stored values with the sign that helps, or that lowers the observable, made positive."""
        return values if self.helps > 0 else -values


def matrix_of(parameters: Parameters) -> Matrix:
    """The matrix that a request asks for: `correlation`, or `margin:correlation` of an observable.

    Raises:
        RefusedError: 400, it is none of the three quantities.
    """
    observable, _, quantity = parameters.text("matrix").rpartition(":")
    if quantity not in QUANTITIES or "/" in observable:
        raise RefusedError(
            400, f"matrix is {parameters.text('matrix')[:80]!r}; it must be one of {', '.join(QUANTITIES)}."
        )
    return Matrix(quantity, observable)


def shape_of(files: RunFiles, step: int, matrix: Matrix) -> tuple[int, int]:
    """Rows and columns of a matrix.

    Raises:
        RefusedError: 404, the dump has no such matrix.
    """
    shape = head(files, step).shapes.get(matrix.name)
    if shape is None:
        raise RefusedError(404, f"The dump of step {step} has no {matrix.name}; choose another matrix or step.")
    return shape[0], shape[1]


def cells(
    files: RunFiles, step: int, name: str, rows: np.ndarray | None = None, columns: np.ndarray | None = None
) -> np.ndarray:
    """Rows and columns of a matrix by the name of its dataset; None takes all.

    Raises:
        RefusedError: 400, too many cells at once.
        UnreadableFileError: see `read_cells`.
    """
    path = files.dump(step)
    key = (str(path), token(path), name)
    found = _MATRICES.get(key)
    if found is not None:
        chosen = found if rows is None else found[rows]
        return chosen if columns is None else chosen[:, columns]
    (values,) = cells_of(files, step, (name,), rows, columns)
    if rows is None and columns is None and values.size <= WHOLE_CELLS:
        _MATRICES[key] = values
    return values


def cells_of(
    files: RunFiles, step: int, names: Sequence[str], rows: np.ndarray | None, columns: np.ndarray | None
) -> list[np.ndarray]:
    """Read several matrices at once, without caching them."""
    try:
        return read_cells(files.dump(step), names, rows, columns)
    except UnreadableFileError:
        raise
    except ValueError as error:
        raise RefusedError(400, f"{error}.") from error
