"""Estimates on an accelerator are those of the CPU, bit by bit, and leave nothing behind there.

Functions that a test passes to `sim` run in the process with the simulated accelerator, on one core.
"""

import gc
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bif_lightning as bl
import device_estimates as cases
import simulated_device
from bif_lightning.curvature.second_derivatives import DIFFERENCES
from bif_lightning.trainer.guard.fingerprint import encode
from bits import differences
from device_estimates import CASES, SAMPLERS, Result, estimated, without_tokens
from device_trouble import waits_of_a_step
from simulated_device.process import DeviceProcess

pytestmark = [pytest.mark.device, pytest.mark.bitwise]

ROUNDED = ("attention", "tokens", "tokens in closed form")
"""Cases in which torch takes other kernels for an accelerator than for the CPU, which round in another way."""
ROUNDING = 1e-4
"""Of the largest entry; 5e-6 was the most that was seen."""


SLOW = ("SGLD by minibatches", "SGLD in directions", "SGLD, moments", "the default", "some parameters", "labels")
"""Not because they take long, but because they are many."""
slow = pytest.mark.slow


def marks(name: str) -> list[pytest.MarkDecorator]:
    return [slow] if name in SLOW else []


def on_both(name: str, device: str = "sim") -> tuple[Result, Result]:
    return estimated(name, device), estimated(name, "cpu")


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in CASES if name not in ROUNDED])
def test_an_estimate_is_that_of_the_cpu(sim: DeviceProcess, name: str) -> None:
    (here, _), (there, _) = sim(on_both, name)
    assert differences(here, there) == []
    assert (DIFFERENCES in here.notes) == ("fused" in name)
    assert np.ptp(here.influence) > 0


@pytest.mark.parametrize("name", ROUNDED)
def test_an_estimate_by_other_kernels_differs_by_rounding(sim: DeviceProcess, name: str) -> None:
    (here, tokens), (there, expected) = sim(on_both, name)
    np.testing.assert_allclose(here.influence, there.influence, atol=ROUNDING * np.abs(there.influence).max(), rtol=0)
    np.testing.assert_allclose(here.loss_trace, there.loss_trace, rtol=ROUNDING)
    assert here.notes == there.notes
    assert (tokens is None) == (expected is None) == ("tokens" not in name)
    if tokens is not None:
        np.testing.assert_allclose(tokens, expected, atol=ROUNDING * np.abs(expected).max(), rtol=0)


def on_second_device(name: str) -> tuple[Result, int]:
    """The estimate there, and the bytes that it took of the first, which is the current one."""
    used = torch.sim.memory_allocated(0)
    torch.sim.reset_peak_memory_stats(0)
    return estimated(name, "sim:1"), torch.sim.max_memory_allocated(0) - used


@pytest.mark.parametrize("name", ["SGLD", "Subspace", "random in evaluation", "tokens"])
def test_the_second_device_is_as_good_as_the_first(sim: DeviceProcess, name: str) -> None:
    (here, _), bytes_of_first = sim(on_second_device, name)
    assert differences(here, sim(estimated, name, "sim")[0]) == []
    assert bytes_of_first == 0


def generators() -> list[str]:
    """The states of the global generators of the devices."""
    return [encode(torch.sim.get_rng_state(f"sim:{index}")) for index in range(simulated_device.DEVICES)]


def with_generators_at(seed: int, name: str) -> tuple[Result, bool]:
    """The estimate, and whether it left these generators as they were."""
    torch.sim.manual_seed_all(seed)
    before = generators()
    return estimated(name, "sim"), generators() == before


@pytest.mark.parametrize("name", ["SGLD", "Subspace", "random in evaluation"])
def test_global_generators_of_the_device_decide_nothing_and_stay(sim: DeviceProcess, name: str) -> None:
    (one, kept), (other, kept_too) = (sim(with_generators_at, seed, name) for seed in (1, 2))
    assert kept
    assert kept_too
    assert differences(one[0], other[0]) == []


def everything(module: nn.Module) -> dict[str, Any]:
    """What an estimate might leave changed: the module, the process, and the memory of both devices."""
    gc.collect()
    named = dict(module.named_parameters())
    return {
        "values": encode({name: p.detach() for name, p in named.items()}),
        "places": {name: (id(p), p.data_ptr(), p._version, p.requires_grad) for name, p in named.items()},
        "gradients": {name: (id(p.grad), encode(p.grad)) for name, p in named.items()},
        "buffers": {name: (id(b), encode(b)) for name, b in module.named_buffers()},
        "modes": [part.training for part in module.modules()],
        "devices": (generators(), torch.sim.current_device(), torch.get_default_device()),
        "generators": (encode(torch.get_rng_state()), encode(np.random.get_state()), random.getstate()),
        "process": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads()),
        "types": (torch.get_default_dtype(), torch.is_autocast_enabled("sim")),
        "memory": [torch.sim.memory_allocated(index) for index in range(simulated_device.DEVICES)],
    }


def left_changed(name: str) -> list[str]:
    """What an estimate left changed, while its result is there."""
    estimated(name, "sim")  # what is made once, such as caches of torch
    given = cases.inputs(name, "sim")
    before = everything(given["model"])
    found = bl.estimate(**given)
    after = everything(given["model"])
    assert found.influence.shape
    return [part for part in before if before[part] != after[part]]


@pytest.mark.parametrize(
    "name",
    ["SGLD", "Subspace", "random in evaluation"]
    + [
        pytest.param(n, marks=slow)
        for n in ("SGLD with RMSprop", "Pairs", "auto", "observables", "tokens", "convolutions")
    ],
)
def test_nothing_of_the_caller_is_left_changed(sim: DeviceProcess, name: str) -> None:
    assert sim(left_changed, name) == []


def without_double(name: str) -> Result:
    with simulated_device.without(torch.float64):
        return estimated(name, "sim")


def without_double_on_cpu(name: str) -> Result:
    """The remedy of the message: the model moved to the CPU."""
    with simulated_device.without(torch.float64):
        given = cases.inputs(name, "sim")
        return without_tokens(bl.estimate(**given | {"model": given["model"].cpu()}))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_device_without_float64_is_refused_with_a_remedy_that_works(sim: DeviceProcess, name: str) -> None:
    """As the device of Apple is."""
    with pytest.raises(ValueError, match=r"device sim has no float64.*model\.cpu\(\)"):
        sim(without_double, name)
    found, _ = sim(without_double_on_cpu, name)
    assert differences(found, sim(estimated, name, "cpu")[0]) == []


@pytest.mark.parametrize(("name", "copies"), [("SGLD", 2), ("SGLD with RMSprop", 2), ("Pairs", 0)])
def test_a_step_waits_for_the_copies_of_its_minibatch_alone(sim: DeviceProcess, name: str, copies: int) -> None:
    """No value of the device decides anything on the way, and nothing is computed in float64."""
    assert sim(waits_of_a_step, "sim", name) == copies
