"""A training in which user code fails at a chosen visit to a chosen point of a snapshot."""

import io
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import Dataset

import bif_lightning as bl
import zoo
from bif_lightning.trainer.guard.fingerprint import fingerprint
from matrix_run import SAMPLER, Classifier, points


class Place(NamedTuple):
    """A visit to a point, by its number among those from one place in the code."""

    point: str
    calls: str
    visit: int


class Fuse:
    """Counts the visits of user code to each point while lit, and raises at one.

    It stands where no guard reaches: what it counts is not put back.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lit = False
        self.blown: list[Due] = []
        self.visits: Counter[str] = Counter()
        self.places: Counter[tuple[str, str]] = Counter()
        self.due: Due | None = None
        self.error: BaseException = RuntimeError("not set")

    def light(self, due: "Due | None", error: BaseException) -> None:
        """Count from nothing; raise `error` at visit `due`: a place, or (point, number)."""
        self.lit, self.due, self.error, self.visits, self.places = True, due, error, Counter(), Counter()

    def visit(self, point: str) -> None:
        """User code passes here."""
        if not self.lit:
            return
        calls = calls_from_snapshot()
        with self.lock:
            self.visits[point] += 1
            self.places[point, calls] += 1
            now = (point, self.visits[point]), Place(point, calls, self.places[point, calls])
        if self.due in now:
            self.blown.append(self.due)
            raise self.error


Due = Place | tuple[str, int]
FUSE = Fuse()


def calls_from_snapshot() -> str:
    """File and line of each call that led here, from the snapshot or the start of the thread on."""
    frame, lines = sys._getframe(2), list[str]()
    while frame is not None and frame.f_code is not Surviving.attempt.__code__:
        lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        frame = frame.f_back
    return "\n".join(lines)


class Odd(NamedTuple):
    """A batch that is not stacked in memory, so that the data are read at every step."""

    x: Tensor
    y: Tensor


class Fragile(Dataset[Any]):
    """Reads that can fail."""

    def __init__(self, size: int, seed: int) -> None:
        self.data = points(size, seed)
        self.reads = 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads += 1
        FUSE.visit("read")
        return self.data[index]


def collate(items: list[Any]) -> Odd:
    FUSE.visit("collate")
    return Odd(torch.stack([x for x, _ in items]), torch.stack([y for _, y in items]))


def loss_fn(module: Any, batch: Any) -> Tensor:
    module.calls.append(len(batch.y))
    FUSE.visit("loss")
    return F.cross_entropy(module.body(batch.x), batch.y, reduction="none")


def margin(module: Any, batch: Any) -> Tensor:
    FUSE.visit("observable")
    return module.body(batch.x).topk(2).values.diff(dim=1)[:, 0]


class Breakable(Classifier):
    """BatchNorm, dropout, a list that the loss grows, and hooks that can fail."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(*zoo.mlp(nn.BatchNorm1d(8), nn.Dropout(0.2))))
        self.calls: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.calls.append(len(batch[1]))
        loss = F.cross_entropy(self.body(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        FUSE.visit("before transfer")
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        FUSE.visit("after transfer")
        return Odd(batch[0] + 0.01 * torch.randn(()), batch[1]) if self.training else batch


class Journal(Logger):
    """A logger that can fail, and that has a name and no files."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int | None, list[str]]] = []

    name, version = "journal", 0

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        FUSE.visit("logger")
        self.lines.append((step, sorted(metrics)))


class Screen(io.StringIO):
    """A terminal that can go away."""

    def write(self, text: str) -> int:
        FUSE.visit("screen")
        return len(text)


class Surviving(bl.BIFCallback):
    """The callback, with a fuse in every snapshot; notes what each left other than it was, and goes on after it.

    Attributes:
        plan: where to fail, one a snapshot; None for nowhere.
        error: what to raise there.
        disturbed: by snapshot, what differs from before.
        visits: to the points in each snapshot.
        places: from where they were visited in the last.
    """

    plan: list[Due | None]
    error: BaseException

    def prepare(self, plan: list[Due | None], error: BaseException) -> "Surviving":
        self.plan, self.error = list(plan), error
        self.disturbed: list[Any] = []
        self.visits: list[Counter[str]] = []
        FUSE.blown.clear()
        return self

    def attempt(self, trainer: Any, module: Any) -> None:
        """One snapshot."""
        super()._take(trainer, module)

    def _take(self, trainer: Any, module: Any, **_: bool) -> None:
        due = self.plan.pop(0) if self.plan else None
        before = condition(trainer, module)
        FUSE.light(due, self.error)
        try:
            self.attempt(trainer, module)
        except KeyboardInterrupt:
            if not isinstance(self.error, KeyboardInterrupt):
                raise
        finally:
            FUSE.lit = False
            after = condition(trainer, module)
            self.disturbed += [(due, name) for name, value in before.items() if after[name] != value]
            self.visits.append(FUSE.visits)
            self.places = FUSE.places


def condition(trainer: Any, module: Any) -> dict[str, Any]:
    """All that a snapshot must leave as it was, that of the process included."""
    return fingerprint(trainer, module) | {
        "threads": sorted(thread.name for thread in threading.enumerate() if not thread.daemon),
        "intra-op threads": torch.get_num_threads(),
        "log is the class's own": "log" in vars(module),
        "loggers": [id(logger) for logger in trainer.loggers],
        "calls": list(module.calls),
        "autocast": torch.is_autocast_enabled("cpu"),
        "inference": torch.is_inference_mode_enabled(),
    }


def surviving(folder: Path, **settings: Any) -> Surviving:
    """The callback on breakable data."""
    defaults: dict[str, Any] = {
        "train": Fragile(6, 2), "query": Fragile(4, 3), "dirpath": folder / "bif", "collate_fn": collate,
        "sampler": SAMPLER, "chains": bl.Chains(num_chains=2, num_draws=2, batch_size=4),
        "every_n_train_steps": 1, "loss_fn": loss_fn, "observables": [bl.PerExample("margin", margin)],
        "eval_batch_size": 4, "on_error": "warn", "at_end": False, "verify_restore": "never",
    }  # fmt: skip
    return Surviving(**(defaults | settings))
