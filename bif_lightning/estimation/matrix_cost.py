"""Seconds of an estimate's matrices, foretold from a few made-up draws: small pieces are timed, and counted up.

A tile takes what it takes with few draws, and for each further draw one product of its losses with the columns. The
conditioned influence solves a system of the smaller of increments and train examples, once on every rank, and then
sweeps over the increments for every tile (`statistics.conditioned`). No array grows with the number of draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bif_lightning.config import Chains
from bif_lightning.estimation.blocks import BlockBuilder, MatrixShape
from bif_lightning.statistics.conditioned import LEAST_INCREMENTS, count_increments
from bif_lightning.statistics.draws import from_draws

MOST_IN_BATCH = 8
"""Made-up draws in a batch."""

_DRAWS, _SIDE = 256, 128  # of the pieces that are timed

Clock = Callable[[Callable[[int], object]], float]
"""Mean seconds of a call."""


@dataclass(frozen=True)
class PieceSeconds:
    """Seconds of the pieces that make the matrices.

    Attributes:
        tile: of a tile with few draws and no conditioned influence.
        draw: of a tile, for each further draw.
        sweep: of a tile's conditioned influence, for each entry of increments x the smaller of increments and train.
        product: of one multiplication in a large product.
        inverse: of a decomposition and an inverse, for each cubed row.
    """

    tile: float
    draw: float
    sweep: float
    product: float
    inverse: float

    @classmethod
    def measure(cls, builder: BlockBuilder, clock: Clock) -> "PieceSeconds":
        """Time them for the tile that is all of a builder's rows."""
        rows, columns = builder.layout.train, builder.layout.columns
        generator = torch.Generator().manual_seed(0)

        def made_up(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=dtype)

        train, others = made_up(_DRAWS, rows), made_up(_DRAWS, columns)
        traces, weights = made_up(_DRAWS, _SIDE), made_up(_SIDE, rows, dtype=torch.float64)
        square = made_up(_SIDE, _SIDE, dtype=torch.float64)
        gram = square @ square.mT + torch.eye(_SIDE)

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
        """The slowest of several threads in each piece."""
        return cls(*(max(each) for each in zip(*(vars(one).values() for one in measured), strict=True)))


def made_up_lengths(lengths: Sequence[int]) -> list[int]:
    """As many batches, of few draws each."""
    return [min(length, MOST_IN_BATCH) for length in lengths]


def matrix_seconds(
    shape: MatrixShape, chains: Chains, made_up: int, pieces: PieceSeconds, workers: int, *, paired: bool
) -> float:
    """Add up the seconds of all tiles, divided over the workers, and of what is solved before them.

    Args:
        shape: sizes of the matrices.
        chains: how many, and how many draws.
        made_up: draws a chain that `pieces.tile` was timed with.
        pieces: measured.
        workers: threads of all ranks together.
        paired: draws are antithetic pairs.
    """
    tile = pieces.tile + pieces.draw * chains.num_chains * (chains.num_draws - made_up)
    before, increments = 0.0, chains.num_chains * count_increments(chains.num_draws, paired=paired)
    if shape.conditioned and increments >= LEAST_INCREMENTS:
        smaller = min(increments, shape.train)
        tile += pieces.sweep * increments * smaller + pieces.draw * increments
        products = increments * (shape.train * smaller + 2 * smaller * shape.columns)
        before = pieces.product * products + pieces.inverse * smaller**3
    return before + tile * -(-len(shape.tiles(slice(0, shape.train))) // workers)
