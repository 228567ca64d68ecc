"""Threads of this process that count steps and stop together."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Progress = Callable[[int, int], None]
"""Called as (steps done, steps in all) after every step of this process. An exception from it ends the work."""

T = TypeVar("T")


class StoppedError(BaseException):
    """Another thread failed or the user interrupted, so that this thread ends. Handlers of Exception let it pass."""


class Steps:
    """Counter of the steps of all threads, at which threads can be stopped.

    Args:
        total: steps in all.
        progress: called after every step; an exception from it ends all threads, and `on_threads` raises it.
    """

    def __init__(self, total: int = 0, progress: Progress | None = None) -> None:
        self.total, self.progress = total, progress
        self.error: BaseException | None = None
        self._done, self._lock, self._stopped = 0, threading.Lock(), threading.Event()

    def tick(self, count: int = 1) -> None:
        """Count further steps.

        Raises:
            StoppedError: the work ends.
        """
        self.check()
        if self.progress is None:
            return
        with self._lock:
            self._done += count
            try:
                self.progress(self._done, self.total)
            except BaseException as error:
                self.error = self.error or error
                self.stop()
                raise StoppedError from error

    def check(self) -> None:
        """Count nothing.

        Raises:
            StoppedError: the work ends.
        """
        if self._stopped.is_set():
            raise StoppedError

    def stop(self) -> None:
        """End every thread at its next step."""
        self._stopped.set()


def offset_progress(progress: Progress | None, before: int = 0, after: int = 0) -> Progress | None:
    """Progress of a part of some work, with `before` and `after` steps around it."""
    if progress is None:
        return None
    return lambda done, total: progress(before + done, before + total + after)


def still_progress(progress: Progress | None, done: int, total: int) -> Progress | None:
    """Progress of work whose length was not known before: it says where it stood, and can end the work all the same."""
    return None if progress is None else lambda _done, _total: progress(done, total)


def on_threads(calls: Sequence[Callable[[], T]], workers: int, intra_op: int, steps: Steps | None = None) -> list[T]:
    """Results of the calls, in order, with `workers` at a time and `intra_op` torch threads each.

    An exception in any of them, or here, ends the others at their next step. A single worker is the calling thread.

    Raises:
        BaseException: the first exception of a call or of `steps.progress`.
    """
    steps = steps or Steps()
    try:
        if workers == 1:
            return [call() for call in calls]
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(intra_op,)) as pool:
            futures = [pool.submit(call) for call in calls]
            try:
                finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in finished:
                    if (error := future.exception()) is not None:
                        raise error
                return [future.result() for future in futures]
            except BaseException:
                steps.stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    except StoppedError:
        if steps.error is None:
            raise
        raise steps.error from None
