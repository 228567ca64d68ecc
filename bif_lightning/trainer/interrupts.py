"""Control-C and SIGTERM wait for a moment at which they can do no harm: between two steps, or after the snapshot.

Python raises KeyboardInterrupt between any two instructions of the main thread: also while the guard puts the
training back, while a module wears the weights of a chain, and inside HDF5, whose file then cannot be closed.
"""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from bif_lightning.distributed.threads import Progress
from bif_lightning.trainer.exceptions import PreemptedError

_pending = threading.Event()


@contextmanager
def defer_interrupts() -> Generator[None]:
    """Hold the first SIGINT back, until `end_if_asked` is called or the block ends; a second acts at once.

    Does nothing where SIGINT has another handler than Python's own, in a block inside this one, and in other threads
    than the main one, which never get a KeyboardInterrupt.

    Raises:
        KeyboardInterrupt: at the end, if a SIGINT came and nothing was raised for it.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    _pending.clear()
    signal.signal(signal.SIGINT, _remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _stop_if_interrupted()


def stop_if_requested(trainer: Any) -> None:
    """Raise what was held back, in whichever thread asks first.

    Raises:
        KeyboardInterrupt: a SIGINT came.
        PreemptedError: a SIGTERM came.
    """
    _stop_if_interrupted()
    if trainer.received_sigterm:
        raise PreemptedError("SIGTERM was received")


def stopping_progress(trainer: Any, progress: Progress) -> Progress:
    """This progress, every step of which may be the last: see `end_if_asked`."""

    def watched(done: int, total: int) -> None:
        stop_if_requested(trainer)
        progress(done, total)

    return watched


def _stop_if_interrupted() -> None:
    if _pending.is_set():
        _pending.clear()
        raise KeyboardInterrupt


def _remember(number: int, frame: Any) -> None:
    if _pending.is_set():
        signal.default_int_handler(number, frame)
    _pending.set()
