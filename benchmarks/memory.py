"""Peak memory of a snapshot beyond the bare passes, beside the formula that the engine announces.

Run in a process of its own for each row (`python memory.py NAME`, Linux only), since a peak never falls. A tiny
snapshot first loads all code and libraries. Then the bare passes run, as many at once as the engine runs chains, on
the one model, without keeping a gradient: their peak holds the program, the model, the data and the activations.
What the engine adds to that peak is its own.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import models
from bif_lightning.config import SGLD, Chains
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.estimation.estimator import estimate_problem
from bif_lightning.losses.problem import Problem
from cases import Case, cases

MEGA = 1e6


def memory_cases() -> dict[str, Case]:
    """The three models, and a wide one whose weights outweigh its activations, with a preconditioner."""
    wide = Case(
        "wide", _wide, models.digits, 0, 500, 100,
        Chains(num_chains=4, num_draws=10, batch_size=32),
        SGLD(step_size=1e-7, inverse_temperature=100.0, localization=1000.0, preconditioner="rmsprop"),
    )  # fmt: skip
    plain = replace(wide, name="wide, plain SGLD", sampler=replace(wide.sampler, preconditioner=None))
    # Training would leave a peak of its own, and a peak does not depend on what the weights are.
    return {case.name: replace(case, fit_steps=0) for case in (*cases(quick=True).values(), wide, plain)}


def measure(name: str) -> dict[str, float]:
    """Peaks of one case, bytes, taken in a process of its own."""
    command = [sys.executable, str(Path(__file__)), name]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _wide() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 3000), nn.ReLU(), nn.Linear(3000, 3000), nn.ReLU(), nn.Linear(3000, 10))


def _load_libraries() -> None:
    small = replace(cases(quick=True)["mlp"], train=16, query=8, fit_steps=0)
    estimate_problem(small.problem(), small.sampler, replace(small.chains, num_draws=8, thinning=1))


def _bare(problem: Problem, case: Case, workers: int) -> None:
    parameters = list(problem.module.parameters())
    problem.load(0, torch.device("cpu"), Ranks())
    minibatch = problem.training.batch(torch.arange(case.chains.batch_size))
    batches = [batch for batch, _ in problem.training.batches(case.eval_batch_size)]

    def passes(_: int) -> None:
        for _ in range(4):
            torch.autograd.grad(models.mean_loss(problem.module, minibatch), parameters)
        with torch.no_grad():
            for batch in batches:
                models.losses(problem.module, batch)

    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(passes, range(workers)))


def _peak() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def main(name: str) -> None:
    """Print the peaks of one case as JSON."""
    case = memory_cases()[name]
    _load_libraries()
    problem, threads = case.problem(), torch.get_num_threads()
    problem.module.eval()
    _bare(problem, case, min(threads, case.chains.num_chains))
    bare = _peak()
    estimate = estimate_problem(problem, case.sampler, case.chains)
    weights = 4 * sum(p.numel() for p in problem.module.parameters())
    print(json.dumps({"weights": weights, "bare": bare, "engine": _peak(), "formula": estimate.cost.extra_bytes}))


if __name__ == "__main__":
    main(sys.argv[1])
