"""Processes that read dumps for the server, and are killed when a file hangs or crashes them."""

import logging
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from queue import Empty, LifoQueue
from threading import Timer

from bif_lightning.tensorboard.plugin.answers import Answer, RefusedError
from bif_lightning.tensorboard.plugin.protocol import Question, receive_answer, send_question

logger = logging.getLogger(__name__)

_MODULE = "bif_lightning.tensorboard.plugin.reader"
_SLOW = RefusedError(
    503, "Reading took too long, and was ended; the file may be damaged. Try again, or ask for less at once."
)
_BUSY = RefusedError(503, "All readers are busy; try again.")


class Readers:
    """A pool of reader processes, started when they are first needed.

    Args:
        count: number of processes.
        seconds: timeout of one question; the process is then killed and replaced.
        command: starts one process.
    """

    def __init__(self, count: int = 2, seconds: float = 10.0, command: list[str] | None = None) -> None:
        self.count = count
        self._seconds = seconds
        self._command = command or [sys.executable, "-P", "-m", _MODULE]
        self._idle: LifoQueue[_Reader] = LifoQueue()
        for _ in range(count):
            self._idle.put(_Reader(self._command))

    def ask(self, question: Question) -> Answer:
        """The answer to a question. Safe to call from several threads; nothing is raised."""
        try:
            reader = self._idle.get(timeout=self._seconds)
        except Empty:
            return replace(_BUSY.answer(), headers={"Retry-After": "1"})
        try:
            return reader.ask(question, self._seconds)
        finally:
            self._idle.put(reader)

    @property
    def idle(self) -> int:
        """Approximate number of idle processes."""
        return self._idle.qsize()

    def warm(self) -> None:
        """Start the processes, so that the first question does not wait for them."""
        for reader in (readers := self._take_idle()):
            reader.start()
        for reader in readers:
            self._idle.put(reader)

    def close(self) -> None:
        """End the processes."""
        for reader in self._take_idle():
            reader.stop()

    def _take_idle(self) -> "list[_Reader]":
        found: list[_Reader] = []
        while True:
            try:
                found.append(self._idle.get_nowait())
            except Empty:
                return found


class _Reader:
    """One process; it starts at the first question, and again after it was ended."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            # One thread each: the readers themselves run side by side.
            alone = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            self._process = subprocess.Popen(
                self._command, env=os.environ | alone, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        return self._process

    def ask(self, question: Question, seconds: float) -> Answer:
        try:
            answer = self._exchange(self.start(), question, seconds)
        # It cannot be started, or it ended while it answered.
        except (OSError, ValueError):
            answer = None
        if answer is not None:
            return answer
        self.stop()
        logger.warning("a reader of influence dumps was ended while it answered %r", question.name)
        return _SLOW.answer()

    def _exchange(self, process: subprocess.Popen[bytes], question: Question, seconds: float) -> Answer | None:
        assert process.stdin is not None
        assert process.stdout is not None
        killer = Timer(seconds, process.kill)
        killer.start()
        try:
            send_question(process.stdin, question)
            return receive_answer(process.stdout)
        finally:
            killer.cancel()

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
