"""Progress of a snapshot on the Trainer's own terms: its Rich or tqdm bar, or plain lines where it has neither."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info
from tqdm.auto import tqdm

from bif_lightning.trainer.interrupts import stop_if_interrupted
from bif_lightning.workers import Progress

_REFRESH_SECONDS = 0.1
_LINE_SECONDS = 10.0


@contextmanager
def progress_of(trainer: Any, label: str) -> Generator[Progress]:
    """A progress function for one snapshot; shows what is done, and when it will be finished.

    It is called between two steps, where stopping does no harm, and so raises the KeyboardInterrupt that waits.
    """
    with _display(trainer, label) as show:

        def tick(done: int, total: int) -> None:
            stop_if_interrupted()
            show(done, total)

        yield tick


@contextmanager
def _display(trainer: Any, label: str) -> Generator[Progress]:
    bar = trainer.progress_bar_callback
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
            display.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        display.remove_task(task)


@contextmanager
def _tqdm(label: str) -> Generator[Progress]:
    # Drawn here and not by `update` (a delay keeps tqdm from it at the start): where the terminal fails, tqdm leaves
    # its lock, which every bar of the process needs, in the hands of a thread that ends.
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
    """A line every ten seconds; none for what is quicker."""
    started = shown = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown > _LINE_SECONDS:
            shown = now
            left = (now - started) * (total - done) / done
            rank_zero_info(f"{label}: {done} of {total} steps, {left:.0f} s left")

    return show
