"""What a snapshot will take, before the first one is made: measured on the real problem, not guessed."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from bif_lightning import config
from bif_lightning.config import Chains
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.distributed.threads import on_threads
from bif_lightning.estimation.blocks import BlockBuilder
from bif_lightning.estimation.estimator import at_snapshot
from bif_lightning.estimation.matrix_cost import PieceSeconds, made_up_lengths, matrix_seconds
from bif_lightning.estimation.memory import extra_bytes, file_bytes, layout_of, matrix_threads
from bif_lightning.losses.problem import Problem
from bif_lightning.sampling.choice import sampler_of
from bif_lightning.sampling.context import engine_context, ranks_of
from bif_lightning.sampling.covariances import DrawnCovariances
from bif_lightning.sampling.sampler import ChainContext
from bif_lightning.sampling.trace import ChainTrace, batch_lengths
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
    settings: config.Sampler,
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
        problem, settings, chains, store_traces: as of the snapshot.
        ranks: the ranks that share the work; None for those of the default process group.
        matrix_bytes, scratch: as of `estimate_problem`.

    Raises:
        OSError: the disk has no room for the matrices.
    """
    ranks = ranks or ranks_of(problem.module)
    with engine_context(problem, chains, ranks) as (backend, workers, threads):
        chosen = sampler_of(settings)
        preparing = chosen.seconds(problem, backend, workers, ranks)
        context = at_snapshot(problem, backend, chosen.unprepared(), chains, store_traces=store_traces)
        own = chains.num_chains if ranks.lockstep else -(-chains.num_chains // ranks.world_size)
        workers = min(workers, own)
        # As many at once as there will be: chains on threads slow each other down.
        timed = on_threads([partial(_time, context, ranks, chain) for chain in range(workers)], workers, threads)
        step, measurement = map(max, zip(*timed, strict=True))
        each = -(-own // workers) * (chains.thinning * step + measurement)
        sampling = -(-own // workers) * chains.burn_in * step + chains.num_draws * each
        in_file = file_bytes(context, matrix_bytes)
        if in_file:
            with ranks.collective("the room for the matrices"):
                check_room(in_file, scratch)
        seconds = preparing + sampling + _matrix_seconds(context, matrix_threads(workers), ranks)
        held = extra_bytes(context, workers, matrix_bytes)
        return Forecast(seconds, held, workers, ranks.world_size, in_file)


def _size(nbytes: int) -> str:
    """In the largest unit of which there is one: "17 kB", "1.6 GB"."""
    exponent = min(max((len(str(nbytes)) - 1) // 3, 1), 3)
    return f"{nbytes / 1000**exponent:.3g} {'kMG'[exponent - 1]}B"


def _time(context: ChainContext, ranks: Ranks, chain: int) -> tuple[float, float]:
    """Seconds of a step and of a measurement."""
    state = context.kernel.start(context, chain)
    move = partial(context.kernel.draw, state)
    move(0)  # the first call of every operation pays for its set-up
    state.measure(0, 0)
    return _seconds(move, ranks), _seconds(lambda index: state.measure(index, index), ranks)


def _matrix_seconds(context: ChainContext, threads: int, ranks: Ranks) -> float:
    """Of one rank's share of the tiles, from a few made-up draws."""
    layout, chains, paired = layout_of(context), context.chains, context.settings.paired
    lengths = made_up_lengths(batch_lengths(chains, paired=paired))
    maker = _made_up(context, layout.tiles(slice(0, layout.train))[0].stop, lengths)

    def measure() -> PieceSeconds:
        maker.block(slice(0, maker.layout.train))  # the first call pays for set-up
        return PieceSeconds.measure(maker, lambda call: _seconds(call, ranks))

    # One intra-op thread each, as in `matrices.compute`.
    pieces = PieceSeconds.slowest(on_threads([measure] * threads, threads, 1))
    return matrix_seconds(layout, chains, sum(lengths), pieces, threads * ranks.world_size, paired=paired)


def _made_up(context: ChainContext, rows: int, lengths: list[int]) -> BlockBuilder:
    """Draws for some rows, from a separate generator; all chains share them."""
    generator, layout = torch.Generator().manual_seed(0), layout_of(context)
    record = ChainTrace(0, lengths, context.traces)
    for _ in range(sum(lengths)):
        train, columns = (torch.randn(size, generator=generator) for size in (rows, layout.columns))
        record.push(train, columns)
    record.seal()
    shape, chains = (rows, layout.columns, layout.queries), replace(context.chains, ridge=None)
    # Draws of a known linear part need that of these rows, and take about as long as others.
    return BlockBuilder.of(DrawnCovariances.of([record] * chains.num_chains, shape, chains), shape)


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
