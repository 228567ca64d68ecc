"""From what the chains left behind to an estimate: matrices, diagnostics, cost."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bif_lightning.config import SGLD, Sampler, Subspace
from bif_lightning.curvature.kronecker import metric_bytes
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.estimation.blocks import BlockBuilder, MatrixShape
from bif_lightning.estimation.matrices import ROUND_BYTES, Labels, Matrices, compute, specs
from bif_lightning.estimation.tokens import IN_SPAN, tokens_of
from bif_lightning.model.weights import FlatLayout as WeightsLayout
from bif_lightning.results.estimate import Cost, Diagnostics, Divergence, Estimate, Influence, Traces
from bif_lightning.results.token_matrices import MOST_BYTES
from bif_lightning.sampling.bias import BiasMeasures, check, vectors_held
from bif_lightning.sampling.chain import ChainContext
from bif_lightning.sampling.token_trace import token_bytes
from bif_lightning.sampling.trace import ChainTrace, batch_lengths, is_paired, moment_bytes, trace_bytes
from bif_lightning.statistics.diagnostics import drift, effective_sample_size, local_learning_coefficient, split_rhat
from bif_lightning.storage.scratch import MATRIX_BYTES


def summarize(
    plan: ChainContext,
    records: Sequence[ChainTrace],
    divergences: Sequence[Divergence],
    labels: Labels | None,
    *,
    store_traces: bool,
    workers: int,
    ranks: Ranks | None = None,
    everywhere: bool = True,
    matrix_bytes: int = MATRIX_BYTES,
    scratch: Path | None = None,
) -> Estimate | None:
    """Everything but the wall time, which the caller knows when all is done. Collective.

    Args:
        plan: of the chains.
        records: what each chain left behind, in their order; the same on every rank.
        divergences: the chains that are left out.
        labels: class index of each example, for means over labels.
        store_traces: keep every draw in the result.
        workers: chains that this rank ran at once.
        ranks: the ranks that share the rows; None for this process alone.
        everywhere: every rank gets the estimate; else rank 0 alone does, and the others get None.
        matrix_bytes: what the matrices may take in memory; beyond, they lie in a temporary file.
        scratch: folder of that file; None for the default of `tempfile`.

    Raises:
        OSError: there is no room for the temporary file, or the disk failed.
        PeerFailedError: another rank failed.
    """
    problem, layout = plan.problem, plan.backend.layout
    counts = problem.column_counts
    maker = BlockBuilder.of(
        records,
        (problem.num_train, sum(counts), counts[0]),
        plan.chains.centring,
        labels,
        ridge=plan.chains.ridge,
        paired=is_paired(plan.sampler),
        linear=plan.linear,
    )
    ranks = ranks or Ranks()
    losses = torch.tensor([record.loss for record in records], dtype=torch.float64)
    llc = local_learning_coefficient(losses, plan.loss, plan.sampler)
    checks = check(plan, llc[0], maker.layout.scored, workers, ranks)
    matrices = compute(
        maker,
        matrix_threads(workers),
        ranks,
        everywhere=everywhere,
        matrix_bytes=matrix_bytes,
        scratch=scratch,
    )
    tokens = tokens_of(plan, records, ranks, everywhere=everywhere, scratch=scratch)
    if matrices is None:
        return None
    further = {o.name: part for o, part in zip(problem.observables, _further(plan, matrices), strict=True)}
    return Estimate(
        losses=_influence("loss", "nat", None, matrices, slice(0, counts[0])),
        observables=further,
        train_loss=matrices.train_mean,
        train_std=matrices.train_std,
        snapshot_loss=plan.loss,
        chain_ids=tuple(record.chain for record in records),
        loss_trace=losses.numpy(),
        distance_trace=np.array([record.distance for record in records]),
        divergences=tuple(divergences),
        diagnostics=_diagnostics(losses, llc, matrices, checks),
        cost=Cost(
            seconds=float("nan"),
            steps=plan.chains.num_chains * plan.chains.num_steps,
            workers=workers,
            extra_bytes=extra_bytes(plan, workers, matrix_bytes),
        ),
        sampler=plan.sampler,
        chains=plan.chains,
        parameters=layout.names,
        num_weights=layout.num_weights,
        ridge=None if maker.conditioner is None else maker.conditioner.ridge,
        effective_dimension=None if plan.linear is None else plan.linear.normal.effective_dimension,
        label_means=matrices.label_means(),
        traces=_traces(plan, records) if store_traces else None,
        notes=_notes(plan, divergences),
        top_stability=matrices.stability(),
        tokens=tokens,
    )


def extra_bytes(plan: ChainContext, workers: int, matrix_bytes: int = MATRIX_BYTES) -> int:
    """Memory beyond the module and its activations, of a rank that keeps the matrices: the snapshot; of each chain
    under way its weights, gradient and preconditioner, and the gradient of one parameter before it is added; the
    draws of all chains (traces, or moments), and those of tokens; the matrices, unless they lie in a file; and the
    blocks of them that are under way. The measures of bias, when no chain runs any more, may take the place of the
    chains' vectors."""
    item, layout = plan.backend.center.element_size(), plan.backend.layout
    largest = max(shape.numel() for shape in layout.shapes)
    vectors = 1 + max(workers * (2 + (2 if _is_preconditioned(plan.sampler) else 0)), vectors_held(plan))
    held = [] if plan.linear is None else plan.linear.held()
    held += [] if plan.directions is None else [plan.directions]
    shape = plan.problem.num_train, sum(plan.problem.column_counts)
    draws = trace_bytes(plan.chains, *shape, item) if plan.traces else moment_bytes(plan.chains, *shape)
    stored = stored_bytes(plan)
    matrices = stored - file_bytes(plan, matrix_bytes) + min(2 * ROUND_BYTES, stored)
    gradients = sum(each.nbytes for each in {id(each): each for each in held}.values())
    if not held and isinstance(plan.sampler, Subspace):  # before they are there
        others = 0 if plan.problem.query is plan.problem.train else shape[1]
        gradients = (shape[0] + others + 2 * min(plan.sampler.num_directions, shape[0])) * layout.size * item
        gradients += metric_bytes(layout.places, item) if plan.sampler.metric == "kronecker" else 0
    tokens = 0
    if plan.token_losses is not None and not held:
        tokens = min(token_bytes(*plan.token_losses, plan.chains.num_chains, plan.chains.num_draws), MOST_BYTES)
    weights = (vectors * layout.size + workers * largest) * item + rounded_bytes(layout, plan.sampler, workers)
    return weights + draws + matrices + gradients + tokens


