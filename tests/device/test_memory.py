"""The memory that an estimate takes on an accelerator, beside what it says. Metered on the simulated one."""

import pytest

from device_memory import KINDS, Measured, measured
from simulated_device.process import DeviceProcess

pytestmark = [pytest.mark.device, pytest.mark.exact]

MOST = 1.2
"""Largest ratio of what is taken to what is said."""

COPIES = "the metric and the directions are not counted as they are made (curvature/kronecker.py)"
TOO_LITTLE = {"Subspace": COPIES, "Subspace, Euclidean": COPIES}
"""Kinds that take more than they say."""
QUICK = ("SGLD with RMSprop", "Pairs", "Subspace, Euclidean")


def on_device(kind: str) -> Measured:
    return measured(kind, "sim")


def known(kind: str) -> list[pytest.MarkDecorator]:
    reason, some = TOO_LITTLE.get(kind), [] if kind in QUICK else [pytest.mark.slow]
    return some if reason is None else [*some, pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)]


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=known(kind)) for kind in KINDS])
def test_an_estimate_takes_what_it_says(sim: DeviceProcess, kind: str) -> None:
    assert sim(on_device, kind).ratio < MOST


@pytest.mark.parametrize("kind", ["Pairs", pytest.param("Subspace", marks=pytest.mark.slow)])
def test_an_estimate_leaves_no_memory_behind(sim: DeviceProcess, kind: str) -> None:
    assert sim(on_device, kind).left == 0
