"""Bayesian influence at one snapshot. Read this file first: it contains the whole flow, for every sampler.

snapshot -> sampler.prepare -> chains -> draws -> covariances -> matrices -> estimate -> verdict
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from bif_lightning import config
from bif_lightning.config import Chains, check_together
from bif_lightning.curvature.example_weights import note_divided
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.distributed.threads import Progress, offset_progress
from bif_lightning.estimation.assemble import assemble, llc_of
from bif_lightning.estimation.blocks import BlockBuilder
from bif_lightning.estimation.matrices import Labels, compute
from bif_lightning.estimation.memory import extra_bytes, matrix_threads
from bif_lightning.exceptions import ChainsDivergedError
from bif_lightning.losses.problem import Problem
from bif_lightning.model.weights import WeightBackend
from bif_lightning.results.estimate import Cost, Divergence, Estimate
from bif_lightning.rng import GLOBAL, seed_global, stream_seed
from bif_lightning.sampling.bias import measure_bias
from bif_lightning.sampling.chain import trace_at_snapshot
from bif_lightning.sampling.choice import judge, sampler_of
from bif_lightning.sampling.context import engine_context, ranks_of
from bif_lightning.sampling.run import run_chains
from bif_lightning.sampling.sampler import ChainContext, Kernel
from bif_lightning.sampling.trace import ChainTrace, keeps_traces
from bif_lightning.storage.scratch import MATRIX_BYTES


def estimate_problem(
    problem: Problem,
    settings: config.Sampler,
    chains: Chains,
    *,
    snapshot: int = 0,
    labels: Labels | None = None,
    store_traces: bool = False,
    ranks: Ranks | None = None,
    everywhere: bool = True,
    matrix_bytes: int = MATRIX_BYTES,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Estimate | None:
    """Estimate influence at the current weights of a problem. Collective.

    Args:
        problem: module, data and losses; it can be used for several snapshots.
        settings, chains: resolved settings of the sampler and its chains.
        snapshot: number that keys the random numbers of this snapshot.
        labels: class index of each example, for means over pairs of labels.
        store_traces: keep every draw in the result.
        ranks: the ranks that share the work; None for those of the default process group.
        everywhere: return the result on every rank; otherwise on rank 0, and None on the others.
        matrix_bytes: bytes that the matrices may take in memory; larger ones go to a temporary file.
        scratch: folder of that file; None for the default of `tempfile`.
        progress: called with (steps done, total steps).

    Raises:
        ValueError: the sampler cannot run these chains, or a loss is not finite at the snapshot.
        ChainsDivergedError: too few chains stayed in the posterior.
        OSError: the disk has no space for a temporary file, or failed.
        PeerFailedError: another rank failed.
    """
    started = time.perf_counter()
    ranks = ranks or ranks_of(problem.module)
    sampler, mine = sampler_of(settings), ranks.mine(chains.num_chains)
    preparing, sampling = sampler.preparation(problem, ranks), len(mine) * chains.num_steps
    with engine_context(problem, chains, ranks) as (backend, workers, threads):
        # Compute gradients, curvature and pull at the snapshot.
        before = offset_progress(progress, after=sampling)
        prepared = sampler.prepare(problem, backend, workers, ranks, before)

        # Run the chains, and measure the losses at their draws.
        with ranks.collective("running the chains") as section:
            note_divided(problem, backend)
            context = at_snapshot(problem, backend, prepared, chains, snapshot=snapshot, store_traces=store_traces)
            context = replace(context, tokens=prepared.token_store(context, mine, scratch))
            during = section.watched(offset_progress(progress, before=preparing))
            outcomes = run_chains(context, mine, workers, threads, during)
        traces, divergences = _without_diverged(context, ranks.gather_chains(outcomes))

        # Compute covariances of train losses and columns, and from them the matrices, block by block.
        counts = problem.column_counts
        shape = problem.num_train, sum(counts), counts[0]
        builder = BlockBuilder.of(prepared.covariances(traces, shape, chains), shape, labels)
        bias = measure_bias(prepared, context, llc_of(context, traces)[0], builder.layout.scored, workers, ranks)
        matrices = compute(
            builder, matrix_threads(workers), ranks, everywhere=everywhere, matrix_bytes=matrix_bytes, scratch=scratch
        )
        tokens = prepared.tokens(context, traces, ranks, everywhere, scratch)
        if matrices is None:
            return None

        # Assemble the estimate; its sampler then judges it.
        steps, held = chains.num_chains * chains.num_steps, extra_bytes(context, workers, matrix_bytes)
        cost = Cost(seconds=time.perf_counter() - started, steps=steps, workers=workers, extra_bytes=held)
        correction = builder.covariances.correction
        estimate = assemble(
            context, traces, divergences, matrices, bias, tokens, correction, cost, store_traces=store_traces
        )
    return replace(estimate, verdict=judge(estimate))


def at_snapshot(
    problem: Problem,
    backend: WeightBackend,
    kernel: Kernel,
    chains: Chains,
    *,
    snapshot: int = 0,
    store_traces: bool = False,
) -> ChainContext:
    """Measure the losses at the snapshot, and decide whether draws are kept as traces or moments.

    Raises:
        ValueError: a loss is not finite at the snapshot, `store_traces` contradicts the storage of the chains, or the
            sampler cannot run these chains.
    """
    check_together(kernel.sampler.settings, chains)
    if store_traces and chains.storage == "moments":
        raise ValueError("store_traces=True keeps every draw, but Chains(storage='moments') keeps none; change one")
    if problem.stochastic:
        seed_global(backend.device, stream_seed(chains.seed, GLOBAL))
    bound, tokens = backend.bind(backend.weights(tracked=False)), None
    if problem.tokens is None:
        train, columns = problem.measure(bound)
    else:
        train, columns, tokens = problem.measure_tokens(bound)
    _check_finite(train, "train losses")
    _check_finite(columns, "query losses and observables")
    item = backend.center.element_size()
    return ChainContext(
        problem=problem,
        backend=backend,
        kernel=kernel,
        chains=chains,
        snapshot=0 if chains.common_random_numbers else snapshot,
        loss=float(train.double().mean()),
        traces=store_traces or keeps_traces(chains, len(train), len(columns), item),
        tick=lambda: None,
        stochastic=problem.stochastic,
        token_losses=tokens,
    )


def _without_diverged(
    context: ChainContext, outcomes: Sequence[ChainTrace | Divergence]
) -> tuple[list[ChainTrace], list[Divergence]]:
    """Separate the traces of chains from the divergences.

    Raises:
        ChainsDivergedError: fewer than two draws are left, and there is no closed form that does without them.
    """
    traces = [outcome for outcome in outcomes if isinstance(outcome, ChainTrace)]
    divergences = [outcome for outcome in outcomes if isinstance(outcome, Divergence)]
    if not traces and context.kernel.closed_form:
        return [trace_at_snapshot(context)], divergences
    if len(traces) * context.chains.num_draws < 2:
        raise ChainsDivergedError(
            f"{len(divergences)} chains diverged, and too few draws are left for a matrix. The first divergence: "
            f"{divergences[0].message}"
        )
    return traces, divergences


def _check_finite(values: Tensor, what: str) -> None:
    bad = (~values.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{what}: {len(bad)} of {len(values)} are not finite at the snapshot, first at positions {bad[:5]} "
            f"({float(values[bad[0]])}); remove those examples, or check their losses"
        )
