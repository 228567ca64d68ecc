"""A limit on the share of training time that the callback takes.

The share is seconds in the callback divided by seconds since training started, including the callback's. The budget
only reads clocks, so it does not affect training. A due snapshot is skipped if it would exceed the share now, or if it
and the last snapshot together would exceed it at the end of training.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException


def budget_of(share: float | None) -> "TimeBudget":
    """Create the budget for a share given by the user; None sets no limit.

    Raises:
        MisconfigurationException: the share is not a number between 0 and 1.
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
    """The seconds spent and allowed.

    Attributes:
        share: share of training time that the callback may take; 1 for no limit.
        clock: function that returns seconds since any fixed time.
        spent: seconds in the callback.
        due: number of snapshots that were due so far.
        snapshots: seconds that each snapshot took.
        skipped: number of due snapshots that were not taken.
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
        """Start the clock when training starts or resumes."""
        self._before, self._started = self.elapsed, self.clock()

    def stop(self) -> None:
        """Stop the clock when training ends or pauses."""
        self._before, self._started = self.elapsed, None

    @property
    def elapsed(self) -> float:
        """Seconds since training started, including earlier fits of the same run."""
        return self._before + (0.0 if self._started is None else self.clock() - self._started)

    @contextmanager
    def spending(self) -> Generator[None]:
        """Count the seconds of the block as spent."""
        started = self.clock()
        try:
            yield
        finally:
            self.spent += self.clock() - started

    @contextmanager
    def timed_snapshot(self) -> Generator[None]:
        """Count the seconds of the block as those of a snapshot."""
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
        """Share of time taken so far."""
        return self.spent / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def training(self) -> float:
        """Seconds of training so far, without the callback's."""
        return self.elapsed - self.spent

    def within_budget(self, expected: float, reserved: float = 0.0, ahead: float = 0.0) -> bool:
        """Whether a snapshot stays within the budget, both now and at the end of training.

        Args:
            expected: seconds of the snapshot.
            reserved: seconds of the last snapshot.
            ahead: seconds of training until the end.
        """
        return self._pays_for(expected, 0.0) and self._pays_for(expected + reserved, ahead)

    def _pays_for(self, more: float, ahead: float) -> bool:
        return self.spent + more <= self.share * (self.elapsed + more + ahead)

    def ahead(self, done: float) -> float:
        """Seconds of training until the end, given the fraction `done` of it; 0 if none is done."""
        return self.training * (1 / done - 1) if done > 0 else 0.0

    def expected(self, forecast: float) -> float:
        """Expected seconds of the next snapshot: the mean of earlier ones, or the forecast before the first."""
        return sum(self.snapshots) / len(self.snapshots) if self.snapshots else forecast

    def state(self) -> dict[str, Any]:
        """The budget as plain values, for a checkpoint."""
        counts = {"due": self.due, "skipped": self.skipped}
        return {"spent": self.spent, "elapsed": self.elapsed, "snapshots": list(self.snapshots), **counts}

    def load(self, state: dict[str, Any]) -> None:
        """Continue with the values of a checkpoint."""
        self.spent, self.due, self.skipped = state["spent"], state["due"], state["skipped"]
        self.snapshots = list(state["snapshots"])
        self._before, self._started = state["elapsed"], None

    def __str__(self) -> str:
        skipped = f", {self.skipped} of {self.due} due snapshots skipped" if self.skipped else ""
        return (
            f"{len(self.snapshots)} snapshots{skipped}; {100 * self.used:.1f} % of {self.elapsed:.0f} s of training, "
            f"of a budget of {100 * self.share:g} %"
        )
