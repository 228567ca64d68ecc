"""Handling of Control-C and SIGTERM during a snapshot: deferred to the next sampler step or to the snapshot's end.

Python raises KeyboardInterrupt between any two instructions of the main thread: also while the guard restores the
training, while a module holds the weights of a chain, and inside HDF5, which then cannot close its file.
"""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from bif_lightning.distributed.threads import Progress
from bif_lightning.exceptions import PreemptedError

_pending = threading.Event()


@contextmanager
def defer_interrupts() -> Generator[None]:
    """Defer the first SIGINT until `stop_if_requested` is called or the block ends; a second one acts at once.

    Does nothing if SIGINT has another handler than Python's default, in a nested block, and in threads other than the
    main one, which never get a KeyboardInterrupt.

    Raises:
        KeyboardInterrupt: at the end, if a SIGINT came and `stop_if_requested` did not raise it.
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
    """Raise the exception of a deferred signal, in the first thread that calls this.

    Raises:
        KeyboardInterrupt: a SIGINT came.
        PreemptedError: a SIGTERM came.
    """
    _stop_if_interrupted()
    if trainer.received_sigterm:
        raise PreemptedError("SIGTERM was received")


def stopping_progress(trainer: Any, progress: Progress) -> Progress:
    """The same progress function, which calls `stop_if_requested` at every step."""

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
