"""Where the CPU time of a snapshot goes: its parts wrapped in clocks, in a run of its own."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from bif_lightning.estimation import estimator
from bif_lightning.losses.problem import Problem
from bif_lightning.rng import Noise
from bif_lightning.sampling import sgld
from bif_lightning.sampling.sampler import ChainState
from cases import Case

PARTS = ("gradient passes", "measurement", "noise", "update", "minibatch", "snapshot losses", "matrix")


def shares(case: Case, problem: Problem) -> dict[str, float]:
    """Share of each part in the CPU time of one snapshot, and the rest. Shares add up to 1."""
    spent: Counter[str] = Counter()

    def clock(part: str, function: Callable[..., Any], now: Callable[[], float] = time.thread_time) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = now()
            try:
                return function(*args, **kwargs)
            finally:
                spent[part] += now() - started

        return timed

    with (
        patch.object(Problem, "add_gradient", clock("gradient passes", Problem.add_gradient)),
        patch.object(ChainState, "measure", clock("measurement", ChainState.measure)),
        patch.object(sgld.LangevinState, "_fill_normal", clock("noise", sgld.LangevinState._fill_normal)),
        patch.object(sgld, "drift_", clock("update", sgld.drift_)),
        patch.object(sgld, "step_", clock("update", sgld.step_)),
        patch.object(Noise, "minibatch", clock("minibatch", Noise.minibatch)),
        patch.object(Problem, "minibatch", clock("minibatch", Problem.minibatch)),
        patch.object(estimator, "at_snapshot", clock("snapshot losses", estimator.at_snapshot)),
        # Matrices are computed on threads of their own, when no chain runs any more.
        patch.object(estimator, "compute", clock("matrix", estimator.compute, time.process_time)),
    ):
        started = time.process_time()
        estimator.estimate_problem(problem, case.sampler, case.chains)
        total = time.process_time() - started
    spent["update"] -= spent["noise"]  # step_ asks for its noise
    result = {part: spent[part] / total for part in PARTS}
    return {**result, "rest": 1 - sum(result.values())}
