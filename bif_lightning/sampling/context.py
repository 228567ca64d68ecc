"""The process made ready for chains, and put back as it was."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import nn

from bif_lightning.config import Chains
from bif_lightning.data.dataset import Batch, move
from bif_lightning.distributed.ranks import Ranks, current_ranks
from bif_lightning.losses.problem import Problem, disable_compile, eval_mode
from bif_lightning.model.devices import check_float64
from bif_lightning.model.sharded import is_sharded
from bif_lightning.model.weights import WeightBackend
from bif_lightning.rng import unaltered_generators
from bif_lightning.sampling.preflight import ready_backend
from bif_lightning.sampling.run import threads_for


def ranks_of(module: nn.Module) -> Ranks:
    """How the ranks of the default process group share the work on this module."""
    return current_ranks(lockstep=is_sharded(module))


def device_of(model: nn.Module) -> torch.device:
    """Device of the model's first parameter."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def to_device_of(model: nn.Module) -> Callable[[Batch], Batch]:
    """What moves a batch to the model's device."""
    device = device_of(model)
    return lambda batch: batch if device.type == "cpu" else move(batch, device)


@contextmanager
def engine_context(
    problem: Problem, chains: Chains, ranks: Ranks | None = None
) -> Generator[tuple[WeightBackend, int, int]]:
    """The backend of the present weights, chains at once, and threads of each; the process is put back afterwards."""
    ranks = ranks or ranks_of(problem.module)
    check_float64(device_of(problem.module))
    device, intra_op = device_of(problem.module), torch.get_num_threads()
    with (
        disable_compile(),
        eval_mode(problem.module),
        unaltered_generators(device),
        torch.inference_mode(False),
        torch.enable_grad(),
        # Autocast belongs to a thread, and chains run on others: a loss that wants it enters it itself.
        torch.autocast(device.type, enabled=False),
    ):
        problem.load(chains.seed, device, ranks)
        backend = ready_backend(problem, chains.seed, ranks)
        workers, threads = threads_for(chains, backend)
        torch.set_num_threads(threads)
        try:
            yield backend, workers, threads
        finally:
            torch.set_num_threads(intra_op)
