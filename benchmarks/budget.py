"""What share of training time the callback takes for a budget, as markdown.

    python benchmarks/budget.py [--seconds 120] [--repeats 3] > table.md

A real Trainer trains the `mlp` case for about so many seconds, with a snapshot due 20 times, in a process of its own for
each run. Clocks around the callback's hooks measure the share from outside of it; nothing is read from its own account.
Two settings take turns: the default, where only the spacing of snapshots gives way, and "auto", which chooses its draws.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from bif_lightning import BIFCallback
from cases import cases
from overhead import BATCH, Module, losses

BUDGETS = 0.05, 0.10
SAMPLERS = {"default": None, "auto": "auto"}
DUE = 20
HOOKS = "setup", "on_train_start", "on_train_batch_end", "on_train_epoch_end", "on_train_end"


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        total: seconds, from the start to the end of `Trainer.fit`.
        inside: of these, seconds in the callback's hooks.
        snapshots: taken.
        draws: of a chain.
    """

    total: float
    inside: float
    snapshots: int
    draws: int


class Timed(BIFCallback):
    """The callback, with a clock around every hook."""

    inside = 0.0


def _timed(name: str) -> Callable[..., None]:
    hook = getattr(BIFCallback, name)

    def timed(self: Timed, *args: Any, **kwargs: Any) -> None:
        started = time.perf_counter()
        try:
            hook(self, *args, **kwargs)
        finally:
            self.inside += time.perf_counter() - started

    return timed


for _name in HOOKS:
    setattr(Timed, _name, _timed(_name))


def trainer(steps: int, folder: Path, callbacks: list[Any]) -> L.Trainer:
    """For so many steps, silent."""
    return L.Trainer(
        accelerator="cpu", max_epochs=-1, max_steps=steps, callbacks=callbacks, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip


def step_seconds(model: str, steps: int, folder: Path) -> float:
    """Of a step without the callback."""
    case = cases(quick=False)[model]
    started = time.perf_counter()
    data = DataLoader(case.data(case.train), batch_size=BATCH, shuffle=True)
    trainer(steps, folder, []).fit(Module(case.build()), data)
    return (time.perf_counter() - started) / steps


def train(model: str, sampler: str, budget: float, seconds: float, folder: Path) -> Run:
    """Train for about so long without the callback's part, with it."""
    torch.manual_seed(0)
    case = cases(quick=False)[model]
    data = case.data(case.train + case.query)
    train_set, query = data[: case.train], data[case.train :]
    steps = max(DUE, int(seconds / step_seconds(model, 400, folder)))
    timed = Timed(
        train_set, query, loss_fn=losses, budget=budget, sampler=SAMPLERS[sampler], every_n_train_steps=steps // DUE,
        log=False, dirpath=folder / "bif", eval_batch_size=case.eval_batch_size,
    )  # fmt: skip
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(steps, folder, [timed]).fit(Module(case.build()), DataLoader(train_set, batch_size=BATCH, shuffle=True))
    total = time.perf_counter() - started
    assert timed.latest is not None
    return Run(total, timed.inside, len(list((folder / "bif").glob("step=*.h5"))), timed.latest.chains.num_draws)


def started(settings: argparse.Namespace, sampler: str, budget: float) -> Run:
    """One run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--run", sampler, "--budget", str(budget), "--folder", folder]
        command += ["--model", settings.model, "--seconds", str(settings.seconds)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return Run(**json.loads(Path(folder, "run.json").read_text()))


def measure(settings: argparse.Namespace) -> None:
    """Run all settings by turns, and print the table."""
    found: dict[tuple[str, float], list[Run]] = {(name, budget): [] for budget in BUDGETS for name in SAMPLERS}
    for turn in range(settings.repeats):
        for (name, budget), runs in found.items():
            runs.append(started(settings, name, budget))
            share = runs[-1].inside / runs[-1].total
            print(f"turn {turn}, {name}, {budget:.0%}: {share:.1%}", file=sys.stderr, flush=True)
    case = cases(quick=False)[settings.model]
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {case.name}: n={case.train} q={case.query}")
    print(f"\n{settings.seconds:g} s of training, {DUE} snapshots due; medians of {settings.repeats} turns\n")
    print("| budget | sampler | share (range) | snapshots | draws a chain |\n|---|---|---|---|---|")
    for (name, budget), runs in found.items():
        shares = [run.inside / run.total for run in runs]
        cells = (
            f"{budget:.0%}",
            name,
            f"{statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})",
            f"{statistics.median(run.snapshots for run in runs):g}",
            f"{statistics.median(run.draws for run in runs):g}",
        )
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Measure, or be one of the measured runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(cases(quick=False)), default="mlp")
    parser.add_argument("--seconds", type=float, default=120.0, help="of training in a run")
    parser.add_argument("--repeats", type=int, default=3, help="turns of all settings")
    parser.add_argument("--run", choices=list(SAMPLERS), help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.run is None:
        measure(settings)
        return
    run = train(settings.model, settings.run, settings.budget, settings.seconds, settings.folder)
    (settings.folder / "run.json").write_text(json.dumps(asdict(run)))


if __name__ == "__main__":
    main()
