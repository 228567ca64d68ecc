"""Chains side by side: one thread a chain on the cores of this process, one after the other on a GPU.

On a CPU, chains on threads with one intra-op thread each use two cores almost fully, where splitting each small
operation over the cores does not; batching chains by vmap is slower still.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace

import torch
from torch import Tensor

from bif_lightning.chain import Plan, run_chain
from bif_lightning.config import Chains
from bif_lightning.host import FunctionalHost, Weights
from bif_lightning.noise import global_states, stream_seed
from bif_lightning.problem import Problem
from bif_lightning.recorder import Record
from bif_lightning.result import Divergence

Progress = Callable[[int, int], None]
"""(steps done, steps in all), after every step of any chain of this process. What it raises stops all chains."""

_PROBE_EXAMPLES = 8


class StoppedError(RuntimeError):
    """Another chain failed, or the user interrupted: this one ends too."""


def threads_for(chains: Chains, host: FunctionalHost) -> tuple[int, int]:
    """(chains at once, intra-op threads each). The second depends on the settings alone, never on the rank, so
    that the bits of a chain do not either."""
    available = torch.get_num_threads()
    each = max(1, available // chains.num_chains)
    at_once = max(1, available // each) if host.twins and host.device.type == "cpu" else 1
    return min(at_once, chains.num_chains), each


def run_chains(
    plan: Plan, mine: Sequence[int], workers: int, threads: int, progress: Progress | None
) -> list[Record | Divergence]:
    """Run these chains, `workers` at a time. An exception in any of them, or here, stops all."""
    stop, lock, done = threading.Event(), threading.Lock(), 0
    total = len(mine) * plan.chains.num_steps

    def tick() -> None:
        nonlocal done
        if stop.is_set():
            raise StoppedError
        if progress is not None:
            with lock:
                done += 1
                progress(done, total)

    def run(chain: int) -> Record | Divergence:
        return run_chain(replace(plan, tick=tick), chain)

    if workers == 1:
        return [run(chain) for chain in mine]
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        futures = [pool.submit(run, chain) for chain in mine]
        try:
            return _results(futures)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _results(futures: Sequence[Future[Record | Divergence]]) -> list[Record | Divergence]:
    finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in finished:
        if (error := future.exception()) is not None:
            raise error
    return [future.result() for future in futures]


def ready_host(problem: Problem, seed: int) -> FunctionalHost:
    """The host of this snapshot.

    The first time, checks that a twin of the module computes the same bits as the module itself at weights off
    the snapshot; where it does not, chains run on the module, one at a time.

    Raises:
        ValueError: the loss does not depend on the sampled weights.
    """
    if problem.twins is None:
        problem.twins, problem.stochastic = _probe(problem, seed)
    return FunctionalHost(problem.module, problem.params, twins=problem.twins)


def _probe(problem: Problem, seed: int) -> tuple[bool, bool]:
    """(twins reproduce the module, the model draws random numbers)."""
    borrowed = FunctionalHost(problem.module, problem.params, twins=False)
    before = global_states(borrowed.device)
    expected, own = _gradient_off_center(problem, borrowed, seed)
    after = global_states(borrowed.device)
    stochastic = before != after
    if own:
        raise ValueError(
            f"the module computes with its own {own[0]} whatever weights it is given: it keeps that parameter in an "
            "object of its own besides the attribute; let it use the attribute, or leave it out of params"
        )
    if not bool(expected.any()):
        raise ValueError(
            "the loss does not depend on the sampled weights: its gradient is 0 everywhere. Do the params patterns "
            "choose weights that the loss uses, and does the module compute with its own parameters?"
        )
    if stochastic:
        return False, True  # one global generator serves one chain at a time
    try:
        twin = FunctionalHost(problem.module, problem.params, twins=True)
        found, own = _gradient_off_center(problem, twin, seed)
        return not own and torch.equal(found, expected), False
    except (RuntimeError, AttributeError, TypeError, KeyError, AssertionError, NotImplementedError):
        return False, False  # a module that a twin does not reproduce, such as a scripted one


def _gradient_off_center(problem: Problem, host: FunctionalHost, seed: int) -> tuple[Tensor, list[str]]:
    """Gradient of the mean loss of a few examples, 1 % off the snapshot; parameters of the module that it reached."""
    weights: Weights = host.weights()
    generator = torch.Generator(host.device).manual_seed(stream_seed(seed))
    with torch.no_grad():
        for piece in host.layout.pieces(weights.flat):
            noise = torch.empty_like(piece).normal_(generator=generator)
            piece.add_(noise, alpha=0.01 * (float(piece.abs().mean()) + 1e-3))
    rows = torch.linspace(0, len(problem.training) - 1, min(_PROBE_EXAMPLES, len(problem.training))).long()
    batch = problem.minibatch(rows.unique())
    named = list(problem.module.named_parameters())
    gradients = [parameter.grad for _, parameter in named]
    try:
        for _, parameter in named:
            parameter.grad = None
        problem.mean_loss(host.bind(weights), batch)
        return weights.gradient, [name for name, parameter in named if parameter.grad is not None]
    finally:
        for (_, parameter), gradient in zip(named, gradients, strict=True):
            parameter.grad = gradient
