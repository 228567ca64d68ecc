"""Bayesian influence at one snapshot. Read this file first: it is the whole flow.

snapshot -> chains -> draws -> moments -> influence
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn

from bif_lightning.calibration.find import resolve_settings
from bif_lightning.config import Chains, Pairs, Sampler, Subspace, check_sampler, check_together
from bif_lightning.curvature.laplace import PreparedSampler, default_sampler, prepare, steps_of
from bif_lightning.data.dataset import Collate, Examples, MapDataset, check_map_style
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.distributed.threads import Progress, offset_progress
from bif_lightning.estimation.assemble import summarize
from bif_lightning.estimation.matrices import Labels, labels_of
from bif_lightning.estimation.tokens import store_for
from bif_lightning.exceptions import ChainsDivergedError
from bif_lightning.losses.observables import LossFn, Observable, mean_of
from bif_lightning.losses.problem import Problem
from bif_lightning.losses.token_losses import zero_absent
from bif_lightning.model.weights import WeightBackend
from bif_lightning.results.estimate import Divergence, Estimate
from bif_lightning.results.settings import ResolvedSettings
from bif_lightning.rng import GLOBAL, seed_global, stream_seed
from bif_lightning.sampling.chain import ChainContext
from bif_lightning.sampling.context import engine_context, ranks_of, to_device_of
from bif_lightning.sampling.run import run_chains
from bif_lightning.sampling.trace import ChainTrace, keeps_traces

CHECKING_DRAWS = 8
"""Draws a chain of `Subspace`, where none are asked for: they check the closed form, and the matrices do without."""


def estimate(
    model: nn.Module,
    loss_fn: LossFn,
    train: MapDataset,
    query: MapDataset | None = None,
    *,
    sampler: Sampler | Literal["auto"] | None = None,
    chains: Chains | None = None,
    training_data: MapDataset | None = None,
    observables: Sequence[Observable] = (),
    params: str | Sequence[str] | None = None,
    collate_fn: Collate | None = None,
    eval_batch_size: int = 256,
    train_labels: Any = None,
    query_labels: Any = None,
    store_traces: bool = False,
    per_token: bool = False,
    check_gradient: bool = True,
    progress: Progress | None = None,
) -> Estimate:
    """Influence of every train example on every query, at the model's present weights.

    B[i, j] = −Cov(l_i, φ_j) under p(w) ∝ exp(−nβ·L(w) − (γ/2)·‖w − w*‖²), by SGLD chains that start at w*
    (arXiv 2509.26544, Sec. 3). The model is not written to; it is put in evaluation mode meanwhile.

    Args:
        model: any module with float32 or float64 parameters.
        loss_fn: (module, batch) -> Tensor[batch], or [batch, token], or (losses, mask) of that shape, where the mask is
            False for tokens that have no loss. An example's loss is the sum of its tokens'.
        train: the attribution set, n examples: rows.
        query: the query set, q examples: columns. None for train x train.
        sampler: how to draw: `SGLD`, `Pairs` or `Subspace`, with their settings; "auto" is SGLD with settings found by
            measurement (`calibration.find`); None takes `Subspace` where the gradients of all examples fit
            into memory and no chains are given, else "auto".
        chains: number and length of chains, minibatch size, seed; None for those that fit the sampler.
        training_data: where gradient minibatches come from; None for `train`.
        observables: of the query set, beside the losses.
        params: name patterns of the parameters to sample (shell style); None for all trainable ones.
        collate_fn: makes a batch of a list of examples; the default is torch's.
        eval_batch_size: examples in a batch where losses are measured.
        train_labels, query_labels: class index of each example (−1 for none), for block means over labels.
        store_traces: keep every draw in the result.
        per_token: also influence of every train token on every query token (`Estimate.tokens`); loss_fn has to return
            the losses of tokens. With sampler=None this takes SGLD, whose draws know of every token all that they
            know of its sequence.
        check_gradient: refuse a loss whose gradient is not that of finite differences (a straight-through estimator, a
            stopped gradient), whose chains sample from no posterior.
        progress: called with (steps done, steps in all).

    Returns:
        Matrices of shape (n, q) with standard errors, chain diagnostics, and the cost.

    Raises:
        ValueError: bad input, with what to change; among them losses that are not finite at the snapshot.
        ChainsDivergedError: no chain stayed in the posterior.

    Under torch.distributed every rank calls this with the same arguments and gets the same result.

    >>> import torch
    >>> from bif_lightning import SGLD, Chains, estimate
    >>> def loss_fn(module, batch):
    ...     x, y = batch
    ...     return (module(x)[:, 0] - y) ** 2 / 2
    >>> train = [(torch.eye(3)[i % 3], float(i)) for i in range(6)]
    >>> sampler = SGLD(step_size=1e-2, inverse_temperature=10.0, localization=1.0)
    >>> model, chains = torch.nn.Linear(3, 1), Chains(num_draws=20)
    >>> result = estimate(model, loss_fn, train, train[:2], sampler=sampler, chains=chains)
    >>> result.influence.shape, bool(result.correlation[0, 0] > 0.99)  # an example helps itself
    ((6, 2), True)
    """
    check_map_style(train, "train")
    train_examples, losses = Examples(train, collate_fn), zero_absent(loss_fn)
    problem = Problem(
        module=model,
        loss=losses,
        objective=lambda module, batch: mean_of(losses(module, batch)),
        train=train_examples,
        query=_examples(query, collate_fn, "query") or train_examples,
        training=_examples(training_data, collate_fn, "training_data") or train_examples,
        prepare=to_device_of(model),
        observables=tuple(observables),
        params=[params] if isinstance(params, str) else params,
        eval_batch_size=eval_batch_size,
        check_gradient=check_gradient,
        tokens=loss_fn if per_token else None,
    )
    labels = labels_of(train_labels, query_labels, len(problem.train), len(problem.query))
    settled = resolve_sampler(problem, "auto" if per_token and sampler is None else sampler, chains)
    result = estimate_problem(
        problem, settled.sampler, settled.chains, labels=labels, store_traces=store_traces, progress=progress
    )
    return with_reasons(cast(Estimate, result), settled)  # since it is there on every rank


def with_reasons(result: Estimate, settled: ResolvedSettings) -> Estimate:
    """The estimate, with a note of how its settings were found if they were, and for how long."""
    if not settled.reasons:
        return result
    where = "at the first snapshot where they last" if settled.lasting else "for this snapshot alone"
    notes = (*result.notes, f"settings found {where}: {settled.reasons}")
    return replace(result, notes=notes, reasons=settled.reasons, lasting=settled.lasting)


def resolve_sampler(
    problem: Problem,
    sampler: Sampler | Literal["auto"] | None,
    chains: Chains | None = None,
    settled: ResolvedSettings | None = None,
    tick: Callable[[], None] = lambda: None,
) -> ResolvedSettings:
    """The settings of this snapshot, given those of the run's first (see `calibration.find`). Collective.

    Args:
        tick: called after every step of a pilot; may raise to stop.
    """
    check_sampler(sampler)
    if sampler is None:
        sampler = default_sampler(problem, chains)
    if isinstance(sampler, Pairs):
        return settled or ResolvedSettings(sampler, chains or Chains())
    if isinstance(sampler, Subspace):
        return settled or ResolvedSettings(sampler, chains or Chains(num_draws=CHECKING_DRAWS))
    ranks = ranks_of(problem.module)
    with engine_context(problem, chains or Chains(), ranks) as (backend, _, _):
        with ranks.collective("settling the sampler"):
            found = resolve_settings(sampler, chains, settled, problem, backend, tick)
        return ranks.broadcast(found)


def estimate_problem(
    problem: Problem,
    sampler: Sampler,
    chains: Chains,
    *,
    snapshot: int = 0,
    labels: Labels | None = None,
    store_traces: bool = False,
    ranks: Ranks | None = None,
    everywhere: bool = True,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Estimate | None:
    """`estimate` for a problem that serves several snapshots. Collective.

    Args:
        snapshot: keys this snapshot's random numbers.
        ranks: the ranks that share the work; None for those of the default process group.
        everywhere: every rank gets the result; else rank 0 alone does, and the others get None.
        scratch: folder for matrices that are too large for memory; None for the default of `tempfile`.
    """
    started = time.perf_counter()
    ranks = ranks or ranks_of(problem.module)
    with engine_context(problem, chains, ranks) as (backend, workers, threads):
        mine = ranks.mine(chains.num_chains)
        looking, sampling = steps_of(problem, sampler, ranks), len(mine) * chains.num_steps
        surroundings = prepare(problem, backend, sampler, workers, ranks, offset_progress(progress, after=sampling))
        with ranks.collective("running the chains") as meeting:
            plan = plan_chains(
                problem,
                backend,
                surroundings.settled(sampler),
                chains,
                surroundings,
                snapshot=snapshot,
                store_traces=store_traces,
            )
            plan = replace(plan, tokens=store_for(plan, mine, scratch))
            beat = meeting.watched(offset_progress(progress, before=looking))
            outcomes = run_chains(plan, mine, workers, threads, beat)
        outcomes = ranks.gather_chains(outcomes)
        records = [outcome for outcome in outcomes if isinstance(outcome, ChainTrace)]
        divergences = [outcome for outcome in outcomes if isinstance(outcome, Divergence)]
        if len(records) * chains.num_draws < 2:  # none, or with pooled centring one draw of one chain
            raise ChainsDivergedError(_all_diverged(divergences))
        result = summarize(
            plan,
            records,
            divergences,
            labels,
            store_traces=store_traces,
            workers=workers,
            ranks=ranks,
            everywhere=everywhere,
            scratch=scratch,
        )
    if result is None:
        return None
    return replace(result, cost=replace(result.cost, seconds=time.perf_counter() - started))


def plan_chains(
    problem: Problem,
    backend: WeightBackend,
    sampler: Sampler,
    chains: Chains,
    surroundings: PreparedSampler = PreparedSampler(),  # noqa: B008 - it is frozen
    *,
    snapshot: int = 0,
    store_traces: bool,
) -> ChainContext:
    """Measure the losses at the snapshot, and settle how draws are kept.

    Raises:
        ValueError: a loss is not finite at the snapshot; traces are asked for and refused at once; the sampler cannot
            run these chains.
    """
    check_together(sampler, chains)
    if store_traces and chains.storage == "moments":
        raise ValueError("store_traces=True keeps every draw, Chains(storage='moments') keeps none; change one")
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
        sampler=sampler,
        chains=chains,
        snapshot=0 if chains.common_random_numbers else snapshot,
        loss=float(train.double().mean()),
        traces=store_traces or keeps_traces(chains, len(train), len(columns), item),
        tick=lambda: None,
        stochastic=problem.stochastic,
        directions=surroundings.directions,
        linear=surroundings.linear,
        token_losses=tokens,
    )


def _check_finite(values: Tensor, what: str) -> None:
    bad = (~values.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{what}: {len(bad)} of {len(values)} are not finite at the snapshot, first at positions {bad[:5]} "
            f"({float(values[bad[0]])}); remove those examples, or look at the loss there"
        )


def _all_diverged(divergences: Sequence[Divergence]) -> str:
    return f"{len(divergences)} chains diverged, too few are left for a matrix. The first: {divergences[0].message}"


def _examples(dataset: MapDataset | None, collate: Collate | None, name: str) -> Examples | None:
    if dataset is None:
        return None
    check_map_style(dataset, name)
    return Examples(dataset, collate)
