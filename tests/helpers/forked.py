"""Processes that start at once: forked of one that has imported what takes seconds, and no more than that."""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# The processes of tests/mutants.py are forked of such a server themselves, and have nothing but a few tests to run.
CONTEXT: Any = multiprocessing.get_context(os.environ.get("TESTS_START_METHOD", "forkserver"))
# Not the package: the server would look for it elsewhere than these tests, which may be those of a copy.
CONTEXT.set_forkserver_preload(
    ["torch", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.utils.cpp_extension",
     "torch.utils.tensorboard", "lightning", "lightning.pytorch.callbacks", "lightning.pytorch.cli", "torchmetrics",
     "h5py", "jaxtyping", "xarray", "scipy.stats"]
)  # fmt: skip


def start(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """A process that calls a function of a module; its exit status is 1 where that raises."""
    process = CONTEXT.Process(target=_begin, args=(function, *arguments))
    process.start()
    return process


def _begin(function: Callable[..., Any], *arguments: Any) -> None:
    """With short forecasts, as in the tests' own process (conftest.py)."""
    from bif_lightning.estimation import forecast

    forecast._TIMED_SECONDS = 0.0
    function(*arguments)


def together(function: Callable[..., Any], world_size: int, *arguments: Any) -> None:
    """Call function(rank, *arguments) in a process for each rank, and wait for all."""
    processes = [start(function, rank, *arguments) for rank in range(world_size)]
    try:
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * world_size
    finally:
        for process in processes:
            process.kill()


def as_main(
    path: str, arguments: Sequence[str], folder: Path, streams: dict[int, str], environment: Mapping[str, str] = {}
) -> None:
    """In a process of its own: run a script in a folder as Python would, with standard streams, by number, on files."""
    os.environ |= environment
    os.chdir(folder)
    for number, name in streams.items():
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOCTTY), number)
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")
