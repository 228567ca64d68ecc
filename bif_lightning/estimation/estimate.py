"""Influence at the present weights of any module: `estimate`, and how its sampler is chosen."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

from torch import nn

from bif_lightning import config
from bif_lightning.calibration.find import found_settings
from bif_lightning.config import Chains, check_sampler
from bif_lightning.data.dataset import Collate, Examples, MapDataset, check_map_style
from bif_lightning.distributed.threads import Progress
from bif_lightning.estimation.estimator import estimate_problem
from bif_lightning.estimation.matrices import labels_of
from bif_lightning.losses.observables import LossFn, Observable, mean_of
from bif_lightning.losses.problem import Problem
from bif_lightning.losses.token_losses import zero_absent
from bif_lightning.results.estimate import Estimate
from bif_lightning.results.settings import ResolvedSettings
from bif_lightning.sampling.choice import default_settings, sampler_of
from bif_lightning.sampling.context import engine_context, ranks_of, to_device_of


def estimate(
    model: nn.Module,
    loss_fn: LossFn,
    train: MapDataset,
    query: MapDataset | None = None,
    *,
    sampler: config.Sampler | Literal["auto"] | None = None,
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
    resolved = resolve_sampler(problem, sampler, chains)
    result = estimate_problem(
        problem, resolved.sampler, resolved.chains, labels=labels, store_traces=store_traces, progress=progress
    )
    return with_reasons(cast(Estimate, result), resolved)  # since it is there on every rank


def resolve_sampler(
    problem: Problem,
    sampler: config.Sampler | Literal["auto"] | None,
    chains: Chains | None = None,
    earlier: ResolvedSettings | None = None,
    tick: Callable[[], None] = lambda: None,
) -> ResolvedSettings:
    """The settings of this snapshot. Collective.

    Args:
        sampler, chains: as given by the user.
        earlier: the settings that an earlier snapshot of the run found, which later ones keep; None before.
        tick: called after every step of a pilot; may raise to stop.

    Raises:
        ValueError: settings that cannot work at this snapshot (checked at the first one), or "auto" found none.
    """
    check_sampler(sampler)
    if sampler is None:
        sampler = default_settings(problem, chains)
    if sampler != "auto" and earlier is not None:
        return earlier
    ranks = ranks_of(problem.module)
    given = chains or (Chains() if sampler == "auto" else sampler_of(sampler).chains())
    with engine_context(problem, given, ranks) as (backend, _, _):
        with ranks.collective("choosing the settings of the sampler"):
            if sampler == "auto":
                resolved = found_settings(chains, earlier, problem, backend, tick)
            else:
                sampler_of(sampler).check(problem, backend, given)
                resolved = ResolvedSettings(sampler, given)
        return ranks.broadcast(resolved)


def with_reasons(result: Estimate, resolved: ResolvedSettings) -> Estimate:
    """The estimate, with a note of how its settings were found if they were, and for how long."""
    if not resolved.reasons:
        return result
    where = "at the first snapshot where they last" if resolved.lasting else "for this snapshot alone"
    notes = (*result.notes, f"settings found {where}: {resolved.reasons}")
    return replace(result, notes=notes, reasons=resolved.reasons, lasting=resolved.lasting)


def _examples(dataset: MapDataset | None, collate: Collate | None, name: str) -> Examples | None:
    if dataset is None:
        return None
    check_map_style(dataset, name)
    return Examples(dataset, collate)
