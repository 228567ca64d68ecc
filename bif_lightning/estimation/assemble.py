"""Assemble an estimate from matrices, diagnostics and notes. Nothing is measured here."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from bif_lightning.estimation.matrices import Matrices
from bif_lightning.results.estimate import Cost, Diagnostics, Divergence, Estimate, Influence, Traces
from bif_lightning.results.tokens import Tokens
from bif_lightning.sampling.bias import BiasMeasures
from bif_lightning.sampling.covariances import Correction
from bif_lightning.sampling.sampler import ChainContext
from bif_lightning.sampling.tokens import IN_SPAN
from bif_lightning.sampling.trace import ChainTrace
from bif_lightning.statistics.correction import MOST_PARTED, MOST_RESIDUAL
from bif_lightning.statistics.diagnostics import drift, effective_sample_size, local_learning_coefficient, split_rhat


def llc_of(context: ChainContext, traces: Sequence[ChainTrace]) -> tuple[float, float]:
    """Local learning coefficient of the chains, and its standard error, nats."""
    return local_learning_coefficient(_losses(traces), context.loss, context.settings)


def assemble(
    context: ChainContext,
    traces: Sequence[ChainTrace],
    divergences: Sequence[Divergence],
    matrices: Matrices,
    bias: BiasMeasures,
    tokens: Tokens | None,
    correction: Correction | None,
    cost: Cost,
    *,
    store_traces: bool,
) -> Estimate:
    """Assemble the estimate, without its verdict.

    Args:
        context: context of the chains.
        traces: traces of the chains that did not diverge, in their order.
        divergences: the diverged chains, which are left out.
        matrices: influence, correlation, and their errors.
        bias: measures of bias.
        tokens: influence of single tokens, with `per_token`; else None.
        correction: how much the chains add to a closed form, if there is one.
        cost: cost of the estimate.
        store_traces: keep every draw in the result.
    """
    problem, layout = context.problem, context.backend.layout
    counts = problem.column_counts
    further = {o.name: part for o, part in zip(problem.observables, _further(context, matrices), strict=True)}
    losses = _losses(traces)
    return Estimate(
        losses=_influence("loss", "nat", None, matrices, slice(0, counts[0])),
        observables=further,
        train_loss=matrices.train_mean,
        train_std=matrices.train_std,
        snapshot_loss=context.loss,
        chain_ids=tuple(trace.chain for trace in traces),
        loss_trace=losses.numpy(),
        distance_trace=np.array([trace.distance for trace in traces]),
        divergences=tuple(divergences),
        diagnostics=_diagnostics(context, losses, matrices, bias),
        cost=cost,
        sampler=context.settings,
        chains=context.chains,
        parameters=layout.names,
        num_weights=layout.num_weights,
        ridge=matrices.ridge,
        effective_dimension=context.kernel.effective_dimension,
        label_means=matrices.label_means(),
        traces=_traces(context, traces) if store_traces else None,
        notes=_notes(context, divergences, correction),
        top_stability=matrices.stability(),
        tokens=tokens,
        alpha=None if correction is None else correction.alpha,
        residual_share=None if correction is None else correction.residual_share,
    )


def _losses(traces: Sequence[ChainTrace]) -> torch.Tensor:
    return torch.tensor([trace.loss for trace in traces], dtype=torch.float64, device="cpu")


def _further(context: ChainContext, matrices: Matrices) -> list[Influence]:
    counts = context.problem.column_counts
    ends = np.cumsum(counts)
    return [
        _influence(o.name, o.unit, o.columns(counts[0]), matrices, slice(int(end - count), int(end)))
        for o, count, end in zip(context.problem.observables, counts[1:], ends[1:], strict=True)
    ]


def _influence(name: str, unit: str, columns: tuple[str, ...] | None, matrices: Matrices, part: slice) -> Influence:
    def of(matrix: np.ndarray | None) -> np.ndarray | None:
        return None if matrix is None else matrix[:, part]

    return Influence(
        name=name,
        unit=unit,
        columns=columns,
        influence=matrices.influence[:, part],
        influence_standard_error=matrices.influence_error[:, part],
        correlation=matrices.correlation[:, part],
        correlation_standard_error=matrices.correlation_error[:, part],
        mean=matrices.column_mean[part],
        std=matrices.column_std[part],
        conditioned=of(matrices.conditioned),
        conditioned_standard_error=of(matrices.conditioned_error),
        influence_draws=of(matrices.influence_draws),
        influence_draws_standard_error=of(matrices.influence_draws_error),
    )


def _diagnostics(context: ChainContext, losses: torch.Tensor, matrices: Matrices, bias: BiasMeasures) -> Diagnostics:
    of_ranks, of_groups = matrices.agreement()
    llc, llc_error = local_learning_coefficient(losses, context.loss, context.settings)
    # For independent draws, R-hat, ESS and drift have no meaning.
    independent = context.settings.paired
    return Diagnostics(
        rhat=math.nan if independent else split_rhat(losses),
        ess=math.nan if independent else effective_sample_size(losses),
        llc=llc,
        llc_standard_error=llc_error,
        drift=math.nan if independent else drift(losses),
        score_agreement=of_ranks,
        group_agreement=of_groups,
        noise_ratio=bias.noise_ratio,
        llc_ratio=bias.llc_ratio,
        control_agreement=bias.agreement(matrices.influence),
    )


def _traces(context: ChainContext, traces: Sequence[ChainTrace]) -> Traces:
    columns = torch.stack([trace.columns[0] for trace in traces]).float()
    names = ["loss", *(o.name for o in context.problem.observables)]
    parts = columns.split(list(context.problem.column_counts), dim=2)
    return Traces(
        train=torch.stack([trace.train[0] for trace in traces]).float().numpy(),
        columns={name: part.contiguous().numpy() for name, part in zip(names, parts, strict=True)},
    )


def _notes(context: ChainContext, divergences: Sequence[Divergence], correction: Correction | None) -> tuple[str, ...]:
    notes = [divergence.message for divergence in divergences]
    if correction is not None and math.isnan(correction.residual_share):
        notes.append("no chain is left: the influence is that of the quadratic approximation (alpha = 0)")
    if correction is not None and correction.alpha == 0 and correction.residual_share > MOST_RESIDUAL:
        share = correction.residual_share
        how = (
            f"{share:.0%} of its variance, as kinks of ReLUs and minibatches make them"
            if share <= MOST_PARTED
            else f"{share:.2g} times its variance, as where the loss curves down"
        )
        notes.append(
            f"the chains part from their quadratic approximation by {how}: the influence is that of the approximation "
            "(alpha = 0)"
        )
    if context.token_losses is not None and context.kernel.closed_form:
        notes.append(IN_SPAN)
    if context.stochastic:
        notes.append(
            "the model (in evaluation mode) or the training data draws random numbers; chains ran sequentially, with "
            "the same random numbers at every draw"
        )
    notes += context.problem.remarks.values()
    if written := context.problem.written:
        notes.append(
            f"the forward pass writes into {', '.join(written[:4])}, which are not sampled: each chain had copies of "
            "its own"
        )
    return tuple(notes)
