"""The Gauss-Newton matrix along directions: exact where one pass is, its law elsewhere; where it errs, the Hessian."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from bif_lightning.config import Chains
from bif_lightning.curvature.gauss_newton import (
    GaussNewton,
    Projection,
    corrected,
    gauss_newton_along,
    strongest_of,
)
from bif_lightning.curvature.outputs import NoOutputsError
from bif_lightning.curvature.strata import strata_of
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.losses.problem import Problem
from bif_lightning.model.weights import WeightBackend
from bif_lightning.sampling.context import engine_context
from targets import problem_with

Inputs = Sequence[Tensor]


def squares(module: nn.Module, batch: Inputs) -> Tensor:
    return F.mse_loss(module(batch[0])[:, 0], batch[1], reduction="none")


def classes(module: nn.Module, batch: Inputs) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1].long() % 3, reduction="none")


def data(size: int = 24) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(size, 4, generator=generator, dtype=torch.float64),
        torch.randn(size, generator=generator, dtype=torch.float64).mul(3).round(),
    )


def linear(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, outputs, dtype=torch.float64)


def axes(backend: WeightBackend) -> Tensor:
    """A direction for each weight: the flat vector has gaps between parameters."""
    layout = backend.layout
    places = torch.cat([piece.flatten() for piece in layout.pieces(torch.arange(layout.size))])
    return torch.eye(layout.size, dtype=torch.float64)[places]


def onto(directions: Tensor) -> Projection:
    return lambda vectors: vectors @ directions.mT


def along(problem: Problem, probes: int) -> GaussNewton:
    with engine_context(problem, Chains()) as (backend, workers, _):
        return gauss_newton_along(problem, backend, onto(axes(backend)), probes, workers, Ranks())


@pytest.mark.exact
def test_of_one_output_and_squares_one_pass_is_exact() -> None:
    problem = problem_with(linear(1), squares, data(), data())
    found = along(problem, 1)
    x = torch.cat([data().tensors[0], torch.ones(24, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(found.groups().mean(0), 2 * x.mT @ x / 24)
    torch.testing.assert_close(found.groups()[3], 2 * x[3::8].mT @ x[3::8] / 3)
    torch.testing.assert_close(found.curvature, 2 * x.square().sum(1))


@pytest.mark.slow
@pytest.mark.statistical
def test_of_classes_its_mean_is_the_hessian() -> None:
    """Of a linear network both are the same; the entries of many passes lie about it by their standard errors."""
    module = linear(3)
    problem = problem_with(module, classes, data(), data())
    found = along(problem, 400)
    weight, bias = (p.detach() for p in module.parameters())
    x, y = data().tensors
    exact = torch.autograd.functional.hessian(
        lambda w: F.cross_entropy(x @ w[:12].view(3, 4).mT + w[12:], y.long() % 3), torch.cat([weight.flatten(), bias])
    )
    each = torch.einsum("epk,epl->epkl", found.along, found.along)
    error = each.var(1).sum(0).sqrt() / (24 * 400**0.5)
    z = (each.mean((0, 1)) - exact) / error.clamp(min=1e-12)
    assert float(z.abs().max()) < 5
    assert 0.8 < float(z[error > 1e-9].std()) < 1.2


@pytest.mark.bitwise
def test_the_number_of_threads_changes_no_bit() -> None:
    def found(threads: int) -> Tensor:
        torch.set_num_threads(threads)
        return along(problem_with(linear(3), classes, data(40), data()), 3).along

    before = torch.get_num_threads()
    try:
        torch.testing.assert_close(found(1), found(2), rtol=0, atol=0)
    finally:
        torch.set_num_threads(before)


@pytest.mark.exact
def test_groups_of_unequal_size_count_as_their_examples() -> None:
    problem = problem_with(linear(1), squares, data(21), data())
    found = along(problem, 1)
    torch.testing.assert_close(found.groups().mean(0), found.of(slice(None)))


class Curved(nn.Module):
    """A network whose residuals times its own curvature are a large part of the Hessian."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -0.3, 0.8, 0.2], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w).square()[:, None]


@pytest.mark.exact
@pytest.mark.parametrize("module", [Curved(), linear(1)], ids=["curved", "linear"])
def test_where_it_errs_it_is_the_hessian(module: nn.Module) -> None:
    problem = problem_with(module, squares, data(), data())
    with engine_context(problem, Chains()) as (backend, workers, _):
        directions = axes(backend)
        known = gauss_newton_along(problem, backend, onto(directions), 4, workers, Ranks())
        strongest = strongest_of(known)
        top = strongest.mT @ directions
        groups, error = corrected(problem, backend, strongest, top, 1e-3, known, workers, Ranks())
    if not isinstance(module, Curved):
        assert error < 1e-9
        torch.testing.assert_close(groups, known.groups())
        return
    assert error > 0.15
    x, y = data().tensors
    exact = torch.autograd.functional.hessian(lambda w: ((x @ w).square() - y).square().mean(), module.w.detach())
    torch.testing.assert_close(groups.mean(0), exact)


@pytest.mark.exact
def test_other_losses_say_so() -> None:
    problem = problem_with(linear(1), lambda m, b: (m(b[0])[:, 0] - b[1]).abs(), data(), data())
    with pytest.raises(NoOutputsError, match="not shown to be a weighted sum"):
        along(problem, 1)


@pytest.mark.exact
@pytest.mark.parametrize("batch", [4, 7, 16, 23])
def test_strata_divide_all_examples_and_bias_no_mean(batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    curvature = torch.randn(24, generator=generator).exp() ** 2
    strata = strata_of(curvature, 24, batch)
    assert sorted(torch.cat([each.rows for each in strata]).tolist()) == list(range(24))
    assert sum(each.batch_size for each in strata) == batch
    assert all(1 <= each.batch_size <= len(each.rows) for each in strata)
    values = torch.randn(24, generator=generator, dtype=torch.float64)
    mean = sum(each.share * values[each.rows].mean() for each in strata)
    torch.testing.assert_close(mean, values.mean())
    heaviest = curvature.argmax()
    (own,) = (each for each in strata if heaviest in each.rows)
    assert own.batch_size / len(own.rows) >= batch / 24


@pytest.mark.exact
@pytest.mark.parametrize("curvature", [torch.zeros(24), torch.empty(0)])
def test_without_curvatures_all_examples_are_alike(curvature: Tensor) -> None:
    (only,) = strata_of(curvature, 24, 8)
    assert (len(only.rows), only.batch_size, only.share) == (24, 8, 1.0)
