"""What a snapshot will take, before the first one is made: measured on the real problem, not guessed."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

from bif_lightning.chain import Plan, Walker
from bif_lightning.config import SGLD, Chains
from bif_lightning.estimator import plan_chains, ready_for
from bif_lightning.problem import Problem
from bif_lightning.summary import extra_bytes

_LEAST_CALLS = 2
_TIMED_SECONDS = 0.15


@dataclass(frozen=True)
class Forecast:
    """Seconds of wall time, and bytes beyond the module and its data, of one snapshot."""

    seconds: float
    extra_bytes: int
    workers: int

    def __str__(self) -> str:
        chains = "1 chain" if self.workers == 1 else f"{self.workers} chains"
        return f"about {self.seconds:.2g} s and {self.extra_bytes / 1e6:.3g} MB a snapshot, {chains} at a time"


def forecast(problem: Problem, sampler: SGLD, chains: Chains, *, store_traces: bool = False) -> Forecast:
    """Time a step and a measurement, and count: ceil(C / at once) x (steps x step + T x measurement).

    The seconds leave out the matrix, one product of the draws.
    """
    with ready_for(problem, chains) as (host, workers, threads):
        plan = plan_chains(problem, host, sampler, chains, store_traces=store_traces)
        # As many at once as there will be: chains on threads slow each other down.
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            step, measurement = map(max, zip(*pool.map(partial(_time, plan), range(workers)), strict=True))
        rounds = -(-chains.num_chains // workers)
        seconds = rounds * (chains.num_steps * step + chains.num_draws * measurement)
        return Forecast(seconds, extra_bytes(plan, workers), workers)


def _time(plan: Plan, chain: int) -> tuple[float, float]:
    """Seconds of a step and of a measurement."""
    walker = Walker(plan, chain)
    walker.step(0)  # the first call of every operation pays for its set-up
    walker.measure(0, 0)
    return _seconds(walker.step), _seconds(lambda index: walker.measure(index, index))


def _seconds(call: Callable[[int], object]) -> float:
    started, calls = time.perf_counter(), 0
    while calls < _LEAST_CALLS or time.perf_counter() - started < _TIMED_SECONDS:
        calls += 1
        call(calls)
    return (time.perf_counter() - started) / calls
