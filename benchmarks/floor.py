"""The floor: nothing but the forward and backward passes that a snapshot is made of, run the best way.

Batches lie ready in memory, nothing is drawn, moved or kept. Two ways to use the cores: all of them inside each
operation, passes in sequence; or a thread a core, each with one intra-op thread and models of its own (two, where
a control variate takes a gradient at the chain's weights and another at the snapshot's).
"""

import copy
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

import models
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.losses.problem import Problem
from cases import Case

Batch = tuple[Tensor, Tensor]

_MINIBATCHES = 16  # kept ready, and used in turn


class Floor:
    """The passes of one case.

    Args:
        case: its settings say how many passes of which size.
        problem: its module and examples.
    """

    def __init__(self, case: Case, problem: Problem) -> None:
        self.case = case
        self.module = copy.deepcopy(problem.module).eval()
        problem.load(0, torch.device("cpu"), Ranks())
        generator = torch.Generator().manual_seed(0)
        rows = [torch.randperm(case.train, generator=generator)[: case.chains.batch_size] for _ in range(_MINIBATCHES)]
        self.minibatches: list[Batch] = [problem.training.batch(part) for part in rows]
        self.measured: list[Batch] = [
            batch for part in (problem.train, problem.query) for batch, _ in part.batches(case.eval_batch_size)
        ]

    def seconds(self, threads: int, *, inside: bool) -> float:
        """Wall time of all passes on `threads` cores; `inside`: all of them within each operation."""
        chains = self.case.chains.num_chains
        workers, each = (1, threads) if inside else (min(threads, chains), 1)
        copies = [(copy.deepcopy(self.module), copy.deepcopy(self.module)) for _ in range(workers)]
        shares = [chains // workers + (worker < chains % workers) for worker in range(workers)]
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(each,)) as pool:
            started = time.perf_counter()
            list(pool.map(self._chains, copies, shares, [True] + [False] * (workers - 1)))
            return time.perf_counter() - started

    def _chains(self, copies: tuple[nn.Module, nn.Module], count: int, first: bool) -> None:
        settings, module = self.case.chains, copies[0]
        if first:
            self._measure(module)  # the losses at the snapshot itself
        passes = 2 if self.case.sampler.gradient == "control_variate" else 1
        walked = [(part, list(part.parameters())) for part in copies[:passes]]
        for _ in range(count):
            for step in range(1, settings.num_steps + 1):
                for part, parameters in walked:
                    for parameter in parameters:
                        parameter.grad = None
                    models.mean_loss(part, self.minibatches[step % _MINIBATCHES]).backward()
                past = step - settings.burn_in
                if past > 0 and past % settings.thinning == 0:
                    self._measure(module)

    def _measure(self, module: nn.Module) -> None:
        with torch.no_grad():
            for batch in self.measured:
                models.losses(module, batch)
