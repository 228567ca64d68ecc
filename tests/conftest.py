"""Settings of all tests: array checks in the whole package, the same hypothesis cases in every run; shared fixtures."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

# The same cases in every run; `pytest --hypothesis-profile=default` looks for new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _switches_of_torch_as_they_were() -> Iterator[None]:
    """A Trainer sets some for the whole process; the next test of this worker must not compute other bits for it."""
    before = torch.get_deterministic_debug_mode(), torch.get_num_threads(), torch.get_default_dtype()
    yield
    torch.set_deterministic_debug_mode(before[0])
    torch.set_num_threads(before[1])
    torch.set_default_dtype(before[2])


@pytest.fixture(autouse=True)
def _no_array_checks_in_statistical_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    """They take many small steps; array types are checked in all other tests."""
    if request.node.get_closest_marker("statistical") is None:
        yield
        return
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def dumps(tmp_path: Path) -> Any:
    """Steps of the dumps that a run left."""
    return lambda folder="bif": sorted(int(path.stem.split("=")[1]) for path in (tmp_path / folder).glob("step=*.h5"))