def rounded_bytes(layout: WeightsLayout, sampler: Sampler, workers: int) -> int:
    """Memory of what chains under way, and their anchors at the snapshot, hold in the precision of a module that
    computes in less: weights to compute with, and their gradient."""
    held = sum(
        shape.numel() * dtype.itemsize
        for shape, dtype in zip(layout.shapes, layout.dtypes, strict=True)
        if dtype != layout.dtype
    )
    anchored = isinstance(sampler, SGLD) and sampler.gradient == "control_variate"
    return 2 * held * workers * (2 if anchored else 1)


def _is_preconditioned(sampler: Sampler) -> bool:
    return isinstance(sampler, SGLD) and sampler.preconditioner is not None


def layout_of(plan: ChainContext) -> MatrixShape:
    """Sizes of the matrices, labels apart."""
    counts, chains = plan.problem.column_counts, plan.chains
    lengths = batch_lengths(chains, paired=is_paired(plan.sampler))
    conditioned = chains.ridge is not None and plan.traces and not isinstance(plan.sampler, Subspace)
    return MatrixShape(
        plan.problem.num_train, sum(counts), counts[0], chains.num_chains * len(lengths), conditioned=conditioned
    )


def stored_bytes(plan: ChainContext) -> int:
    """Size of the four float32 matrices, and of the scores that two halves of the draws give."""
    return sum(spec.nbytes for spec in specs(layout_of(plan)))


def file_bytes(plan: ChainContext, matrix_bytes: int = MATRIX_BYTES) -> int:
    """Size of the temporary file of the matrices; 0 where they lie in memory."""
    stored = stored_bytes(plan)
    return stored if stored > matrix_bytes else 0


def matrix_threads(workers: int) -> int:
    """Threads for the matrices: all that the chains under way had, one chain's on a GPU included."""
    return workers * torch.get_num_threads()


def _further(plan: ChainContext, matrices: Matrices) -> list[Influence]:
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
        conditioned=None if matrices.conditioned is None else matrices.conditioned[:, part],
        conditioned_standard_error=None if matrices.conditioned_error is None else matrices.conditioned_error[:, part],
    )


def _diagnostics(
    losses: torch.Tensor, llc: tuple[float, float], matrices: Matrices, checks: BiasMeasures
) -> Diagnostics:
    of_ranks, of_groups = matrices.agreement()
    return Diagnostics(
        rhat=split_rhat(losses),
        ess=effective_sample_size(losses),
        llc=llc[0],
        llc_standard_error=llc[1],
        drift=drift(losses),
        score_agreement=of_ranks,
        group_agreement=of_groups,
        noise_ratio=checks.noise_ratio,
        llc_ratio=checks.llc_ratio,
        control_agreement=checks.agreement(matrices.influence),
    )


def _traces(plan: ChainContext, records: Sequence[ChainTrace]) -> Traces:
    columns = torch.stack([record.columns[0] for record in records]).float()
    names = ["loss", *(o.name for o in plan.problem.observables)]
    parts = columns.split(list(plan.problem.column_counts), dim=2)
    return Traces(
        train=torch.stack([record.train[0] for record in records]).float().numpy(),
        columns={name: part.contiguous().numpy() for name, part in zip(names, parts, strict=True)},
    )


def _notes(plan: ChainContext, divergences: Sequence[Divergence]) -> tuple[str, ...]:
    notes = [divergence.message for divergence in divergences]
    if plan.token_losses is not None and plan.linear is not None:
        notes.append(IN_SPAN)
    if plan.stochastic:
        notes.append(
            "the model (in evaluation mode) or the training data draws random numbers; chains ran one after the "
            "other, with the same numbers at every draw"
        )
    elif plan.problem.twins is False and not plan.backend.sharded:
        notes.append("chains ran one after the other: a second tree of this module does not reproduce it")
    return tuple(notes)
