"""Settings of all tests: helper modules, array checks in the whole package, one global seed."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

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
