"""What a snapshot will take, before the first one is made: measured on the real problem, not guessed."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from bif_lightning.config import SGLD, Chains, Sampler
from bif_lightning.curvature.laplace import seconds_for
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.distributed.threads import on_threads
from bif_lightning.estimation.assemble import extra_bytes, file_bytes, layout_of, matrix_threads
from bif_lightning.estimation.blocks import BlockBuilder
from bif_lightning.estimation.estimator import plan_chains
from bif_lightning.losses.problem import Problem
from bif_lightning.sampling.chain import ChainContext, ChainState
from bif_lightning.sampling.context import engine_context, ranks_of
from bif_lightning.sampling.trace import ChainTrace, batch_lengths, is_paired
from bif_lightning.storage.scratch import MATRIX_BYTES, check_room

_LEAST_CALLS = 2
_TIMED_SECONDS = 0.05


@dataclass(frozen=True)
class Forecast:
    """What one snapshot takes.

    Attributes:
        seconds: of wall time, without writing.
        extra_bytes: of memory on rank 0 beyond the module and its data.
        workers: chains at a time, on each rank.
        num_ranks: that share the chains and the rows of the matrices.
        file_bytes: of the matrices, where they lie in a temporary file; else 0.
    """

    seconds: float
    extra_bytes: int
    workers: int
    num_ranks: int = 1
    file_bytes: int = 0

    def __str__(self) -> str:
        chains = "1 chain" if self.workers == 1 else f"{self.workers} chains"
        shared = f" on each of {self.num_ranks} ranks" if self.num_ranks > 1 else ""
        matrices = f", {_size(self.file_bytes)} of matrices in a temporary file" if self.file_bytes else ""
        return (
            f"about {self.seconds:.2g} s and {_size(self.extra_bytes)} a snapshot, {chains} at a time{shared}{matrices}"
        )


def forecast(
    problem: Problem,
    sampler: Sampler,
    chains: Chains,
    *,
    store_traces: bool = False,
    ranks: Ranks | None = None,
    matrix_bytes: int = MATRIX_BYTES,
    scratch: Path | None = None,
) -> Forecast:
    """Time a step, a measurement and a tile of the matrices, and count them. Collective.

    A rank makes ceil(its chains / at once) x (steps x step + T x measurement), then its share of the tiles.

    Args:
        problem, sampler, chains, store_traces: as of the snapshot.
        ranks: the ranks that share the work; None for those of the default process group.
        matrix_bytes, scratch: see `summary.summarize`.

    Raises:
        OSError: the disk has no room for the matrices.
    """
    ranks = ranks or ranks_of(problem.module)
    with engine_context(problem, chains, ranks) as (backend, workers, threads):
        looking = seconds_for(problem, backend, sampler, workers, ranks)
        plan = plan_chains(problem, backend, sampler, chains, store_traces=store_traces)
        own = chains.num_chains if ranks.lockstep else -(-chains.num_chains // ranks.world_size)
        workers = min(workers, own)
        # As many at once as there will be: chains on threads slow each other down.
        timed = on_threads([partial(_time, plan, ranks, chain) for chain in range(workers)], workers, threads)
        step, measurement = map(max, zip(*timed, strict=True))
        each = -(-own // workers) * (chains.thinning * step + measurement)
        sampling = -(-own // workers) * chains.burn_in * step + chains.num_draws * each
        in_file = file_bytes(plan, matrix_bytes)
        if in_file:
            with ranks.collective("the room for the matrices"):
                check_room(in_file, scratch)
        seconds = looking + sampling + _matrix_seconds(plan, matrix_threads(workers), ranks)
        held = extra_bytes(plan, workers, matrix_bytes)
        return Forecast(seconds, held, workers, ranks.world_size, in_file)


def _size(nbytes: int) -> str:
    """In the largest unit of which there is one: "17 kB", "1.6 GB"."""
    exponent = min(max((len(str(nbytes)) - 1) // 3, 1), 3)
    return f"{nbytes / 1000**exponent:.3g} {'kMG'[exponent - 1]}B"


def _time(plan: ChainContext, ranks: Ranks, chain: int) -> tuple[float, float]:
    """Seconds of a step and of a measurement."""
    walker, sampler = ChainState(plan, chain), plan.sampler
    move = partial(walker.step, sampler=sampler) if isinstance(sampler, SGLD) else walker.draw_gaussian
    move(0)  # the first call of every operation pays for its set-up
    walker.measure(0, 0)
    return _seconds(move, ranks), _seconds(lambda index: walker.measure(index, index), ranks)


def _matrix_seconds(plan: ChainContext, threads: int, ranks: Ranks) -> float:
    """Of one rank's share of the tiles, from one tile of made-up draws."""
    layout = layout_of(plan)
    tiles = layout.tiles(slice(0, layout.train))
    maker = _made_up(plan, tiles[0].stop)

    def tile() -> float:
        maker.block(tiles[0])
        return _seconds(lambda _: maker.block(tiles[0]), ranks)

    # One intra-op thread each, as in `matrices.compute`.
    each = max(on_threads([tile] * threads, threads, 1))
    return each * -(-len(tiles) // (threads * ranks.world_size))


def _made_up(plan: ChainContext, rows: int) -> BlockBuilder:
    """Draws of the right sizes, for some rows, from a generator of their own; all chains share them."""
    generator = torch.Generator().manual_seed(0)
    layout, paired = layout_of(plan), is_paired(plan.sampler)
    lengths = batch_lengths(plan.chains, paired=paired)
    record = ChainTrace(0, lengths, plan.traces)
    for _ in range(plan.chains.num_draws):
        train, columns = (torch.randn(size, generator=generator) for size in (rows, layout.columns))
        record.push(train, columns)
    record.seal()
    shape, chains = (rows, layout.columns, layout.queries), plan.chains
    # Draws of a known linear part need that of these rows, and take about as long as others.
    return BlockBuilder.of([record] * chains.num_chains, shape, chains.centring, ridge=chains.ridge, paired=paired)


def _seconds(call: Callable[[int], object], ranks: Ranks) -> float:
    """Mean time of a call, over at least two and about 0.05 s of them."""
    once = _clock(call, 1)
    calls = max(_LEAST_CALLS, int(_TIMED_SECONDS / max(once, 1e-9)))
    if ranks.lockstep:  # a call may wait for the other ranks: all must make as many
        calls = ranks.broadcast(calls)
    return _clock(call, calls)


def _clock(call: Callable[[int], object], calls: int) -> float:
    """Mean time of so many calls."""
    started = time.perf_counter()
    for index in range(1, calls + 1):
        call(index)
    return (time.perf_counter() - started) / calls
