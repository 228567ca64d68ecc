"""The memory that an estimate takes on an accelerator, beside what it says. Metered on the simulated one."""

import pytest

from device_memory import KINDS, Measured, measured
from simulated_device.process import DeviceProcess

pytestmark = [pytest.mark.device, pytest.mark.exact]

MOST = 1.2
"""Largest ratio of what is taken to what is said."""

QUICK = ("SGLD with RMSprop", "Pairs", "Subspace, Euclidean")


def on_device(kind: str) -> Measured:
    return measured(kind, "sim")


def marks(kind: str) -> list[pytest.MarkDecorator]:
    return [] if kind in QUICK else [pytest.mark.slow]


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=marks(kind)) for kind in KINDS])
def test_an_estimate_takes_what_it_says(sim: DeviceProcess, kind: str) -> None:
    assert sim(on_device, kind).ratio < MOST


@pytest.mark.parametrize("kind", ["Pairs", pytest.param("Subspace", marks=pytest.mark.slow)])
def test_an_estimate_leaves_no_memory_behind(sim: DeviceProcess, kind: str) -> None:
    assert sim(on_device, kind).left == 0
