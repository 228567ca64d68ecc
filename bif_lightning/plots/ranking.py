"""The train examples that help and hurt a query most."""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int


def strongest(
    values: Float[np.ndarray, " train"], k: int, helps: Literal[1, -1]
) -> tuple[Int[np.ndarray, " helpful"], Int[np.ndarray, " harmful"]]:
    """Positions of the k most helpful and the k most harmful train examples, strongest first.

    Fewer than k where fewer have that sign: an example that helps is never listed as harmful. NaN is left out.

    Args:
        values: influence or correlation of every train example with one query.
        k: largest number of each.
        helps: the sign of a value that helps: 1 for correlation, −1 for influence.

    >>> [list(map(int, side)) for side in strongest(np.array([0.2, -0.1, np.nan, 0.5]), 2, 1)]
    [[3, 0], [1]]
    """
    towards = np.where(np.isfinite(values), values * helps, 0.0)
    order = np.argsort(-towards, kind="stable")
    helpful, harmful = order[:k], order[::-1][:k]
    return helpful[towards[helpful] > 0], harmful[towards[harmful] < 0]
