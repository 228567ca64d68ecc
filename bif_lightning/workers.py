"""Chains side by side: one thread a chain on the cores of this process, one after the other on a GPU.

On a CPU, chains on threads with one intra-op thread each use two cores almost fully, where splitting each small
operation over the cores does not; batching chains by vmap is slower still.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace

import torch

from bif_lightning.chain import Plan, run_chain
from bif_lightning.config import Chains
from bif_lightning.recorder import Record
from bif_lightning.result import Divergence
from bif_lightning.weights import Host

Progress = Callable[[int, int], None]
"""(steps done, steps in all), after every step of any chain of this process. What it raises stops all chains."""


class StoppedError(RuntimeError):
    """Another chain failed, or the user interrupted: this one ends too."""


def threads_for(chains: Chains, host: Host) -> tuple[int, int]:
    """(chains at once, intra-op threads each). The second depends on the settings alone, never on the machine or the
    rank, so that the bits of a chain do not either."""
    if host.device.type != "cpu":
        return 1, torch.get_num_threads()
    at_once = max(1, torch.get_num_threads() // chains.num_threads) if host.parallel else 1
    return min(at_once, chains.num_chains), chains.num_threads


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
