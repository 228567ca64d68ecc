"""Influence at the current weights of any module: `estimate`, and the choice of its sampler."""

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
from bif_lightning.losses.metric_states import keeping_metrics
from bif_lightning.losses.observables import LossFn, Observable, mean_of
from bif_lightning.losses.own_batches import OwnBatches, OwnBatchesOf
from bif_lightning.losses.problem import Problem
from bif_lightning.losses.token_losses import zero_absent
from bif_lightning.results.estimate import Estimate
from bif_lightning.results.settings import ResolvedSettings
from bif_lightning.sampling.checked_loss import check_loss_fn
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
    """Estimate the influence of every train example on every query, at the model's current weights w*.

    B[i, j] = −Cov(l_i, φ_j) under p(w) ∝ exp(−nβ·L(w) − (γ/2)·‖w − w*‖²), from draws around w* (arXiv 2509.26544,
    Sec. 3). The model is in evaluation mode during the call, and its weights are never changed.

    Args:
        model: any module with float32 or float64 parameters.
        loss_fn: (module, batch) -> Tensor[batch], or [batch, token], or (losses, mask) of that shape, where the mask is
            False for tokens without a loss. The loss of an example is the sum of its tokens' losses.
        train: the attribution set of n examples, the rows.
        query: the query set of q examples, the columns. None for train x train.
        sampler: `SGLD`, `ControlledSGLD`, `Pairs` or `Subspace`, with settings; "auto" is SGLD with measured settings
            (`calibration.find`); None is `ControlledSGLD`, or "auto" for single tokens and sharded modules.
        chains: number and length of chains, minibatch size, seed; None for the sampler's default.
        training_data: data for the gradient minibatches; None for `train`.
        observables: functions of the query set to measure in addition to the losses.
        params: name patterns of the parameters to sample (shell style); None for all trainable ones.
        collate_fn: makes a batch of a list of examples; by default torch's.
        eval_batch_size: batch size for measuring losses.
        train_labels, query_labels: class index of each example (−1 for none), for means over pairs of labels.
        store_traces: keep every draw in the result.
        per_token: also compute the influence of every train token on every query token (`Estimate.tokens`); loss_fn
            must return token losses. With sampler=None this uses SGLD, since `Subspace` covers only the part of token
            influence within its span.
        check_gradient: refuse a loss whose gradient differs from finite differences (a straight-through estimator, a
            stopped gradient), since its chains would not sample from the posterior.
        progress: called with (steps done, total steps).

    Returns:
        Matrices of shape (n, q) with standard errors, chain diagnostics, and the cost.

    Raises:
        ValueError: invalid input, a loss_fn that does not return the loss of each example
            (`exceptions.LossRefusedError`), or losses that are not finite at the snapshot; the message says what to
            change.
        ChainsDivergedError: too few chains stayed in the posterior.

    Under torch.distributed, every rank must call this with the same arguments, and gets the same result.

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
    loss_fn = keeping_metrics(OwnBatches(loss_fn), model)
    train_examples, losses = Examples(train, collate_fn), zero_absent(loss_fn)
    problem = Problem(
        module=model,
        loss=losses,
        objective=lambda module, batch: mean_of(losses(module, batch)),
        train=train_examples,
        query=_examples(query, collate_fn, "query") or train_examples,
        training=_examples(training_data, collate_fn, "training_data") or train_examples,
        prepare=to_device_of(model),
        observables=tuple(map(OwnBatchesOf, observables)),
        params=[params] if isinstance(params, str) else params,
        eval_batch_size=eval_batch_size,
        check_gradient=check_gradient,
        tokens=loss_fn if per_token else None,
    )
    labels = labels_of(train_labels, query_labels, len(problem.train), len(problem.query))
    check_loss_fn(problem)
    resolved = resolve_sampler(problem, sampler, chains)
    result = estimate_problem(
        problem, resolved.sampler, resolved.chains, labels=labels, store_traces=store_traces, progress=progress
    )
    return with_reasons(cast(Estimate, result), resolved)  # every rank has a result


def resolve_sampler(
    problem: Problem,
    sampler: config.Sampler | Literal["auto"] | None,
    chains: Chains | None = None,
    earlier: ResolvedSettings | None = None,
    tick: Callable[[], None] = lambda: None,
) -> ResolvedSettings:
    """Resolve the settings of a snapshot. Collective.

    Args:
        sampler, chains: as given by the user.
        earlier: settings that an earlier snapshot of the run found, and which are kept; None if there are none yet.
        tick: called after every step of a pilot; may raise to stop.

    Raises:
        ValueError: the settings do not work at this snapshot (checked at the first one), or "auto" found none.
    """
    check_sampler(sampler)
    if sampler is None:
        sampler = default_settings(problem)
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
    """Add a note to the estimate on how its settings were found, if they were, and whether they are kept."""
    if not resolved.reasons:
        return result
    where = "at the first snapshot with lasting settings" if resolved.lasting else "for this snapshot only"
    notes = (*result.notes, f"settings found {where}: {resolved.reasons}")
    return replace(result, notes=notes, reasons=resolved.reasons, lasting=resolved.lasting)


def _examples(dataset: MapDataset | None, collate: Collate | None, name: str) -> Examples | None:
    if dataset is None:
        return None
    check_map_style(dataset, name)
    return Examples(dataset, collate)
