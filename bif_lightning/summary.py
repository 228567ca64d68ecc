"""From what the chains left behind to an estimate: matrices, diagnostics, cost."""

from collections.abc import Sequence

import numpy as np
import torch

from bif_lightning.chain import Plan
from bif_lightning.diagnostics import drift, effective_sample_size, local_learning_coefficient, split_rhat
from bif_lightning.matrices import Labels, Matrices
from bif_lightning.recorder import Record, moment_bytes, trace_bytes
from bif_lightning.result import Cost, Diagnostics, Divergence, Estimate, Influence, Traces


def summarize(
    plan: Plan,
    records: Sequence[Record],
    divergences: Sequence[Divergence],
    labels: Labels | None,
    *,
    store_traces: bool,
    workers: int,
) -> Estimate:
    """Everything but the wall time, which the caller knows when all is done."""
    problem, layout = plan.problem, plan.host.layout
    counts = problem.column_counts
    matrices = Matrices(records, (problem.num_train, sum(counts), counts[0]), plan.chains.centring, labels)
    matrices.fill(workers)
    further = {o.name: part for o, part in zip(problem.observables, _further(plan, matrices), strict=True)}
    losses = torch.tensor([record.loss for record in records], dtype=torch.float64)
    return Estimate(
        losses=_influence("loss", "nat", None, matrices, slice(0, counts[0])),
        observables=further,
        train_mean=matrices.train_mean,
        train_std=matrices.train_std,
        snapshot_loss=plan.loss,
        chain_ids=tuple(record.chain for record in records),
        loss_trace=losses.numpy(),
        distance_trace=np.array([record.distance for record in records]),
        divergences=tuple(divergences),
        diagnostics=_diagnostics(plan, losses, matrices),
        cost=Cost(
            seconds=float("nan"),
            steps=plan.chains.num_chains * plan.chains.num_steps,
            workers=workers,
            extra_bytes=extra_bytes(plan, workers),
        ),
        sampler=plan.sampler,
        chains=plan.chains,
        parameters=layout.names,
        num_weights=layout.num_weights,
        label_means=matrices.label_means(),
        traces=_traces(plan, records) if store_traces else None,
        notes=_notes(plan, divergences),
    )


def extra_bytes(plan: Plan, workers: int) -> int:
    """Memory beyond the module and its activations: the snapshot; of each chain under way its weights, gradient and
    preconditioner, and the gradient of one parameter before it is added; the draws (traces, or moments); and the
    four float32 matrices."""
    item, layout = plan.host.center.element_size(), plan.host.layout
    largest = max(shape.numel() for shape in layout.shapes)
    vectors = 1 + workers * (2 + (2 if plan.sampler.preconditioner else 0))
    shape = plan.problem.num_train, sum(plan.problem.column_counts)
    draws = trace_bytes(plan.chains, *shape, item) if plan.traces else moment_bytes(plan.chains, *shape)
    return (vectors * layout.size + workers * largest) * item + draws + 4 * 4 * shape[0] * shape[1]


def _further(plan: Plan, matrices: Matrices) -> list[Influence]:
    counts = plan.problem.column_counts
    ends = np.cumsum(counts)
    return [
        _influence(o.name, o.unit, o.columns(counts[0]), matrices, slice(int(end - count), int(end)))
        for o, count, end in zip(plan.problem.observables, counts[1:], ends[1:], strict=True)
    ]


def _influence(name: str, unit: str, columns: tuple[str, ...] | None, matrices: Matrices, part: slice) -> Influence:
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
    )


def _diagnostics(plan: Plan, losses: torch.Tensor, matrices: Matrices) -> Diagnostics:
    llc, llc_standard_error = local_learning_coefficient(losses, plan.loss, plan.sampler)
    return Diagnostics(
        rhat=split_rhat(losses),
        ess=effective_sample_size(losses),
        llc=llc,
        llc_standard_error=llc_standard_error,
        drift=drift(losses),
        score_agreement=matrices.agreement(),
    )


def _traces(plan: Plan, records: Sequence[Record]) -> Traces:
    columns = torch.stack([record.columns[0] for record in records]).float()
    names = ["loss", *(o.name for o in plan.problem.observables)]
    parts = columns.split(list(plan.problem.column_counts), dim=2)
    return Traces(
        train=torch.stack([record.train[0] for record in records]).float().numpy(),
        columns={name: part.contiguous().numpy() for name, part in zip(names, parts, strict=True)},
    )


def _notes(plan: Plan, divergences: Sequence[Divergence]) -> tuple[str, ...]:
    notes = [divergence.message for divergence in divergences]
    if plan.stochastic:
        notes.append(
            "the model (in evaluation mode) or the training data draws random numbers; chains ran one after the "
            "other, with the same numbers at every draw"
        )
    elif not plan.host.twins:
        notes.append("chains ran one after the other: a second tree of this module does not reproduce it")
    return tuple(notes)
