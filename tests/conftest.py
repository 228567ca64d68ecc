"""Settings of all tests: array checks in the whole package, the same hypothesis cases in every run; shared fixtures."""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Read when torch is loaded, here and in all processes that tests start. Threads that wait would spin for as long as
# other work waits for their cores: that took more time than the tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import config

import array_types

# Before the package is first imported: every array annotation of it is checked at every call.
array_types.install("bif_lightning")

# A shell makes its background jobs ignore Control-C, and they all that they start: tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Processes of pytest-xdist share the cores; more threads than these only wait for one another.
CORES = torch.get_num_threads()
SHARE = max(1, CORES // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
torch.set_num_threads(SHARE)

# The same cases in every run; `pytest --hypothesis-profile=default` looks for new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the longest tests, which are those that ask for the most time, come first: else one process might have
    to end them while the others have nothing left."""
    longest: dict[Path, float] = {}
    for item in items:
        timeout = item.get_closest_marker("timeout")
        longest[item.path] = max(longest.get(item.path, 0.0), timeout.args[0] if timeout else 0.0)
    items.sort(key=lambda item: -longest[item.path])


def pytest_collection_finish() -> None:
    """What is imported stays: looking for garbage in it takes a second each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A training has all cores, as that of a user: also chains on several threads must leave it as it was.

    A hook, not a fixture: those of a module come before those of a test, and a training that one of them runs must have
    the bits of one in the test.
    """
    torch.set_num_threads(CORES if item.get_closest_marker("trainer") else SHARE)


@pytest.fixture(autouse=True)
def _switches_of_torch_as_they_were() -> Iterator[None]:
    """A Trainer sets some for the whole process; the next test of this worker must not compute other bits for it."""
    before = torch.get_deterministic_debug_mode(), torch.get_default_dtype()
    yield
    torch.set_deterministic_debug_mode(before[0])
    torch.set_default_dtype(before[1])


@pytest.fixture(autouse=True)
def _no_array_checks_in_statistical_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    """They take many small steps; array types are checked in all other tests."""
    if request.node.get_closest_marker("statistical") is None:
        yield
        return
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _forecasts_from_a_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """To forecast what a snapshot takes, each of seven operations is timed for 0.05 s: as long as all else in a small
    training with the callback."""
    if (forecast := sys.modules.get("bif_lightning.estimation.forecast")) is not None:
        monkeypatch.setattr(forecast, "_TIMED_SECONDS", 0.0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def dumps(tmp_path: Path) -> Any:
    """Steps of the dumps that a run left."""
    return lambda folder="bif": sorted(int(path.stem.split("=")[1]) for path in (tmp_path / folder).glob("step=*.h5"))
