"""Fixtures of tests on the simulated accelerator, for their conftest files."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from simulated_device import build
from simulated_device.process import DeviceProcess, begin

HERE = "SIMULATED_DEVICE_HERE"
"""Environment variable of a process that has the accelerator itself, since it runs no other tests: that of a mutant."""


@pytest.fixture(scope="session")
def built() -> None:
    """The accelerator is compiled; without a compiler, tests of it are skipped with the reason."""
    if why := build.why_not():
        pytest.skip(why)
    build.library()  # the first worker compiles; its own error says more than that of a process


@pytest.fixture(scope="session")
def sim(built: None) -> Iterator[Callable[..., Any]]:
    """Calls functions of test files where the accelerator "sim" is."""
    if os.environ.get(HERE):
        begin()
        yield lambda function, *args, **kwargs: function(*args, **kwargs)
        return
    process = DeviceProcess()
    yield process
    process.end()
