"""Many train x query examples from chains to TensorBoard, in a process that may not have the memory for it.

Prints a line of JSON: seconds, peak of anonymous memory, sizes, and what `test_matrices_large` compares.
"""

import json
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from bif_lightning.archive.read import open_run, top, trajectory
from bif_lightning.archive.write import write_dump, write_samples
from bif_lightning.config import SGLD, Chains
from bif_lightning.estimation.estimate import estimate
from bif_lightning.results.estimate import Estimate
from bif_lightning.results.examples import Samples
from bif_lightning.tensorboard.summaries import write_summaries

SAMPLER = SGLD(step_size=0.01, inverse_temperature=30.0, localization=10.0)
CHAINS = Chains(num_chains=2, num_draws=8, thinning=2, batch_size=64)
FEATURES, CLASSES = 16, 10


@dataclass
class Clock:
    """Seconds of each part, and the peak of anonymous resident memory while it was under way, in bytes."""

    seconds: dict[str, float] = field(default_factory=dict[str, float])
    peaks: dict[str, int] = field(default_factory=dict[str, int])
    present: str = ""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started, self.present = time.perf_counter(), name
        yield
        self.seconds[name] = round(time.perf_counter() - started, 2)

    @contextmanager
    def sampling(self) -> Iterator[None]:
        done = threading.Event()

        def sample() -> None:
            while not done.wait(0.01):
                self.peaks[self.present] = max(self.peaks.get(self.present, 0), status("RssAnon"))

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def status(name: str) -> int:
    """A size of this process that Linux counts, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def regression(size: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, FEATURES, generator=generator)
    return TensorDataset(x, x[:, 0] - 0.5 * x[:, 1] + 0.3 * torch.randn(size, generator=generator))


def loss(module: nn.Module, batch: list[Tensor]) -> Tensor:
    return (module(batch[0])[:, 0] - batch[1]).square()


def estimated(train: Dataset, query: Dataset, training: Dataset, *, labels: bool = True) -> Estimate:
    """Chains depend on the training data alone: they are the same whatever is attributed."""
    torch.manual_seed(0)
    of = {f"{side}_labels": np.arange(len(data)) % CLASSES for side, data in (("train", train), ("query", query))}
    return estimate(
        nn.Linear(FEATURES, 1), loss, train, query, sampler=SAMPLER, chains=CHAINS, training_data=training,
        eval_batch_size=5000, **(of if labels else {}),
    )  # fmt: skip


def described(side: str, size: int) -> Samples:
    ids = tuple(f"{side}-{row}" for row in range(size))
    return Samples(ids=ids, index=np.arange(size), labels=np.arange(size) % CLASSES)


def whole(folder: Path, train: int, query: int, clock: Clock) -> Estimate:
    """Estimate, write and log so many examples."""
    with clock.part("estimate"):
        found = estimated(regression(train, 1), regression(query, 2), regression(1000, 3))
    of_train, of_query = described("train", train), described("query", query)
    with clock.part("dump"):
        write_samples(folder, of_train, of_query)
        write_dump(folder, found, step=5, epoch=0, train=of_train, query=of_query)
    with clock.part("tensorboard"), SummaryWriter(folder / "tensorboard") as writer:
        write_summaries(writer, found, step=5, train=of_train, query=of_query)
    return found


def rows_alone(rows: list[int], train: int, query: int) -> Estimate:
    """The same chains, attributing these train examples only."""
    return estimated(Subset(regression(train, 1), rows), regression(query, 2), regression(1000, 3), labels=False)


def main(folder: Path, train: int, query: int, allowance: int) -> None:
    torch.set_num_threads(2)
    whole(folder / "warm", 300, 20, Clock())  # imports, fonts, thread pools
    clock, before = Clock(), status("VmData")
    # Private memory that can be written: what is mapped from a file does not count.
    resource.setrlimit(resource.RLIMIT_DATA, (before + allowance, resource.RLIM_INFINITY))
    with clock.sampling():
        anonymous = status("RssAnon")
        found = whole(folder, train, query, clock)
        with clock.part("top"):
            run = open_run(folder)
            best = top(run, 3, k=5)
        with clock.part("trajectory"):
            pair = trajectory(run, train - 1, 3)
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    rows = [0, train // 2, train - 1]
    alone = rows_alone(rows, train, query)
    column = found.influence[:, 3]
    sys.stdout.write(
        json.dumps(
            {
                "seconds": clock.seconds,
                "peaks": {part: peak - anonymous for part, peak in clock.peaks.items()},
                "file_bytes": (folder / "step=000000005.h5").stat().st_size,
                "matrix_bytes": 4 * found.influence.nbytes,
                "alone": [alone.influence.tolist(), alone.correlation.tolist()],
                "found": [found.influence[rows].tolist(), found.correlation[rows].tolist()],
                "top": best["train"].tolist(),
                "expected_top": [*np.argsort(column)[:5].tolist(), *np.argsort(-column)[:5].tolist()],
                "pair": pair["value"].tolist(),
                "expected_pair": [float(found.correlation[train - 1, 3])],
                "forecast": found.cost.extra_bytes,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
