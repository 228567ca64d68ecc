"""Progress of a snapshot in the Trainer's Rich or tqdm bar, or as lines, and of many snapshots offline."""

import math
import os
import sys
import time
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.callbacks import ProgressBar
from lightning_utilities.core.rank_zero import rank_zero_info
from tqdm.auto import tqdm

from bif_lightning.distributed.threads import Progress

_REFRESH_SECONDS = 0.1
_LINE_SECONDS = 10.0


@contextmanager
def progress_of(trainer: Any, label: str) -> Generator[Progress]:
    """A progress function for one snapshot that shows the steps done and the time left."""
    bar = trainer.progress_bar_callback
    if isinstance(bar, OfflineProgress):
        with bar.steps(label) as progress:
            yield progress
        return
    names = {base.__name__ for base in type(bar).__mro__}
    if "RichProgressBar" in names and bar.progress is not None:
        with _rich(bar.progress, label) as progress:
            yield progress
    elif "TQDMProgressBar" in names and bar.is_enabled:
        with _tqdm(label) as progress:
            yield progress
    else:
        yield _lines(label)


@contextmanager
def _rich(display: Any, label: str) -> Generator[Progress]:
    task = display.add_task(f"[magenta]{label}", total=1)
    shown = 0.0

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown > _REFRESH_SECONDS or done == total:
            shown = now
            # Lightning draws this bar only when asked to, as at the end of a batch, and a snapshot lies between two.
            display.update(task, completed=done, total=total, refresh=True)

    try:
        yield show
    finally:
        display.remove_task(task)


@contextmanager
def _tqdm(label: str) -> Generator[Progress]:
    # Draw here instead of in `update`: if the terminal fails, tqdm's `update` leaves a lock held that every bar of the
    # process needs.
    with tqdm(desc=label, unit="step", leave=False, position=1, dynamic_ncols=True, delay=_REFRESH_SECONDS) as bar:
        shown = 0.0

        def show(done: int, total: int) -> None:
            nonlocal shown
            now = time.monotonic()
            bar.total, bar.n = total, done
            if now - shown > _REFRESH_SECONDS:
                shown = now
                with bar.get_lock():
                    bar.refresh(nolock=True)

        yield show


def _lines(label: str) -> Progress:
    """Progress as a line every ten seconds."""
    started = shown = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if done and now - shown > _LINE_SECONDS:
            shown = now
            left = (now - started) * (total - done) / done
            rank_zero_info(f"{label}: {done} of {total} steps, {left:.0f} s left")

    return show


def fits_bars() -> bool:
    """Whether standard error is a terminal of known width."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        return False


@dataclass
class Throughput:
    """Dumps per second by all workers together, without idle time.

    Attributes:
        done, total: numbers of dumps and of known snapshots.
        part: fraction of the current snapshot that is done.
        idle: seconds in which nothing was due.
        first: number of dumps at the first count.
        began: time at which work on the first snapshot began; None before.
    """

    done: int = 0
    total: int = 0
    part: float = 0.0
    idle: float = 0.0
    first: int | None = None
    began: float | None = None

    def count(self, done: int, total: int) -> None:
        """Set the numbers of dumps and of known snapshots."""
        self.first = done if self.first is None else self.first
        self.done, self.total = done, total

    @property
    def left(self) -> float:
        """Seconds until all known snapshots are done; infinite before the first progress."""
        came = self.done + self.part - (self.first or 0)
        if self.began is None or came <= 0:
            return math.inf
        return (time.monotonic() - self.began - self.idle) / came * (self.total - self.done - self.part)


class OfflineProgress(ProgressBar):
    """Dumps done, time left and steps of the current snapshot: two bars on a terminal, else a line every ten seconds.

    It acts as the progress bar of a Trainer, which makes printed lines appear above it.

    Args:
        terminal: draw bars on standard error; otherwise print lines.
    """

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal, self.pace = terminal, Throughput()
        self._enabled, self._shown = True, -math.inf
        self._bar: Any = None

    @property
    def is_enabled(self) -> bool:
        """Whether progress is shown, as on rank 0."""
        return self._enabled

    def enable(self) -> None:
        """Show progress."""
        self._enabled = True

    def disable(self) -> None:
        """Stop showing progress."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line above the bars."""
        text = str(kwargs.get("sep", " ")).join(map(str, args))
        if self._bar is None:
            rank_zero_info(text)
        elif self._enabled:
            tqdm.write(text, file=sys.stderr)

    @contextmanager
    def shown(self) -> Generator[None]:
        """Show the bar over all snapshots while the block runs."""
        if not (self.terminal and self._enabled):
            yield
            return
        layout = "{desc} |{bar}| {percentage:3.0f}%{postfix}"
        with (
            tqdm(
                bar_format=layout, total=1, leave=False, position=0, dynamic_ncols=True, delay=_REFRESH_SECONDS
            ) as bar,
            _warnings_above(),
        ):
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None

    def count(self, done: int, total: int) -> None:
        """Set the numbers of dumps and of known snapshots, and show them."""
        self.pace.count(done, total)
        self._show()

    @contextmanager
    def steps(self, label: str) -> Generator[Progress]:
        """A progress function for one snapshot."""
        with ExitStack() as stack:
            inner = None if self._bar is None else stack.enter_context(_tqdm(label))
            self.pace.began = self.pace.began or time.monotonic()

            def show(done: int, total: int) -> None:
                self.pace.part = done / total
                if inner is not None:
                    inner(done, total)
                self._show(f"; {label}: {done} of {total} steps")

            try:
                yield show
            finally:
                self.pace.part = 0.0

    def _show(self, also: str = "") -> None:
        now, pace = time.monotonic(), self.pace
        if not self._enabled or now - self._shown < (_LINE_SECONDS if self._bar is None else _REFRESH_SECONDS):
            return
        self._shown = now
        counted = f"{pace.done} of {pace.total} dumps"
        left = f"about {tqdm.format_interval(pace.left)} left" if 0 < pace.left < math.inf else ""
        if self._bar is None:
            rank_zero_info(f"BIF: {counted}{', ' if left else ''}{left}{also}")
            return
        bar = self._bar
        bar.total, bar.n, bar.desc, bar.postfix = max(1, pace.total), pace.done + pace.part, f"BIF: {counted}", left
        with bar.get_lock():
            bar.refresh(nolock=True)


@contextmanager
def _warnings_above() -> Generator[None]:
    """Print warnings above the bars."""
    before = warnings.showwarning

    def show(*args: Any, **kwargs: Any) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            before(*args, **kwargs)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
