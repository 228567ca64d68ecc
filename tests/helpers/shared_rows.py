"""One process among several that share the rows of the matrices of made-up draws."""

import pickle
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist

from bif_lightning.config import SGLD, Chains
from bif_lightning.data.dataset import Examples
from bif_lightning.distributed.ranks import Ranks, current_ranks
from bif_lightning.estimation import blocks, forecast, matrices
from bif_lightning.estimation.blocks import BlockBuilder
from bif_lightning.estimation.forecast import Forecast
from bif_lightning.estimation.matrices import Matrices, compute
from bif_lightning.losses.observables import mean_of
from bif_lightning.losses.problem import Problem
from bif_lightning.sampling.covariances import DrawnCovariances
from bif_lightning.sampling.trace import ChainTrace, batch_lengths
from bif_lightning.statistics.label_means import Labels
from bif_lightning.statistics.moments import Moments
from targets import Regression, half_square

TRAIN, COLUMNS, QUERIES = 101, 13, 9
CHAINS = Chains(num_chains=3, num_draws=17)

Found = dict[str, np.ndarray] | None


def maker(record: type[ChainTrace] = ChainTrace) -> BlockBuilder:
    """Of draws that are the same in every process, with the influence of the draws alone once more beside them."""
    generator = torch.Generator().manual_seed(5)
    records = [record(chain, batch_lengths(CHAINS), True) for chain in range(CHAINS.num_chains)]
    for each in records:
        for _ in range(CHAINS.num_draws):
            each.push(torch.randn(TRAIN, generator=generator), torch.randn(COLUMNS, generator=generator))
        each.seal()
    labels = Labels(np.arange(TRAIN) % 4 - 1, np.arange(QUERIES) % 3)
    shape = TRAIN, COLUMNS, QUERIES
    drawn = DrawnCovariances.of(records, shape, replace(CHAINS, ridge=None))
    beside = forecast._BesideDraws(drawn.traces, drawn.centring, drawn.errors, drawn=drawn)
    return BlockBuilder.of(beside, shape, labels)


def contents(found: Matrices | None) -> Found:
    """Everything that an estimate takes from the matrices."""
    if found is None:
        return None
    means = found.label_means()
    assert means is not None
    arrays = {name: value for name, value in vars(found).items() if isinstance(value, np.ndarray)}
    of_labels = {f"label_{name}": np.asarray(value) for name, value in vars(means).items()}
    return {**arrays, **of_labels, "agreement": np.array(found.agreement())}


def in_small_rounds() -> None:
    """Many blocks and rounds, of few rows."""
    blocks._TILE_ENTRIES, blocks._BLOCKS = 600, 20
    matrices.ROUND_BYTES = 1


class BrokenRecord(ChainTrace):
    """A chain of which rank 1 cannot read the last rows."""

    def moments(self, rows: slice) -> Moments:
        if dist.get_rank() == 1 and rows.stop > 90 and rows.step is None:  # but as a sample of all
            raise ArithmeticError("no such rows")
        return super().moments(rows)


def forecast_of_seconds() -> Forecast:
    """By a clock that takes every call for a second, of tiles alone."""
    world = Regression.random(TRAIN, 3, 0)
    examples = Examples(world.data())
    problem = Problem(
        module=world.model(), loss=half_square, objective=lambda module, batch: mean_of(half_square(module, batch)),
        train=examples, query=examples, training=examples, prepare=lambda batch: batch,
    )  # fmt: skip
    with patch.object(forecast, "_clock", lambda call, calls: 1.0):
        sampler = SGLD(step_size=0.01, inverse_temperature=7.0, localization=9.0)
        return forecast.forecast(problem, sampler, replace(CHAINS, ridge=None))


def failure(ranks: Ranks, made: BlockBuilder, scratch: Path | None = None, matrix_bytes: int = 1 << 30) -> str:
    try:
        compute(made, 1, ranks, everywhere=False, matrix_bytes=matrix_bytes, scratch=scratch)
    except (RuntimeError, OSError, ArithmeticError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def work(rank: int, folder: str, world_sizes: tuple[int, ...]) -> None:
    """As one of so many ranks, then as one of fewer: see `results`."""
    torch.set_num_threads(1)
    in_small_rounds()
    for world_size in world_sizes:
        if rank < world_size:
            store = Path(folder, f"store{world_size}")
            dist.init_process_group(
                "gloo", f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
            )
            try:
                Path(folder, f"{world_size}-{rank}.pickle").write_bytes(pickle.dumps(results(store)))
            finally:
                dist.destroy_process_group()


def results(store: Path) -> dict[str, Any]:
    """Share the rows, keep the matrices everywhere, then on rank 0 alone; then fail; then once more."""
    ranks, scratch = current_ranks(), store.parent
    return {
        # The matrices are in memory on rank 0, in a file on the others.
        "everywhere": contents(compute(maker(), 2, ranks, scratch=scratch, matrix_bytes=0 if ranks.rank else 1 << 30)),
        "first": contents(compute(maker(), 1, ranks, everywhere=False, scratch=scratch, matrix_bytes=0)),
        "no folder": failure(ranks, maker(), store / "below a file", 0),
        "broken": failure(ranks, maker(BrokenRecord)),
        "forecast": forecast_of_seconds(),
        "again": contents(compute(maker(), 1, ranks, everywhere=False)),
    }
