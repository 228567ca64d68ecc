"""What share of training time the callback takes, on one rank and on two, as markdown.

    python benchmarks/overhead.py [--repeats 5] [--every 50] [--steps 200] > table.md

Each run is a process of its own that trains with a real Trainer, one thread a rank; on two ranks by DDP over gloo on
the CPU. Both train on batches of the same size in all. Runs of one and of two ranks take turns, so that whatever else
the machine does meets both alike. A snapshot's seconds are those of the whole hook: chains, matrices, dump.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is there

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import models
from bif_lightning import BIFCallback
from cases import Case, cases

BATCH = 128


@dataclass(frozen=True)
class Run:
    """One training, in seconds.

    Attributes:
        total: from the first batch to the end of the last one.
        snapshots: of each snapshot.
        opening: before the first batch: data, losses, forecast.
    """

    total: float
    snapshots: list[float]
    opening: float

    @property
    def share(self) -> float:
        """Of training time, that of the snapshots."""
        return sum(self.snapshots) / self.total


class Module(L.LightningModule):
    """A benchmark's model in a LightningModule."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return models.mean_loss(self.net, batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def losses(module: Any, batch: Any) -> Tensor:
    """The loss of each example."""
    return models.losses(module.net, batch)


class Timed(BIFCallback):
    """The callback, with a clock around its hooks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.snapshots: list[float] = []
        self.opening = self.begun = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        started = time.perf_counter()
        super().on_train_start(trainer, pl_module)
        self.begun = time.perf_counter()
        self.opening = self.begun - started

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        started, before = time.perf_counter(), self.latest
        super().on_train_batch_end(trainer, *args)
        if self.latest is not before:
            self.snapshots.append(time.perf_counter() - started)


def train(case: Case, ranks: int, steps: int, every: int, folder: Path) -> Run:
    """Train on `ranks` processes, of which this is the first or was started by the first."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = case.data(case.train + case.query)
    train_set, query = data[: case.train], data[case.train :]
    timed = Timed(
        train_set, query, loss_fn=losses, chains=case.chains, sampler=case.sampler, every_n_train_steps=every,
        at_end=False, log=False, dirpath=folder / "bif", eval_batch_size=case.eval_batch_size,
    )  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto", max_epochs=-1, max_steps=steps,
        callbacks=[timed], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Module(case.build()), DataLoader(train_set, batch_size=BATCH // ranks, shuffle=True))
    return Run(time.perf_counter() - timed.begun, timed.snapshots, timed.opening)


def started(case: str, ranks: int, steps: int, every: int, quick: bool) -> Run:
    """One run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--run", str(ranks), "--folder", folder, "--model", case]
        command += ["--steps", str(steps), "--every", str(every), *(["--quick"] if quick else [])]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return Run(**json.loads(Path(folder, "run.json").read_text()))


def row(ranks: int, found: Sequence[Run]) -> list[str]:
    """One line of the table."""
    snapshots = [second for run in found for second in run.snapshots]
    per_step = [(run.total - sum(run.snapshots)) for run in found]
    return [
        str(ranks),
        f"{statistics.median(per_step):.2f}",
        f"{statistics.median(snapshots):.2f} ({min(snapshots):.2f} to {max(snapshots):.2f})",
        f"{statistics.median(run.opening for run in found):.2f}",
        f"{100 * statistics.median(run.share for run in found):.1f} %",
    ]


def measure(settings: argparse.Namespace) -> None:
    """Run one and two ranks by turns, and print the table."""
    found: dict[int, list[Run]] = {1: [], 2: []}
    for turn in range(settings.repeats):
        for ranks, runs in found.items():
            runs.append(started(settings.model, ranks, settings.steps, settings.every, settings.quick))
            median = statistics.median(runs[-1].snapshots)
            print(f"turn {turn}, {ranks} ranks: {median:.2f} s a snapshot", file=sys.stderr, flush=True)
    faster = [
        statistics.median(one.snapshots) / statistics.median(two.snapshots)
        for one, two in zip(found[1], found[2], strict=True)
    ]
    case = cases(quick=settings.quick)[settings.model]
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, one thread a rank, {case.name}: {case.describe()}")
    print(f"\n{settings.steps} steps, a snapshot every {settings.every}; medians of {settings.repeats} turns\n")
    print("| ranks | training s | a snapshot s (range) | opening s | share of training time |\n|---|---|---|---|---|")
    for ranks, runs in found.items():
        print(f"| {' | '.join(row(ranks, runs))} |")
    print(f"\nOn two ranks a snapshot is {statistics.median(faster):.2f} times faster ({min(faster):.2f} to", end=" ")
    print(f"{max(faster):.2f}).")


def main() -> None:
    """Measure, or be one of the measured runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(cases(quick=False)), default="mlp")
    parser.add_argument("--quick", action="store_true", help="a fraction of the draws")
    parser.add_argument("--repeats", type=int, default=5, help="turns of one and two ranks")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of a run")
    parser.add_argument("--every", type=int, default=50, help="steps from one snapshot to the next")
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.run is None:
        measure(settings)
        return
    case = cases(quick=settings.quick)[settings.model]
    run = train(case, settings.run, settings.steps, settings.every, settings.folder)
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        (settings.folder / "run.json").write_text(json.dumps(asdict(run)))


if __name__ == "__main__":
    main()
