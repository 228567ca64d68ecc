"""Memory and sizes of an estimate, computed in advance."""

import torch

from bif_lightning.estimation.blocks import MatrixShape
from bif_lightning.estimation.matrices import ROUND_BYTES, specs
from bif_lightning.results.token_matrices import MOST_BYTES
from bif_lightning.sampling.sampler import ChainContext
from bif_lightning.sampling.token_trace import token_bytes
from bif_lightning.sampling.trace import batch_lengths, moment_bytes, trace_bytes
from bif_lightning.statistics.conditioned import count_increments, update_bytes
from bif_lightning.storage.scratch import MATRIX_BYTES


def extra_bytes(context: ChainContext, workers: int, matrix_bytes: int = MATRIX_BYTES) -> int:
    """Bytes in addition to the module and its activations, on a rank that keeps the matrices.

    They are those of the snapshot, the running chains and the sampler's state; the draws of all chains (traces or
    moments), the draws of tokens, and the Kalman update; the matrices unless they are in a file; and the blocks being
    computed.
    """
    backend, problem, chains = context.backend, context.problem, context.chains
    item = backend.center.element_size()
    sampler = context.kernel.nbytes(problem, backend, workers)
    shape = problem.num_train, sum(problem.column_counts)
    draws = trace_bytes(chains, *shape, item) if context.traces else moment_bytes(chains, *shape)
    stored = stored_bytes(context)
    matrices = stored - file_bytes(context, matrix_bytes) + min(2 * ROUND_BYTES, stored)
    tokens = 0
    if context.token_losses is not None and not context.kernel.closed_form:
        tokens = min(token_bytes(*context.token_losses, chains.num_chains, chains.num_draws), MOST_BYTES)
    conditioned = 0
    if layout_of(context).conditioned:
        increments = chains.num_chains * count_increments(chains.num_draws, paired=context.settings.paired)
        conditioned = update_bytes(increments, *shape)
    return backend.layout.size * item + sampler + draws + matrices + tokens + conditioned


def layout_of(context: ChainContext) -> MatrixShape:
    """Sizes of the matrices, without labels."""
    counts, chains = context.problem.column_counts, context.chains
    lengths = batch_lengths(chains, paired=context.settings.paired)
    conditioned = chains.ridge is not None and context.traces and not context.kernel.closed_form
    batches = chains.num_chains * len(lengths)
    # A closed form has beside it what its chains say alone; independent draws only check it.
    drawn = batches if context.kernel.closed_form and not context.settings.paired else 0
    return MatrixShape(
        context.problem.num_train, sum(counts), counts[0], batches, conditioned=conditioned, drawn_batches=drawn
    )


def stored_bytes(context: ChainContext) -> int:
    """Bytes of the float32 matrices, and of the scores by either half of the draws."""
    return sum(spec.nbytes for spec in specs(layout_of(context)))


def file_bytes(context: ChainContext, matrix_bytes: int = MATRIX_BYTES) -> int:
    """Bytes of the temporary file of the matrices; 0 if they fit in memory."""
    stored = stored_bytes(context)
    return stored if stored > matrix_bytes else 0


def matrix_threads(workers: int) -> int:
    """Threads for the matrices: all intra-op threads of all running chains."""
    return workers * torch.get_num_threads()
