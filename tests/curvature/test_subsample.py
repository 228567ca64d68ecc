"""Which training examples the curvature is measured on, and that it is that of all of them."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bif_lightning.config import Chains
from bif_lightning.curvature import subsample
from bif_lightning.curvature.subsample import (
    ERROR,
    EXAMPLES,
    GROUPS,
    HessianSubsample,
    hessian_subsample,
    hessians_along,
    sample_size_for,
    select_subsample,
)
from bif_lightning.data.dataset import Examples
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.losses.problem import Problem
from bif_lightning.sampling.context import engine_context
from small_models import cross_entropy, mlp, seeded
from targets import Regression, half_square

pytestmark = pytest.mark.exact


def regression(world: Regression) -> Problem:
    rows = Examples(world.data())
    return Problem(
        module=world.model(), loss=half_square, objective=lambda m, b: half_square(m, b).mean(),
        train=rows, query=rows, training=rows, prepare=lambda batch: batch,
    )  # fmt: skip


def unequal(examples: int, curved: int) -> tuple[Regression, np.ndarray]:
    """Regression where so many examples, at random places, have nearly all of the curvature."""
    world = Regression.random(examples, 5, seed=0)
    rows = np.random.default_rng(1).permutation(examples)[:curved]
    size = np.full(examples, 1e-3)
    size[rows] = 1.0
    return Regression(world.inputs * size[:, None], world.targets, world.snapshot), np.sort(rows)


def measured(problem: Problem, workers: int = 1) -> tuple[HessianSubsample, np.ndarray]:
    with engine_context(problem, Chains()) as (backend, _, _):
        directions = torch.eye(backend.layout.size, dtype=backend.center.dtype)[: backend.layout.num_weights]
        sample = hessian_subsample(problem, backend, directions, 0.1, workers, len(directions))
        found = hessians_along(problem, backend, directions, 0.1, workers, Ranks())
    return sample, found.numpy()


@pytest.mark.parametrize("workers", [1, 3])
def test_the_examples_that_have_the_curvature_are_found(workers: int) -> None:
    world, rows = unequal(3000, 700)
    sample, found = measured(regression(world), workers)
    assert set(sample.certain.tolist()) <= set(rows.tolist())
    assert 0.8 * 700 < len(sample.certain) < 700
    assert len(sample.others) == 0
    assert found.shape == (8, 5, 5)
    error = np.abs(found.mean(0) - world.hessian).max() / np.trace(world.hessian)
    assert error < 3 * (1 - subsample.HELD)


def test_where_many_are_curved_a_spread_stands_for_the_rest() -> None:
    """All examples alike but for 500 of ten times the size: the others enter with their weight, so nothing is lost."""
    world, rows = unequal(4000, 500)
    inputs = world.inputs.copy()
    rest = np.setdiff1d(np.arange(4000), rows)
    inputs[rest] *= 200.0  # 0.2 of the others: a quarter of the curvature is theirs
    world = Regression(inputs, world.targets, world.snapshot)
    sample, found = measured(regression(world))
    assert (len(sample.certain), len(sample.others)) == (EXAMPLES * 3 // 4, EXAMPLES // 4)
    assert len(sample.certain) + sample.weight * len(sample.others) == pytest.approx(4000)
    np.testing.assert_allclose(np.trace(found.mean(0)), np.trace(world.hessian), rtol=0.1)
    uniform = np.linspace(0, 3999, EXAMPLES).astype(int)
    by_spread = inputs[uniform].T @ inputs[uniform] / EXAMPLES
    assert np.linalg.norm(found.mean(0) - world.hessian) < np.linalg.norm(by_spread - world.hessian)


def test_few_examples_are_all_taken_where_they_differ() -> None:
    world, _ = unequal(301, 30)
    sample, found = measured(regression(world))
    assert sample.certain.tolist() == list(range(301))
    np.testing.assert_allclose(found.mean(0), world.hessian, rtol=1e-9, atol=1e-12)


def test_groups_share_the_sample_out() -> None:
    sample = HessianSubsample(torch.arange(0, 20), torch.arange(30, 60, 3), 4.0, 60)
    groups = sample.groups()
    assert len(groups) == 8
    rows = sorted(int(row) for group in groups for part, _ in group for row in part)
    assert rows == sorted([*range(20), *range(30, 60, 3)])
    for each in (range(20), range(30, 60, 3)):
        share = sum(s for group in groups for part, s in group if int(part[0]) in each) / 8
        assert share == pytest.approx(20 / 60 if each.start == 0 else 40 / 60)


@pytest.mark.parametrize("what", [0.0, float("nan"), float("inf")])
def test_a_measure_that_tells_nothing_gives_a_spread(what: float) -> None:
    found = select_subsample(torch.full((3000, 8), what), torch.arange(3000), 4)
    assert len(found.certain) == 0
    assert len(found.others) * found.weight == pytest.approx(3000)


def test_at_least_so_many_are_taken_as_the_directions_need() -> None:
    curvature_along = torch.cat([torch.ones(10), torch.full((2000,), 1e-9)])[:, None] * torch.arange(1, 9)
    assert len(select_subsample(curvature_along, torch.arange(2010), 2).certain) == 10
    assert len(select_subsample(curvature_along, torch.arange(2010), 300).certain) == 600
    assert len(select_subsample(torch.ones(2010, 1) * torch.arange(8), torch.arange(2010), 300).others) == 300


def test_no_group_stays_empty() -> None:
    """With one direction: of one example that has all the curvature, and of such that are all the same."""
    curvature_along = torch.cat([torch.ones(1), torch.full((2000,), 1e-9)])[:, None] * torch.arange(1, 9)
    assert len(select_subsample(curvature_along, torch.arange(2001), 1).groups()) == GROUPS
    assert len(select_subsample(torch.ones(2001, 1) * torch.arange(8), torch.arange(2001), 1).groups()) == GROUPS


@pytest.mark.parametrize(("enough", "taken"), [(140, 140), (199, 199), (202, 400), (330, 400)])
def test_a_spread_is_taken_where_it_saves_half(enough: int, taken: int) -> None:
    """400 examples with Hessians (1 ± s)·H: their relative variance is s²."""
    differing = 1 / ((1 / (enough - 0.5) - 1 / 400) / ERROR**2)
    size = 1 + differing**0.5 * torch.tensor([1.0, -1.0]).repeat(200).double()
    curvature_along = size[:, None] * torch.arange(8).double()
    assert sample_size_for(curvature_along) == enough
    sample = select_subsample(curvature_along, torch.arange(400), 4)
    assert len(sample.others) + len(sample.certain) == taken


def squares(inputs: np.ndarray) -> tuple[float, float]:
    """Mean of |H_i − H|² over examples, and |H|², of half-square regression: H_i = xxᵀ."""
    mean = inputs.T @ inputs / len(inputs)
    own = (inputs**2).sum(1) ** 2
    return float(own.mean() - (mean**2).sum()), float((mean**2).sum())


def test_enough_examples_are_those_that_bring_the_error_down() -> None:
    """n of 1/n − 1/N = ERROR²·|H|²/mean |H_i − H|². The variance of zᵀAz of a rank-one A has itself a relative standard
    error of sqrt(14/probes), and no A has a larger one."""
    inputs = Regression.random(400, 5, seed=2).inputs
    differing, whole = squares(inputs)
    expected = 1 / (ERROR**2 * whole / differing + 1 / 400)
    probes = np.random.default_rng(0).normal(size=(5, 40_000))
    found = sample_size_for(torch.from_numpy((inputs @ probes) ** 2))
    assert found == pytest.approx(expected, rel=5 * 2 * (14 / 40_000) ** 0.5)


@pytest.mark.slow
def test_alike_examples_are_a_few_with_the_error_that_is_said() -> None:
    """Over 60 worlds: squared errors of the spread's Hessian, each over what its size foretells, are 1 on average."""
    ratios = list[float]()
    for seed in range(60):
        world = Regression.random(3000, 5, seed=seed)
        sample, found = measured(regression(world))
        few = len(sample.others)
        assert len(sample.certain) == 0
        assert few * sample.weight == pytest.approx(3000)
        assert 50 < few <= EXAMPLES / 2
        differing, whole = squares(world.inputs)
        error = float(((found.mean(0) - world.hessian) ** 2).sum()) / whole
        ratios.append(error / (differing / whole * (1 / few - 1 / 3000)))
    assert abs(np.mean(ratios) - 1) < 5 * np.std(ratios) / 60**0.5


