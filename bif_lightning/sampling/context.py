"""The process made ready for chains, and put back as it was."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import nn

from bif_lightning.config import Chains
from bif_lightning.data.dataset import Batch, move
from bif_lightning.distributed.ranks import Placement, current_placement
from bif_lightning.losses.problem import Problem, eagerly, evaluating
from bif_lightning.model.sharded import is_sharded
from bif_lightning.model.weights import Host
from bif_lightning.rng import unaltered_generators
from bif_lightning.sampling.preflight import ready_host
from bif_lightning.sampling.run import threads_for


def placement_of(module: nn.Module) -> Placement:
    """How the ranks of the default process group share the work on this module."""
    return current_placement(lockstep=is_sharded(module))


def device_of(model: nn.Module) -> torch.device:
    """Device of the model's first parameter."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def to_device_of(model: nn.Module) -> Callable[[Batch], Batch]:
    """What moves a batch to the model's device."""
    device = device_of(model)
    return lambda batch: batch if device.type == "cpu" else move(batch, device)


@contextmanager
def ready_for(problem: Problem, chains: Chains, placement: Placement | None = None) -> Generator[tuple[Host, int, int]]:
    """The host of the present weights, chains at once, and threads of each; the process is put back afterwards."""
    placement = placement or placement_of(problem.module)
    device, intra_op = device_of(problem.module), torch.get_num_threads()
    with (
        eagerly(),
        evaluating(problem.module),
        unaltered_generators(device),
        torch.inference_mode(False),
        torch.enable_grad(),
        # Autocast belongs to a thread, and chains run on others: a loss that wants it enters it itself.
        torch.autocast(device.type, enabled=False),
    ):
        problem.load(chains.seed, device, placement)
        host = ready_host(problem, chains.seed, placement)
        workers, threads = threads_for(chains, host)
        torch.set_num_threads(threads)
        try:
            yield host, workers, threads
        finally:
            torch.set_num_threads(intra_op)
