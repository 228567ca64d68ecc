"""How much examples count in the mean that a batch's loss is: as in one batch of all, whatever the batches."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from bif_lightning.config import Chains
from bif_lightning.curvature.example_weights import UNEQUAL_TERMS, example_weights
from bif_lightning.curvature.hessian import Hessian
from bif_lightning.curvature.strata import strata_of
from bif_lightning.losses.derived.derive import derive_loss
from bif_lightning.losses.problem import Problem
from bif_lightning.sampling.context import engine_context
from targets import problem_with

pytestmark = pytest.mark.exact

G = torch.Generator().manual_seed(0)
X, CLASS = torch.randn(20, 4, generator=G, dtype=torch.float64), torch.arange(20) % 3
PAIRS = torch.stack([CLASS, torch.where(torch.arange(20) % 4 == 1, -100, (CLASS + 1) % 3)], 1)
PAIRS[:3] = -100  # without a target
WEIGHT = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)

Step = Callable[[nn.Module, Sequence[Tensor]], Any]


def problem_of(step: Step, labels: Tensor) -> Problem:
    torch.manual_seed(0)
    module, data = nn.Linear(4, 6, dtype=torch.float64), TensorDataset(X, labels)
    batch_of = lambda rows: [part[list(rows)] for part in data.tensors]  # noqa: E731
    derived = derive_loss(step, module, batch_of, [0, 3, 4, 5, 6, 7, 8, 9])
    problem = problem_with(module, derived, data, data)
    problem.objective, problem.relative_weights = derived.objective, derived.relative_weights
    problem.eval_batch_size = 5
    return problem


def mean_of_classes(module: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1], weight=torch.cat([WEIGHT, WEIGHT]))


def mean_of_tokens(module: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    return F.cross_entropy(module(batch[0]).view(-1, 2, 3).flatten(0, 1), batch[1].flatten())


def sum_of_tokens(module: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    outputs = module(batch[0]).view(-1, 2, 3)
    return F.cross_entropy(outputs.mT, batch[1], reduction="sum")


def two_terms(module: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    return mean_of_classes(module, batch) + F.mse_loss(module(batch[0])[:, :2], batch[0][:, :2])


def plain(module: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1])


def weights_of(problem: Problem, rows: Tensor | None = None) -> Tensor | None:
    with engine_context(problem, Chains()) as (backend, _, _):
        return example_weights(problem, backend, torch.arange(20) if rows is None else rows)


@pytest.mark.parametrize(
    ("step", "labels", "expected"),
    [
        (mean_of_classes, CLASS, WEIGHT[CLASS]),
        (mean_of_tokens, PAIRS, (PAIRS != -100).sum(1).double()),
        (sum_of_tokens, PAIRS, (PAIRS != -100).any(1).double()),
    ],
)
def test_weights_are_those_of_one_batch(step: Step, labels: Tensor, expected: Tensor) -> None:
    found = weights_of(problem_of(step, labels))
    assert found is not None
    torch.testing.assert_close(found, expected / expected.mean())


def test_examples_that_count_alike_have_none() -> None:
    problem = problem_of(plain, CLASS)
    assert weights_of(problem) is None
    assert problem.remarks == {}


def test_terms_that_weigh_in_different_ways_are_noted() -> None:
    problem = problem_of(two_terms, CLASS)
    assert weights_of(problem) is None
    assert problem.remarks == {"weights": UNEQUAL_TERMS}


@pytest.mark.parametrize(("step", "labels"), [(mean_of_classes, CLASS), (mean_of_tokens, PAIRS)])
def test_the_hessian_is_that_of_one_batch(step: Step, labels: Tensor) -> None:
    problem = problem_of(step, labels)
    with engine_context(problem, Chains()) as (backend, _, _):
        axes = torch.eye(backend.layout.size, dtype=torch.float64)
        whole = Hessian(problem, backend, [(problem.minibatch(torch.arange(20)), 1.0)]).times(axes)
        found = Hessian.of_training(problem, backend, chunk=3).times(axes)
    torch.testing.assert_close(found, whole)


@pytest.mark.parametrize("most", [1, 4, 20])
def test_strata_and_their_parts_bias_no_weighted_mean(most: int) -> None:
    """All examples of each stratum, in parts, have the mean of one batch."""
    values, weights = torch.randn(20, generator=G, dtype=torch.float64), WEIGHT[CLASS] / WEIGHT[CLASS].mean()
    weights[7] = 0.0
    strata = strata_of(torch.arange(1.0, 21), 20, 8, weights)
    assert len(strata) == 4
    total = 0.0
    for each in strata:
        for rows, share in each.parts(torch.arange(len(each.rows)), most):
            total += share * float((weights[rows] * values[rows]).sum() / weights[rows].sum())
    assert total == pytest.approx(float((weights * values).sum() / weights.sum()))