def test_a_loss_that_cannot_be_had_one_by_one_gives_a_spread() -> None:
    """Minibatches of the training data need only a mean loss."""
    world, _ = unequal(1500, 100)
    problem = regression(world)

    def refusing(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        raise RuntimeError("not of these")

    problem.loss = refusing
    with engine_context(problem, Chains()) as (backend, _, _):
        directions = torch.eye(backend.layout.size, dtype=backend.center.dtype)[:5]
        sample = hessian_subsample(problem, backend, directions, 0.1, 1, len(directions))
    assert len(sample.others) == EXAMPLES


def test_fitted_examples_of_a_network_are_left_out_without_harm() -> None:
    """A classifier that has learned: a fraction of the examples gives the Hessian of all, within the share left out."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1500, 6, generator=generator)
    y = (x @ torch.randn(6, 3, generator=generator)).argmax(1)
    module = seeded(mlp)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        cross_entropy(module, (x, y)).mean().backward()
        optimizer.step()
    rows = Examples(list(zip(x, y, strict=True)))
    problem = Problem(
        module=module, loss=cross_entropy, objective=lambda m, b: cross_entropy(m, b).mean(),
        train=rows, query=rows, training=rows, prepare=lambda batch: batch,
    )  # fmt: skip
    sample, found = measured(problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subsample, "_FEW", 10_000)
        everything, exact = measured(problem)
    assert len(everything.certain) == 1500
    assert len(sample.certain) < 800
    lost = np.linalg.norm(found.mean(0) - exact.mean(0)) / np.linalg.norm(exact.mean(0))
    assert lost < 0.03
