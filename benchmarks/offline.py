"""What training loses to a snapshot, inline and kept for workers; how fast workers are; what a kill costs.

    python benchmarks/offline.py [--workers 1 2 4] [--kills 4]

One network on scikit-learn's digits, in a process of its own for every worker, each with one thread, so that more
workers than cores gain nothing. Tables go to standard output. What a kill costs is the work since a chain or a dump was
last written: all else is taken up by the next worker.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bif_lightning as bl
import models

STEPS = list(range(10, 70, 10))
SAMPLER = bl.SGLD(step_size=1e-5, inverse_temperature=1e3, localization=1e3)
CHAINS = bl.Chains(num_chains=4, num_draws=25, thinning=2, batch_size=64)


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Clock(L.Callback):
    """Seconds that the callback before this one took of each batch's end."""

    def __init__(self, bif: bl.BIFCallback) -> None:
        self.seconds: dict[int, float] = {}
        inner = bif.on_train_batch_end

        def timed(trainer: L.Trainer, *arguments: Any) -> None:
            started = time.perf_counter()
            inner(trainer, *arguments)
            if trainer.global_step in STEPS:
                self.seconds[trainer.global_step] = time.perf_counter() - started

        bif.on_train_batch_end = timed  # type: ignore[method-assign]


def data() -> DataLoader:
    inputs, targets = (torch.stack(part) for part in zip(*models.digits(1797), strict=True))
    return DataLoader(TensorDataset(inputs, targets), batch_size=64)


def train(directory: Path, launch: Any) -> tuple[float, float, float]:
    """Seconds of the whole fit, and of training at a snapshot: the first, the median of the others."""
    L.seed_everything(0, verbose=False)
    bif = bl.BIFCallback(
        train=range(1000), query=range(1000, 1200), at_steps=STEPS, at_end=False, sampler=SAMPLER, chains=CHAINS,
        dirpath=directory, launch=launch, log=False, verify_restore="never",
    )  # fmt: skip
    clock = Clock(bif)
    trainer = L.Trainer(
        max_steps=70, accelerator="cpu", callbacks=[bif], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    started = time.perf_counter()
    trainer.fit(Net(), data())
    others = sorted(clock.seconds[step] for step in STEPS[1:])
    return time.perf_counter() - started, clock.seconds[STEPS[0]], others[len(others) // 2]


def worker(directory: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        return subprocess.Popen([sys.executable, __file__, "--watch", str(directory)], env=environment, stderr=file)


def dumps(directory: Path) -> int:
    return len(list(directory.glob("step=*.h5")))


def forget(directory: Path) -> None:
    """The dumps, so that the same snapshots can be worked on again."""
    for path in directory.glob("step=*.h5"):
        path.unlink()


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 600
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError("a worker does not go on; look at its log")
        time.sleep(0.02)


def rate(directory: Path, workers: int) -> float:
    """Seconds a dump, from when snapshots appear before workers that wait for them."""
    forget(directory)
    kept = (directory / "snapshots").rename(directory / "kept")
    logs = [directory.parent / f"worker-{number}.log" for number in range(workers)]
    running = [worker(directory, log) for log in logs]
    until(lambda: all("waiting for snapshots" in log.read_text() for log in logs))
    started = time.perf_counter()
    kept.rename(directory / "snapshots")
    until(lambda: dumps(directory) == len(STEPS))
    seconds = time.perf_counter() - started
    for each in running:
        each.wait()
    return seconds / len(STEPS)


def last_written(directory: Path) -> float:
    written = [*directory.glob("step=*.h5"), *directory.glob("chains/*/*.pt")]
    return max((path.stat().st_mtime for path in written), default=0.0)


def killed(directory: Path, kills: int) -> list[float]:
    """Seconds of work that was lost to each kill, at random times while a worker works."""
    chance, lost = random.Random(0), list[float]()
    forget(directory)
    for _ in range(kills):
        before = last_written(directory)
        one = worker(directory, directory.parent / "killed.log")
        until(lambda before=before: last_written(directory) > before)
        time.sleep(chance.uniform(0.0, 2.0))
        one.send_signal(signal.SIGKILL)
        one.wait()
        lost.append(time.time() - last_written(directory))
    worker(directory, directory.parent / "last.log").wait()
    if dumps(directory) != len(STEPS):
        raise RuntimeError(f"{dumps(directory)} dumps of {len(STEPS)} snapshots")
    return lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--watch", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.watch:
        torch.set_num_threads(1)
        bl.watch(Net(), given.watch, data=data())
        return
    with tempfile.TemporaryDirectory() as folder:
        print("| launch | training stops for, s | whole fit, s |\n|---|---|---|")
        for launch in ("inline", "snapshot"):
            whole, first, others = train(Path(folder, launch), launch)
            print(f"| {launch} | {others:.3f} (the first {first:.3f}) | {whole:.1f} |", flush=True)
        print("\n| workers | seconds a dump | of one |\n|---|---|---|")
        alone = None
        for count in given.workers:
            found = rate(Path(folder, "snapshot"), count)
            alone = alone or found
            print(f"| {count} | {found:.2f} | {alone / found:.2f} |", flush=True)
        lost = killed(Path(folder, "snapshot"), given.kills)
        print(f"\n| kill -9 | {' | '.join(str(number + 1) for number in range(len(lost)))} |")
        print(f"|---|{'---|' * len(lost)}\n| work done again, s | {' | '.join(f'{each:.2f}' for each in lost)} |")


if __name__ == "__main__":
    main()
