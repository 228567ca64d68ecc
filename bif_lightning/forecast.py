"""What a snapshot will take, before the first one is made: measured on the real problem, not guessed."""

import time
from dataclasses import dataclass

from bif_lightning.chain import Plan, Walker
from bif_lightning.config import SGLD, Chains
from bif_lightning.estimator import plan_chains, ready_for
from bif_lightning.problem import Problem
from bif_lightning.summary import extra_bytes


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

    The seconds leave out the matrix (one product of traces) and hold while chains do not slow each other down.
    """
    with ready_for(problem, chains) as (host, workers, _):
        plan = plan_chains(problem, host, sampler, chains, store_traces=store_traces)
        step, measurement = _time(plan)
        rounds = -(-chains.num_chains // workers)
        seconds = rounds * (chains.num_steps * step + chains.num_draws * measurement)
        return Forecast(seconds, extra_bytes(plan, workers), workers)


def _time(plan: Plan) -> tuple[float, float]:
    walker = Walker(plan, 0)
    walker.step(0)  # the first call of every operation pays for its set-up
    walker.measure(0, 0)
    started = time.perf_counter()
    steps = 0
    while steps < 3 or (steps < 50 and time.perf_counter() - started < 0.05):
        walker.step(1 + steps)
        steps += 1
    middle = time.perf_counter()
    walker.measure(0, 0)
    return (middle - started) / steps, time.perf_counter() - middle
