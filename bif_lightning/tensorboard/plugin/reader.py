"""One reader process: answers questions about files until its input ends. `readers` starts it.

A hostile file can crash HDF5, which is written in C. It then crashes this process, which is replaced, and not
TensorBoard.
"""

import os
import signal
import sys
import warnings
from typing import IO

SECONDS = 10
"""Timeout of one question; the process then ends."""
_MOST_BYTES = 4 << 30


def serve(source: IO[bytes], to: IO[bytes]) -> None:
    """Answer every question of `source`, until it ends."""
    from bif_lightning.tensorboard.plugin.dispatch import read
    from bif_lightning.tensorboard.plugin.protocol import receive_question, send_answer

    while question := receive_question(source):
        _alarm(SECONDS)
        answer = read(question.name, question.here, question.there, question.parameters)
        _alarm(0)
        send_answer(to, answer)


def _alarm(seconds: int) -> None:
    # The kernel ends the process even where a hang in C holds Python's lock, and the server is long gone.
    if sys.platform != "win32":
        signal.alarm(seconds)


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_AS)
        allowed = _MOST_BYTES if most == resource.RLIM_INFINITY else min(_MOST_BYTES, most)
        resource.setrlimit(resource.RLIMIT_AS, (allowed, most))


def main() -> None:
    """Serve standard input and output."""
    warnings.simplefilter("ignore")
    # The server decides when this ends: control-C in its terminal reaches the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Printed text must not mix with the answers.
    to = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _limit_memory()
    serve(sys.stdin.buffer, to)


if __name__ == "__main__":
    main()
