"""Sixty snapshots in one run: memory, files, threads and objects do not grow."""

import gc
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import bif_lightning as bl
from matrix_run import Case, callback, fit, loader, points
from zoo import Measured

pytestmark = pytest.mark.trainer

SNAPSHOTS, WARM_UP, EVERY = 60, 20, 10
MOST = 60_000
"""Bytes that the process may grow by a snapshot: allocators keep some."""


class Meter(L.Callback):
    """Reads what the process holds, every so many steps."""

    def __init__(self) -> None:
        self.readings: list[dict[str, int]] = []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step % EVERY == 0:
            gc.collect()
            self.readings.append(reading())


def reading() -> dict[str, int]:
    objects = gc.get_objects()
    ours = Counter(type(o).__name__ for o in objects if str(type(o).__module__).startswith("bif_lightning"))
    tensors = sum(issubclass(type(o), torch.Tensor) for o in objects)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    files = len(list(Path("/proc/self/fd").iterdir()))
    counts = {"bytes": resident, "files": files, "threads": threading.active_count(), "tensors": tensors}
    return counts | {f"{name} objects": count for name, count in ours.items()}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of the process from /proc")
def test_many_snapshots_leave_nothing_behind(tmp_path: Path) -> None:
    meter = Meter()
    case = Case(
        build=Measured, data=lambda: loader(points(80)), callbacks=lambda folder: [meter],
        trainer={"max_epochs": -1, "max_steps": SNAPSHOTS, "logger": False},
    )  # fmt: skip
    chains = bl.Chains(num_chains=2, num_draws=2, batch_size=8)
    fit(case, tmp_path, callback(tmp_path, every_n_train_steps=1, chains=chains, verify_restore="first"))
    assert len(list((tmp_path / "bif").glob("step=*.h5"))) == SNAPSHOTS
    warm = meter.readings[WARM_UP // EVERY :]
    assert len(warm) == (SNAPSHOTS - WARM_UP) // EVERY
    first, last = warm[0], warm[-1]
    grown = {name: (first.get(name, 0), count) for name, count in last.items() if count > first.get(name, 0)}
    grown.pop("bytes", None)
    assert grown == {}
    assert last["bytes"] - first["bytes"] < MOST * (SNAPSHOTS - WARM_UP), [r["bytes"] for r in meter.readings]
