"""Processes with a device each share the work over a group that takes tensors of devices alone, as NCCL does."""

import pickle
from pathlib import Path

import numpy as np
import pytest

import device_ranks
import simulated_device
from bits import differences
from device_estimates import estimated
from forked import together
from simulated_device.process import DeviceProcess

pytestmark = [pytest.mark.device, pytest.mark.bitwise, pytest.mark.slow]

ALONE, WITH_GLOO = simulated_device.GROUP, f"cpu:gloo,sim:{simulated_device.GROUP}"


@pytest.mark.parametrize("backend", [ALONE, WITH_GLOO])
def test_two_devices_give_the_same_bits_as_one(sim: DeviceProcess, tmp_path: Path, backend: str) -> None:
    together(device_ranks.work, 2, 2, str(tmp_path), backend)
    both = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2)]
    for name in device_ranks.SHARED:
        expected, tokens = sim(estimated, name, "sim")
        for found, _ in both:
            here, theirs = found[name]
            assert differences(here, expected) == [], name
            assert tokens is None or np.array_equal(theirs, tokens)

    for _, collectives in both:
        assert (collectives > 0) == (backend == ALONE), "objects travel by gloo where it is there"
