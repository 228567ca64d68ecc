"""What surrounds an estimate on an accelerator: default devices, several of them, little memory, and clocks."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bif_lightning as bl
import device_estimates as cases
import simulated_device
import small_models as models
from bif_lightning.estimation.estimator import estimate_problem
from bif_lightning.estimation.forecast import forecast
from bits import differences
from device_estimates import Result, estimated, without_tokens
from device_trouble import (
    costly,
    influence_on_two,
    small_problem,
    under_a_default_device,
)
from simulated_device.process import DeviceProcess

pytestmark = [pytest.mark.device, pytest.mark.exact]


@pytest.mark.parametrize("name", ["SGLD", "Subspace"])
def test_a_default_device_changes_nothing(sim: DeviceProcess, name: str) -> None:
    assert differences(sim(under_a_default_device, "sim", name)[0], sim(estimated, name, "sim")[0]) == []


def test_weights_on_two_devices_are_refused_by_name(sim: DeviceProcess) -> None:
    with pytest.raises(ValueError, match=r"sim:0.*sim:1"):
        sim(influence_on_two, "sim")


def test_weights_of_one_device_are_sampled_where_the_module_lies_on_two(sim: DeviceProcess) -> None:
    assert np.isfinite(sim(influence_on_two, "sim", params=["first.*"])).all()


def with_little_memory(name: str, *, costs: bool) -> Result:
    given = cases.inputs(name, "sim") | {"loss_fn": costly if costs else models.cross_entropy}
    with simulated_device.little_memory(1 << 24):
        return without_tokens(bl.estimate(**given))


def test_little_memory_is_enough_for_a_small_model(sim: DeviceProcess) -> None:
    found, _ = sim(with_little_memory, "Subspace", costs=False)
    assert differences(found, sim(estimated, "Subspace", "cpu")[0]) == []


@pytest.mark.parametrize("name", ["SGLD", "Subspace"])
def test_without_memory_for_second_derivatives_there_is_no_estimate_by_differences(
    sim: DeviceProcess, name: str
) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        sim(with_little_memory, name, costs=True)


def out_of_memory_after_the_chains() -> tuple[Result, float]:
    """The estimate, and its LLC ratio, where nothing is left on the device once all draws are measured."""
    ended, library = list[bool](), simulated_device.library()

    def progress(done: int, total: int) -> None:
        if done == total:
            ended.append(True)

    def loss(module: nn.Module, batch: Any) -> Tensor:
        if ended and torch.is_grad_enabled():  # draws are measured without gradients, curvature with them
            library.limit_memory(0)
        return models.cross_entropy(module, batch)

    chains = bl.Chains(num_chains=2, num_draws=8, batch_size=12)
    given = cases.inputs("SGLD", "sim") | {"chains": chains, "loss_fn": loss, "progress": progress}
    try:
        found = bl.estimate(**given)
    finally:
        library.limit_memory(-1)
    return without_tokens(found), found.diagnostics.llc_ratio


def test_chains_that_are_done_are_not_lost_to_a_check_without_memory(sim: DeviceProcess) -> None:
    (found, _), ratio = sim(out_of_memory_after_the_chains)
    assert np.isfinite(found.influence).all()
    assert np.isnan(ratio)
    assert any("memory" in note for note in found.notes)


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def expected_and_taken(sampler: Any, chains: bl.Chains) -> tuple[float, float]:
    """Seconds that the forecast says, and that the estimate takes, on a device whose kernels take long."""
    problem = small_problem(wide, "sim")
    with simulated_device.slow_kernels(5e-3):
        expected = forecast(problem, sampler, chains).seconds
        found = estimate_problem(problem, sampler, chains)
        torch.sim.synchronize()
    assert found is not None
    return expected, found.cost.seconds


@pytest.mark.slow
def test_the_forecast_waits_for_the_device(sim: DeviceProcess) -> None:
    """Beside what it forecasts, an estimate measures its bias, which for so few steps takes three times as long.

    A clock that does not wait sees a tenth of the time of the steps.
    """
    chains = bl.Chains(num_chains=1, num_draws=2, thinning=16, batch_size=5)
    expected, taken = sim(expected_and_taken, cases.SGLD, chains)
    assert taken < 8 * expected
    assert expected < 1.5 * taken
