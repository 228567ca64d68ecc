"""Forecast of the seconds of an estimate's matrices: time small pieces on a few random draws, and add them up.

The time of a tile is its time with few draws, plus one product of its losses with the columns for each further draw.
It includes the influence of the draws alone, where there is one beside a closed form. The conditioned influence solves
one system on every rank, of the size of the smaller of increments and train examples. Then it sweeps over the
increments for every tile (`statistics.conditioned`). No array grows with the number of draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bif_lightning.config import Chains
from bif_lightning.estimation.blocks import BlockBuilder, MatrixShape
from bif_lightning.statistics.conditioned import LEAST_INCREMENTS, count_increments
from bif_lightning.statistics.draws import from_draws

MOST_IN_BATCH = 8
"""Random draws in a batch."""

_DRAWS, _SIDE = 256, 128  # sizes of the timed pieces

Clock = Callable[[Callable[[int], object]], float]
"""Mean seconds of a call."""


@dataclass(frozen=True)
class PieceSeconds:
    """Seconds of the operations that compute the matrices.

    Attributes:
        tile: a tile with few draws and no conditioned influence.
        draw: each further draw of a tile.
        sweep: conditioned influence of a tile, divided by increments x min(increments, train).
        product: one multiplication in a large matrix product.
        inverse: an eigendecomposition and an inverse, divided by the cubed number of rows.
    """

    tile: float
    draw: float
    sweep: float
    product: float
    inverse: float

    @classmethod
    def measure(cls, builder: BlockBuilder, clock: Clock) -> "PieceSeconds":
        """Time the operations, with all rows of a builder as one tile."""
        rows, columns = builder.layout.train, builder.layout.columns
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=dtype, device="cpu")

        train, others = normal(_DRAWS, rows), normal(_DRAWS, columns)
        traces, weights = normal(_DRAWS, _SIDE), normal(_SIDE, rows, dtype=torch.float64)
        square = normal(_SIDE, _SIDE, dtype=torch.float64)
        gram = square @ square.mT + torch.eye(_SIDE, device="cpu")

        def invert(_: int) -> object:
            return torch.linalg.eigvalsh(gram), torch.cholesky_inverse(torch.linalg.cholesky(gram))

        return cls(
            tile=clock(lambda _: builder.block(slice(0, rows))),
            draw=clock(lambda _: from_draws(train, others)) / _DRAWS,
            sweep=clock(lambda _: traces.double() @ weights) / (_DRAWS * _SIDE),
            product=clock(lambda _: square @ square) / _SIDE**3,
            inverse=clock(invert) / _SIDE**3,
        )

    @classmethod
    def slowest(cls, measured: Sequence["PieceSeconds"]) -> "PieceSeconds":
        """The largest time of each operation over several threads."""
        return cls(*(max(each) for each in zip(*(vars(one).values() for one in measured), strict=True)))


def short_lengths(lengths: Sequence[int]) -> list[int]:
    """Lengths of the same number of batches with few draws each."""
    return [min(length, MOST_IN_BATCH) for length in lengths]


def matrix_seconds(
    shape: MatrixShape, chains: Chains, timed_draws: int, pieces: PieceSeconds, workers: int, *, paired: bool
) -> float:
    """Add up the seconds of all tiles, divided among the workers, and of the system solved before them.

    Args:
        shape: sizes of the matrices.
        chains: number of chains and draws.
        timed_draws: draws in a chain when `pieces.tile` was timed.
        pieces: measured seconds.
        workers: threads of all ranks together.
        paired: whether draws are antithetic pairs.
    """
    tile = pieces.tile + pieces.draw * chains.num_chains * (chains.num_draws - timed_draws)
    before, increments = 0.0, chains.num_chains * count_increments(chains.num_draws, paired=paired)
    if shape.conditioned and increments >= LEAST_INCREMENTS:
        smaller = min(increments, shape.train)
        tile += pieces.sweep * increments * smaller + pieces.draw * increments
        products = increments * (shape.train * smaller + 2 * smaller * shape.columns)
        before = pieces.product * products + pieces.inverse * smaller**3
    return before + tile * -(-len(shape.tiles(slice(0, shape.train))) // workers)
