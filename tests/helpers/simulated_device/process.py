"""Processes in which functions of test files run with the simulated accelerator."""

import importlib.util
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import simulated_device
from forked import CONTEXT


class DeviceProcess:
    """A process with the simulated accelerator: calls functions of modules or test files there, one after the other.

    Arguments and results are copied: results lie on the CPU. An exception there is raised here.
    """

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=CONTEXT, initializer=begin)

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        file, name = sys.modules[function.__module__].__file__, function.__qualname__
        return self._pool.submit(_call, str(file), name, args, kwargs).result()

    def end(self) -> None:
        """Also where a function hangs."""
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()


def begin() -> None:
    """Make this process one with the accelerator, on one core."""
    torch.set_num_threads(1)
    simulated_device.install()


def _call(file: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return getattr(_loaded(file), name)(*args, **kwargs)


_LOADED: dict[str, ModuleType] = {}


def _loaded(file: str) -> ModuleType:
    """A test file as a module, loaded once, since pytest's modules have names of their own."""
    if file not in _LOADED:
        spec = importlib.util.spec_from_file_location(f"on_device_{Path(file).stem}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # for dataclasses and pickles
        spec.loader.exec_module(module)
        _LOADED[file] = module
    return _LOADED[file]
