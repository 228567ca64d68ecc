"""What goes wrong on devices: modules on two of them, second derivatives without room, values that are waited for."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import bif_lightning as bl
import device_estimates as cases
import simulated_device
import small_models as models
from bif_lightning.data.dataset import Examples
from bif_lightning.estimation.estimator import at_snapshot
from bif_lightning.losses.problem import Problem
from bif_lightning.sampling.choice import sampler_of
from bif_lightning.sampling.context import engine_context, to_device_of

TOO_LARGE = 1 << 43
"""Numbers that no device has room for."""


class OnTwo(nn.Module):
    """A layer on each of two devices."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.ends = f"{device}:0", f"{device}:1"
        self.first, self.second = nn.Linear(6, 8).to(self.ends[0]), nn.Linear(8, 3).to(self.ends[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh().to(self.ends[1])).to(self.ends[0])


def influence_on_two(device: str, **more: Any) -> Any:
    module = models.seeded(lambda: OnTwo(device))
    given = cases.BY_SGLD | more
    return bl.estimate(module, models.cross_entropy, models.data(), models.data(1, 4), **given).influence


class Costly(torch.autograd.Function):
    """Leaves its input as it is, and has no room for its second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return CostlySlope.apply(gradient)


class CostlySlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        torch.empty(TOO_LARGE, device=gradient.device)
        return gradient.clone()


def costly(module: nn.Module, batch: Any) -> Tensor:
    return models.cross_entropy(lambda x: Costly.apply(module(x)), batch)


def under_a_default_device(device: str, name: str) -> cases.Result:
    given = cases.inputs(name, device)
    torch.set_default_device(device)
    try:
        return cases.without_tokens(bl.estimate(**given))
    finally:
        torch.set_default_device(None)


def small_problem(make: Callable[[], nn.Module], device: str) -> Problem:
    """Twelve train and four query examples, with the module on the device."""
    module, train = models.seeded(make).to(device), Examples(models.data())
    return Problem(
        module=module, loss=models.cross_entropy, objective=lambda m, b: models.cross_entropy(m, b).mean(),
        train=train, query=Examples(models.data(1, 4)), training=train, prepare=to_device_of(module),
    )  # fmt: skip


def waits_of_a_step(device: str, name: str) -> int:
    """How often the host waits for the device in a step of a chain; no float64 is computed in it where that shows."""
    sampler, chains = cases.CASES[name].options["sampler"], cases.CASES[name].options["chains"]
    problem = small_problem(models.mlp, device)
    with engine_context(problem, chains) as (backend, _, _):
        kernel = sampler_of(sampler).unprepared()
        state = kernel.start(at_snapshot(problem, backend, kernel, chains), 0)
        kernel.draw(state, 0)
        return _waits(device, lambda: kernel.draw(state, 1))


def _waits(device: str, call: Callable[[], None]) -> int:
    if device == simulated_device.NAME:
        with simulated_device.without(torch.float64):
            simulated_device.reset_counts()
            call()
            return simulated_device.counts()["wait"]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(each.message) for each in said)
