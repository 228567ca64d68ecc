"""Chains of models in half precision: the chain itself is in float32, and gradients do not overflow."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import small_models as models
from bif_lightning.config import SGLD, Chains
from bif_lightning.estimation.estimate import estimate
from bif_lightning.estimation.estimator import estimate_problem
from bif_lightning.results.estimate import Estimate
from small_models import problem_of

pytestmark = pytest.mark.exact

FREE = SGLD(step_size=1e-8, inverse_temperature=0.0, localization=1.0)
SAMPLER = SGLD(step_size=1e-3, inverse_temperature=20.0, localization=10.0)
CHAINS = Chains(num_chains=2, num_draws=6, batch_size=5)


def in_float32(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Inputs in the module's precision, losses of its outputs in float32."""
    outputs = module(batch[0].to(next(module.parameters()).dtype)).float()
    return nn.functional.cross_entropy(outputs, batch[1], reduction="none")


def run(module: nn.Module, sampler: SGLD, **more: Any) -> Estimate:
    return estimate(module, in_float32, models.data(), models.data(1, 4), sampler=sampler, chains=CHAINS, **more)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_below_the_resolution_of_the_model_are_taken(dtype: torch.dtype) -> None:
    """Noise of 1e-4 on weights of 0.3 vanishes in bfloat16; the chain walks as that of the same weights in float32."""
    half = models.seeded(models.mlp).to(dtype)
    full = copy.deepcopy(half).float()
    assert np.array_equal(run(half, FREE).distance_trace, run(full, FREE).distance_trace)


@pytest.mark.parametrize("preconditioner", [None, "rmsprop"])
def test_influence_in_bfloat16_is_that_of_float32_up_to_its_rounding(preconditioner: Any) -> None:
    half = models.seeded(models.mlp).bfloat16()
    full = copy.deepcopy(half).float()
    sampler = SGLD(step_size=1e-2, inverse_temperature=20.0, localization=10.0, preconditioner=preconditioner)
    found, expected = run(half, sampler), run(full, sampler)
    assert not np.array_equal(found.correlation, expected.correlation)
    np.testing.assert_allclose(found.correlation, expected.correlation, atol=0.1)
    assert half[0].weight.dtype == torch.bfloat16


def test_parameters_of_several_precisions_move_together() -> None:
    def loss(module: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = module[1](module[0](batch[0]))
        return nn.functional.cross_entropy(module[2](hidden.double()), batch[1], reduction="none")

    mixed = models.seeded(models.mlp)
    mixed[2].double()
    plain = copy.deepcopy(mixed).double()
    found = estimate(mixed, loss, models.data(), sampler=SAMPLER, chains=CHAINS)
    double = [(x.double(), y) for x, y in models.data()]
    expected = estimate(plain, loss, double, sampler=SAMPLER, chains=CHAINS)
    np.testing.assert_allclose(found.influence, expected.influence, atol=1e-4 * np.abs(expected.influence).max())


@pytest.mark.parametrize("gradient", ["control_variate", "minibatch"])
@pytest.mark.parametrize("preconditioner", [None, "rmsprop"])
def test_a_loss_scale_of_a_power_of_two_changes_no_bit(gradient: Any, preconditioner: Any) -> None:
    sampler = SGLD(
        step_size=1e-3, inverse_temperature=20.0, localization=10.0, gradient=gradient, preconditioner=preconditioner
    )
    plain, scaled = problem_of(models.seeded(models.mlp)), problem_of(models.seeded(models.mlp))
    scaled.loss_scale = 2.0**10
    assert np.array_equal(
        estimate_problem(plain, sampler, CHAINS).influence, estimate_problem(scaled, sampler, CHAINS).influence
    )


@pytest.mark.parametrize("preconditioner", [None, "rmsprop"])
def test_a_scale_that_overflows_is_lowered(preconditioner: Any) -> None:
    """Gradients that pass through float16: 0 without a scale, infinite with one of 2^40, right with what is between."""

    def through_half(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        outputs = module(batch[0]).half().float()
        return nn.functional.cross_entropy(outputs, batch[1])

    sampler = SGLD(step_size=1e-2, inverse_temperature=20.0, localization=10.0, preconditioner=preconditioner)
    problem, plain = problem_of(models.seeded(models.mlp)), problem_of(models.seeded(models.mlp))
    problem.objective, problem.loss_scale = through_half, 2.0**40
    found, expected = estimate_problem(problem, sampler, CHAINS), estimate_problem(plain, sampler, CHAINS)
    assert found.divergences == ()
    np.testing.assert_allclose(found.influence, expected.influence, atol=0.02 * np.abs(expected.influence).max())
