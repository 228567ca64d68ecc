"""The memory that estimates take on a device, beside what they say."""

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

import bif_lightning as bl
import small_models as models
from bif_lightning.data.dataset import Examples
from bif_lightning.estimation.estimator import estimate_problem
from bif_lightning.estimation.forecast import forecast
from bif_lightning.losses.problem import Problem
from bif_lightning.sampling.context import to_device_of
from device_estimates import cast

WIDTH = 600
SGLD = bl.SGLD(step_size=1e-6, inverse_temperature=20.0, localization=10.0)
CHAINS = bl.Chains(num_chains=2, num_draws=8, batch_size=8)
WHOLE = replace(CHAINS, batch_size=64)  # all examples in one pass of second derivatives
IN_PAIRS = bl.Chains(num_chains=2, num_draws=8)


class Measured(NamedTuple):
    """Bytes beyond the module.

    Attributes:
        forecast, said: before the estimate, and in it.
        taken: at most at once.
        left: when it was done.
        weights: of the module, for bytes a weight.
    """

    forecast: int
    said: int
    taken: int
    left: int
    weights: int

    @property
    def ratio(self) -> float:
        """Of what was taken to what was said: above 1, too little was said."""
        return self.taken / self.said


def wide() -> nn.Module:
    """So many weights that these are most of the memory."""
    return nn.Sequential(
        nn.Linear(6, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3)
    )  # fmt: skip


def half() -> nn.Module:
    return wide().bfloat16()


Kind = tuple[Callable[[], nn.Module], Any, bl.Chains]
KINDS: dict[str, Kind] = {
    "SGLD": (wide, SGLD, CHAINS),
    "SGLD, one pass": (wide, SGLD, WHOLE),
    "SGLD by minibatches": (wide, replace(SGLD, gradient="minibatch"), WHOLE),
    "SGLD with RMSprop": (wide, replace(SGLD, preconditioner="rmsprop"), WHOLE),
    "SGLD in directions": (wide, replace(SGLD, num_directions=4), WHOLE),
    "SGLD in bfloat16": (half, SGLD, WHOLE),
    "Pairs": (wide, bl.Pairs(), IN_PAIRS),
    "controlled": (wide, bl.ControlledSGLD(num_directions=4), CHAINS),
    "controlled, sketched": (wide, bl.ControlledSGLD(num_directions=4, gradient_bytes=20_000_000), CHAINS),
    "Subspace": (wide, bl.Subspace(num_directions=4), IN_PAIRS),
    "Subspace, Euclidean": (wide, bl.Subspace(num_directions=4, metric="euclidean"), IN_PAIRS),
}


def measured(kind: str, device: str) -> Measured:
    """A forecast and an estimate; the module is small beside what they hold."""
    make, sampler, chains = KINDS[kind]
    module, train = models.seeded(make).to(device), Examples(models.data())
    for parameter in module.parameters():
        parameter.grad = None
    loss = cast(next(module.parameters()).dtype)
    problem = Problem(
        module=module, loss=loss, objective=lambda m, b: loss(m, b).mean(),
        train=train, query=Examples(models.data(1, 4)), training=train, prepare=to_device_of(module),
    )  # fmt: skip
    of = torch.get_device_module(device)
    expected = forecast(problem, sampler, chains).extra_bytes
    assert len(problem.train_singles) == 3 * len(problem.query_singles)  # they stay with the problem
    gc.collect()
    of.synchronize()
    before = of.memory_allocated()
    of.reset_peak_memory_stats()
    found = estimate_problem(problem, sampler, chains)
    assert found is not None
    taken = of.max_memory_allocated() - before
    gc.collect()
    weights = sum(parameter.numel() for parameter in module.parameters())
    return Measured(expected, found.cost.extra_bytes, taken, of.memory_allocated() - before, weights)
