"""Chains side by side: one thread a chain on the cores of this process, one after the other on a GPU.

On a CPU, chains on threads with one intra-op thread each use two cores almost fully, where splitting each small
operation over the cores does not; batching chains by vmap is slower still.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from bif_lightning.config import Chains
from bif_lightning.distributed.threads import Progress, Steps, on_threads
from bif_lightning.model.weights import WeightBackend
from bif_lightning.results.estimate import Divergence
from bif_lightning.sampling.chain import run_chain
from bif_lightning.sampling.sampler import ChainContext
from bif_lightning.sampling.trace import ChainTrace


def threads_for(chains: Chains, backend: WeightBackend) -> tuple[int, int]:
    """(chains at once, intra-op threads each). The second depends on the settings alone, never on the machine or the
    rank, so that the bits of a chain do not either."""
    if backend.device.type != "cpu":
        return 1, torch.get_num_threads()
    at_once = max(1, torch.get_num_threads() // chains.num_threads) if backend.parallel else 1
    return min(at_once, chains.num_chains), chains.num_threads


def run_chains(
    context: ChainContext, mine: Sequence[int], workers: int, threads: int, progress: Progress | None
) -> list[ChainTrace | Divergence]:
    """Run these chains, `workers` at a time. An exception in any of them, or here, stops all."""
    steps = Steps(len(mine) * context.chains.num_steps, progress)
    context = replace(context, tick=steps.tick)
    return on_threads([partial(run_chain, context, chain) for chain in mine], workers, threads, steps)
