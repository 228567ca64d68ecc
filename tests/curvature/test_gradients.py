"""Gradients of single examples whose losses come without a graph."""

import pytest
import torch
from torch import nn

import small_models as models
from bif_lightning.config import Chains
from bif_lightning.curvature.gradients import train_gradients
from bif_lightning.data.dataset import Batch
from bif_lightning.losses.problem import Problem
from bif_lightning.sampling.context import engine_context

pytestmark = pytest.mark.exact


def gradients(problem: Problem) -> torch.Tensor:
    with engine_context(problem, Chains()) as (backend, workers, _):
        return train_gradients(problem, backend, workers)


def test_rounding_of_a_memorized_example_is_no_factor() -> None:
    """A loss of 0 up to rounding may come out with another sign: the gradient is that of the objective all the same."""
    module = models.seeded(models.mlp)
    plain, rounded = models.problem_of(module), models.problem_of(module)

    def noisy(module: nn.Module, batch: Batch) -> torch.Tensor:
        losses = models.cross_entropy(module, batch).detach()
        return losses if len(losses) > 1 else -losses

    rounded.loss = noisy
    torch.testing.assert_close(gradients(rounded), gradients(plain), rtol=0, atol=0)


def test_sums_over_elements_have_their_divisor() -> None:
    module = models.seeded(models.mlp)
    plain, summed = models.problem_of(module), models.problem_of(module)
    summed.loss, summed.sums_elements = lambda m, b: 3 * models.cross_entropy(m, b).detach(), True
    torch.testing.assert_close(gradients(summed), 3 * gradients(plain))
