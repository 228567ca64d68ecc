"""Limits the share of training time that the callback takes.

The share is  seconds in the callback / seconds since training started, the callback's own included.  Clocks are read,
and nothing else, so training is unaffected. They decide which snapshots are taken: one that is due is skipped until the
time since the start of training has paid for it, and near the end, where the rest of training would not pay for both it
and the last one.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException


def budget_of(share: float | None) -> "TimeBudget":
    """The account for a share as the user gave it; None limits nothing.

    Raises:
        MisconfigurationException: not a number between 0 and 1.
    """
    if share is None:
        return TimeBudget(1.0)
    if not isinstance(share, float) or not 0 < share < 1:
        raise MisconfigurationException(
            f"budget is {share!r}; it must be None or the callback's share of training time, above 0 and below 1, for "
            "example 0.1"
        )
    return TimeBudget(share)


@dataclass
class TimeBudget:
    """An account of seconds.

    Attributes:
        share: of training time that the callback may take; 1 for no limit.
        clock: seconds from any start.
        spent: seconds in the callback.
        due: snapshots that were due so far.
        snapshots: seconds that each snapshot took.
        skipped: snapshots that were due, and not taken.
    """

    share: float
    clock: Callable[[], float] = time.monotonic
    spent: float = 0.0
    due: int = 0
    snapshots: list[float] = field(default_factory=list[float])
    skipped: int = 0
    _before: float = 0.0
    _started: float | None = None

    def start(self) -> None:
        """Training starts, or goes on."""
        self._before, self._started = self.elapsed, self.clock()

    def stop(self) -> None:
        """Training ends, or pauses."""
        self._before, self._started = self.elapsed, None

    @property
    def elapsed(self) -> float:
        """Seconds since training started, those of earlier fits of the same run included."""
        return self._before + (0.0 if self._started is None else self.clock() - self._started)

    @contextmanager
    def spending(self) -> Generator[None]:
        """Account for the seconds within."""
        started = self.clock()
        try:
            yield
        finally:
            self.spent += self.clock() - started

    @contextmanager
    def timed_snapshot(self) -> Generator[None]:
        """Account for the seconds within as those of a snapshot."""
        before = self.spent
        with self.spending():
            yield
        self.snapshots.append(self.spent - before)

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self.share < 1

    @property
    def used(self) -> float:
        """The share so far."""
        return self.spent / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def training(self) -> float:
        """Seconds of training proper so far, without the callback's."""
        return self.elapsed - self.spent

    def within_budget(self, expected: float, reserved: float = 0.0, ahead: float = 0.0) -> bool:
        """Whether a snapshot of `expected` seconds leaves the share within the budget, both now and at the end, after
        `ahead` more seconds of training and a last snapshot of `reserved` seconds."""
        return self._pays_for(expected, 0.0) and self._pays_for(expected + reserved, ahead)

    def _pays_for(self, more: float, ahead: float) -> bool:
        return self.spent + more <= self.share * (self.elapsed + more + ahead)

    def ahead(self, done: float) -> float:
        """Seconds of training proper still to come, when a share `done` of it is done; 0 where nothing is yet."""
        return self.training * (1 / done - 1) if done > 0 else 0.0

    def expected(self, forecast: float) -> float:
        """Seconds of the next snapshot: the mean of those taken, and before the first one the forecast."""
        return sum(self.snapshots) / len(self.snapshots) if self.snapshots else forecast

    def state(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        counts = {"due": self.due, "skipped": self.skipped}
        return {"spent": self.spent, "elapsed": self.elapsed, "snapshots": list(self.snapshots), **counts}

    def load(self, state: dict[str, Any]) -> None:
        """Go on with the account of a checkpoint."""
        self.spent, self.due, self.skipped = state["spent"], state["due"], state["skipped"]
        self.snapshots = list(state["snapshots"])
        self._before, self._started = state["elapsed"], None

    def __str__(self) -> str:
        skipped = f", {self.skipped} of {self.due} due ones skipped" if self.skipped else ""
        return (
            f"{len(self.snapshots)} snapshots{skipped}; {100 * self.used:.1f} % of {self.elapsed:.0f} s of training, "
            f"for a budget of {100 * self.share:g} %"
        )
