"""What an estimate and its forecast cost with the number of draws: CPU seconds and peak memory.

    python benchmarks/draws.py > table.md
    python benchmarks/draws.py --draws 400 1600 --train 60 --ridge none

A model of 6 weights, so that what grows is not the model. Every cell is a process of its own (Linux only), since a peak
never falls; CPU seconds are those of all its threads, and memory is the peak above the same process with 16 draws.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from bif_lightning.config import SGLD, Chains, Ridge
from bif_lightning.data.dataset import Examples
from bif_lightning.estimation.estimator import estimate_problem
from bif_lightning.estimation.forecast import forecast
from bif_lightning.losses.observables import mean_of
from bif_lightning.losses.problem import Problem

INPUTS, QUERIES, CHAINS = 5, 20, 4
SAMPLER = SGLD(step_size=0.01, inverse_temperature=10.0, localization=10.0)
WARM = 16
Stage = Literal["forecast", "estimate"]
STAGES: tuple[Stage, ...] = ("forecast", "estimate")


def half_square(module: nn.Module, batch: list[Tensor]) -> Tensor:
    return (module(batch[0])[:, 0] - batch[1]).square() / 2


def problem(train: int) -> Problem:
    """A linear regression of 5 inputs, with its bias."""
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(size, INPUTS + 1, generator=generator) for size in (train, QUERIES)]
    examples, queries = (Examples(TensorDataset(side[:, 1:], side[:, 0])) for side in sides)
    torch.manual_seed(0)
    return Problem(
        module=nn.Linear(INPUTS, 1),
        loss=half_square,
        objective=lambda module, batch: mean_of(half_square(module, batch)),
        train=examples,
        query=queries,
        training=examples,
        prepare=lambda batch: batch,
    )


def chains(draws: int, ridge: Ridge) -> Chains:
    return Chains(num_chains=CHAINS, num_draws=draws // CHAINS, batch_size=16, storage="traces", ridge=ridge)


def measure(stage: Stage, draws: int, train: int, ridge: Ridge) -> dict[str, float]:
    """CPU seconds and growth of the peak, MB, in this process."""

    def run(settings: Chains) -> None:
        (forecast if stage == "forecast" else estimate_problem)(problem(train), SAMPLER, settings)

    run(chains(WARM, ridge))  # loads all code
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    run(chains(draws, ridge))
    seconds = time.process_time() - started
    return {"seconds": seconds, "mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6}


def cell(stage: Stage, draws: int, train: int, ridge: str, timeout: float) -> str:
    """A cell of the table, measured in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--cell",
        stage,
        "--draws",
        str(draws),
        "--train",
        str(train),
        "--ridge",
        ridge,
    ]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"over {timeout:.0f} s"
    except subprocess.CalledProcessError as error:
        return f"failed ({error.returncode})"
    found = json.loads(done.stdout)
    return f"{found['seconds']:.2f} s, {found['mb']:.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, nargs="+", default=[400, 1600, 6400, 25600], help="of all four chains")
    parser.add_argument("--train", type=int, nargs="+", default=[60, 1000], help="train examples")
    parser.add_argument("--ridge", choices=["auto", "none"], default="auto", help="of the conditioned influence")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds after which a cell is given up")
    parser.add_argument("--cell", choices=STAGES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    ridge: Ridge = None if given.ridge == "none" else "auto"
    if given.cell:
        print(json.dumps(measure(given.cell, given.draws[0], given.train[0], ridge)))
        return
    print(f"`python benchmarks/draws.py {' '.join(sys.argv[1:])}`\n".replace(" `", "`"))
    print("| train examples | draws | forecast | estimate |\n|---|---|---|---|")
    for train in given.train:
        for draws in given.draws:
            cells = [cell(stage, draws, train, given.ridge, given.timeout) for stage in STAGES]
            print(f"| {train} | {draws} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
