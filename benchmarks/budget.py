"""What share of training time the callback takes for a budget, as markdown.

    python benchmarks/budget.py [--seconds 120] [--repeats 3] > table.md

A real Trainer trains a small network for about so many seconds, with a snapshot due 20 times, in a process of its own
for each run. Clocks around the callback's hooks measure the share from outside; nothing is read from its own account.
Two settings take turns: the default, and "auto".
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
from torch import nn
from torch.utils.data import DataLoader

import models
from bif_lightning import BIFCallback
from overhead import BATCH, Module, losses

BUDGETS = 0.05, 0.10
SAMPLERS = {"default": None, "auto": "auto"}
DUE, TRAIN, QUERY = 20, 200, 50
HOOKS = "setup", "on_train_start", "on_train_batch_end", "on_train_epoch_end", "on_train_end"


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        total: seconds, from the start to the end of `Trainer.fit`.
        inside: of these, seconds in the callback's hooks.
        snapshots: taken.
    """

    total: float
    inside: float
    snapshots: int


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


class Slow(Module):
    """Learns slowly, so that its losses stay above zero through tens of thousands of steps."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def network() -> Module:
    """64 -> 64 -> 10 on digits: 4,810 weights."""
    return Slow(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))


def step_seconds(steps: int, folder: Path) -> float:
    """Of a step without the callback."""
    started = time.perf_counter()
    data = DataLoader(models.digits(TRAIN), batch_size=BATCH, shuffle=True)
    trainer(steps, folder, []).fit(network(), data)
    return (time.perf_counter() - started) / steps


def train(sampler: str, budget: float, seconds: float, folder: Path) -> Run:
    """Train for about so long without the callback's part, with it."""
    torch.manual_seed(0)
    data = models.digits(TRAIN + QUERY)
    train_set, query = data[:TRAIN], data[TRAIN:]
    steps = max(DUE, int(seconds / step_seconds(2000, folder)))
    timed = Timed(
        train_set, query, loss_fn=losses, budget=budget, sampler=SAMPLERS[sampler], every_n_train_steps=steps // DUE,
        log=False, dirpath=folder / "bif",
    )  # fmt: skip
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(steps, folder, [timed]).fit(network(), DataLoader(train_set, batch_size=BATCH, shuffle=True))
    total = time.perf_counter() - started
    return Run(total, timed.inside, len(list((folder / "bif").glob("step=*.h5"))))


def started(settings: argparse.Namespace, sampler: str, budget: float) -> Run:
    """One run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--run", sampler, "--budget", str(budget), "--folder", folder]
        command += ["--seconds", str(settings.seconds)]
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
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {TRAIN} train x {QUERY} query examples")
    print(f"\n{settings.seconds:g} s of training, {DUE} snapshots due; medians of {settings.repeats} turns\n")
    print("| budget | sampler | share (range) | snapshots |\n|---|---|---|---|")
    for (name, budget), runs in found.items():
        shares = [run.inside / run.total for run in runs]
        cells = (
            f"{budget:.0%}",
            name,
            f"{statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})",
            f"{statistics.median(run.snapshots for run in runs):g}",
        )
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Measure, or be one of the measured runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="of training in a run")
    parser.add_argument("--repeats", type=int, default=3, help="turns of all settings")
    parser.add_argument("--run", choices=list(SAMPLERS), help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.run is None:
        measure(settings)
        return
    run = train(settings.run, settings.budget, settings.seconds, settings.folder)
    (settings.folder / "run.json").write_text(json.dumps(asdict(run)))


if __name__ == "__main__":
    main()
