"""Forecast of the time and memory of a snapshot, from short timings on the actual problem."""

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
from bif_lightning.estimation.matrix_cost import PieceSeconds, matrix_seconds, short_lengths
from bif_lightning.estimation.memory import extra_bytes, file_bytes, layout_of, matrix_threads
from bif_lightning.losses.problem import Problem
from bif_lightning.model.devices import now
from bif_lightning.sampling.choice import sampler_of
from bif_lightning.sampling.context import engine_context, ranks_of
from bif_lightning.sampling.covariances import DrawnCovariances, RowCovariances
from bif_lightning.sampling.sampler import ChainContext
from bif_lightning.sampling.trace import ChainTrace, batch_lengths
from bif_lightning.storage.scratch import MATRIX_BYTES, check_room

_LEAST_CALLS = 2
_TIMED_SECONDS = 0.05


@dataclass(frozen=True)
class Forecast:
    """Expected time and memory of one snapshot.

    Attributes:
        seconds: wall time without writing the dump.
        extra_bytes: memory on rank 0 in addition to the module and its data.
        workers: chains that run at a time on each rank.
        num_ranks: ranks that share the chains and the rows of the matrices.
        file_bytes: size of the temporary file of the matrices; 0 if they fit in memory.
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
    """Forecast the cost of a snapshot by timing a step, a measurement and a tile of the matrices. Collective.

    The chains of a rank take ceil(chains / workers) x (steps x step time + draws x measurement time); its share of the
    tiles comes in addition.

    Args:
        problem, settings, chains, store_traces: as for the snapshot.
        ranks: the ranks that share the work; None for those of the default process group.
        matrix_bytes, scratch: as in `estimate_problem`.

    Raises:
        OSError: the disk has no space for the matrices.
    """
    ranks = ranks or ranks_of(problem.module)
    with engine_context(problem, chains, ranks) as (backend, workers, threads):
        chosen = sampler_of(settings)
        preparing = chosen.seconds(problem, backend, workers, ranks)
        context = at_snapshot(problem, backend, chosen.unprepared(), chains, store_traces=store_traces)
        own = chains.num_chains if ranks.lockstep else -(-chains.num_chains // ranks.world_size)
        workers = min(workers, own)
        # Time as many chains at once as will run: threads slow each other down.
        timed = on_threads([partial(_time, context, ranks, chain) for chain in range(workers)], workers, threads)
        step, measurement = map(max, zip(*timed, strict=True))
        each = -(-own // workers) * (chains.thinning * step + measurement)
        sampling = -(-own // workers) * chains.burn_in * step + chains.num_draws * each
        in_file = file_bytes(context, matrix_bytes)
        if in_file:
            with ranks.collective("checking the disk space for the matrices"):
                check_room(in_file, scratch)
        seconds = preparing + sampling + _matrix_seconds(context, matrix_threads(workers), ranks)
        held = extra_bytes(context, workers, matrix_bytes)
        return Forecast(seconds, held, workers, ranks.world_size, in_file)


def _size(nbytes: int) -> str:
    """Format a size with a decimal unit: "17 kB", "1.6 GB"."""
    exponent = min(max((len(str(nbytes)) - 1) // 3, 1), 3)
    return f"{nbytes / 1000**exponent:.3g} {'kMG'[exponent - 1]}B"


def _time(context: ChainContext, ranks: Ranks, chain: int) -> tuple[float, float]:
    """Seconds of a step and of a measurement."""
    state = context.kernel.start(context, chain)
    move = partial(context.kernel.draw, state)
    move(0)  # the first call of every operation includes its set-up
    state.measure(0, 0)
    return _seconds(move, ranks), _seconds(lambda index: state.measure(index, index), ranks)


def _matrix_seconds(context: ChainContext, threads: int, ranks: Ranks) -> float:
    """Seconds of one rank's share of the tiles, from a few random draws."""
    layout, chains, paired = layout_of(context), context.chains, context.settings.paired
    lengths = short_lengths(batch_lengths(chains, paired=paired))
    builder = _random_builder(context, layout.tiles(slice(0, layout.train))[0].stop, lengths)

    def measure() -> PieceSeconds:
        builder.block(slice(0, builder.layout.train))  # the first call includes set-up
        return PieceSeconds.measure(builder, lambda call: _seconds(call, ranks))

    # One intra-op thread for each, as in `matrices.compute`.
    pieces = PieceSeconds.slowest(on_threads([measure] * threads, threads, 1))
    return matrix_seconds(layout, chains, sum(lengths), pieces, threads * ranks.world_size, paired=paired)


def _random_builder(context: ChainContext, rows: int, lengths: list[int]) -> BlockBuilder:
    """A builder with random draws for some rows, from a separate generator; all chains share the draws."""
    generator, layout = torch.Generator().manual_seed(0), layout_of(context)
    trace = ChainTrace(0, lengths, context.traces)
    for _ in range(sum(lengths)):
        train, columns = (torch.randn(size, generator=generator, device="cpu") for size in (rows, layout.columns))
        trace.push(train, columns)
    trace.seal()
    shape, chains = (rows, layout.columns, layout.queries), replace(context.chains, ridge=None)
    # Those in closed form would need gradients; from draws, they take about as long.
    covariances = DrawnCovariances.of([trace] * chains.num_chains, shape, chains)
    if layout.drawn_batches:
        covariances = _BesideDraws(covariances.traces, covariances.centring, covariances.errors, drawn=covariances)
    return BlockBuilder.of(covariances, shape)


class _BesideDraws(DrawnCovariances):
    """Stand in for a closed form that has the covariances of the draws beside it."""

    def rows(self, rows: slice) -> RowCovariances:
        return replace(super().rows(rows), drawn=super().rows(rows))


def _seconds(call: Callable[[int], object], ranks: Ranks) -> float:
    """Mean seconds of a call, from at least two calls and about 0.05 s."""
    once = _clock(call, 1)
    calls = max(_LEAST_CALLS, int(_TIMED_SECONDS / max(once, 1e-9)))
    if ranks.lockstep:  # a call may wait for the other ranks, so all must make the same number
        calls = ranks.broadcast(calls)
    return _clock(call, calls)


def _clock(call: Callable[[int], object], calls: int) -> float:
    """Mean seconds of a call over `calls` calls."""
    started = now()
    for index in range(1, calls + 1):
        call(index)
    return (now() - started) / calls
