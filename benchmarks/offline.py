"""What training loses to a snapshot, inline and kept for workers; how fast workers are; what a kill costs.

    python benchmarks/offline.py [--workers 1 2 4]

One network on scikit-learn's digits, in a process of its own for every worker, each with one thread, so that more
workers than cores gain nothing. Tables go to standard output.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bif_lightning as bl
import models

STEPS = list(range(10, 90, 10))
SAMPLER = bl.SGLD(step_size=1e-5, inverse_temperature=1e3, localization=1e3)
CHAINS = bl.Chains(num_chains=4, num_draws=100, thinning=2, batch_size=64)


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
        max_steps=90, accelerator="cpu", callbacks=[bif], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    started = time.perf_counter()
    trainer.fit(Net(), data())
    others = sorted(clock.seconds[step] for step in STEPS[1:])
    return time.perf_counter() - started, clock.seconds[STEPS[0]], others[len(others) // 2]


def worker(directory: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, __file__, "--watch", str(directory)], env=environment)


def dumps(directory: Path) -> int:
    return len(list(directory.glob("step=*.h5")))


def forget(directory: Path) -> None:
    """The dumps, so that the same snapshots can be worked on again."""
    for path in directory.glob("step=*.h5"):
        path.unlink()


def rate(directory: Path, workers: int) -> float:
    """Seconds from the first dump to the last, so that starting the processes does not count."""
    forget(directory)
    running = [worker(directory) for _ in range(workers)]
    first = last = None
    while last is None:
        time.sleep(0.02)
        count = dumps(directory)
        first = first or (time.perf_counter() if count else None)
        last = time.perf_counter() if count == len(STEPS) else None
    for each in running:
        each.wait()
    assert first is not None
    return (last - first) / (len(STEPS) - 1)


def killed(directory: Path) -> tuple[float, float]:
    """Seconds of all dumps by one worker, and by one that was killed half-way and replaced at once."""
    seconds = []
    for kill in (False, True):
        forget(directory)
        started = time.perf_counter()
        one = worker(directory)
        while kill and dumps(directory) < len(STEPS) // 2:
            time.sleep(0.02)
        if kill:
            time.sleep(1.0)  # in the middle of a snapshot
            one.send_signal(signal.SIGKILL)
            one.wait()
            one = worker(directory)
        one.wait()
        seconds.append(time.perf_counter() - started)
    return seconds[0], seconds[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
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
        whole, broken = killed(Path(folder, "snapshot"))
        print(f"\n{len(STEPS)} dumps by one worker: {whole:.1f} s; killed in the middle and replaced: {broken:.1f} s")


if __name__ == "__main__":
    main()
