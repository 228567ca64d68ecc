"""Settings by measurement: what a pilot shows where it is known, and what the search makes of it."""

import numpy as np
import pytest
import torch

import bif_lightning as bl
from bif_lightning.calibration import Calibrated, dimension_for, find_settings, largest_curvature
from bif_lightning.config import SGLD, Chains, Pairs
from bif_lightning.data import Examples
from bif_lightning.estimator import mean_of
from bif_lightning.pilot import run_pilot, small_problem
from bif_lightning.problem import Problem
from bif_lightning.settled import Settled
from bif_lightning.stage import ready_for
from small_models import cross_entropy, data, mlp, problem_of, seeded
from targets import Regression, half_square


def world_problem(examples: int = 300, weights: int = 60) -> tuple[Regression, Problem]:
    world = Regression.random(examples, weights, seed=1)
    rows = Examples(world.data())
    return world, Problem(
        module=world.model(), loss=half_square, objective=lambda m, b: mean_of(half_square(m, b)),
        train=rows, query=rows, training=rows, prepare=lambda batch: batch,
    )  # fmt: skip


def test_a_pilot_measures_the_effective_dimension() -> None:
    """Of a quadratic loss it is Σ ν·h/(νh + γ)/(1 − ελ/4): known, and met within the noise of 36 draws."""
    world, problem = world_problem()
    h = np.linalg.eigvalsh(world.hessian)
    nb, pull = 1e4, 0.3
    sampler = SGLD(step_size=0.5 / (nb * h[-1]), inverse_temperature=nb, localization=nb * pull)
    with ready_for(problem, Chains()) as (host, _, _):
        small = small_problem(problem, host, 0)
        found = run_pilot(small, host, sampler, Chains(batch_size=300), 20)
    stretch = 1 / (1 - sampler.step_size * nb * (h + pull) / 4)
    expected = (h / (h + pull) * stretch).sum()
    spread = np.sqrt(2 * ((h / (h + pull) * stretch) ** 2).sum() / 36)
    assert found.dimension == pytest.approx(expected, abs=5 * spread)
    assert found.nonlinearity < 0.05
    assert found.loss.shape == (2, 24)
    assert found.snapshot_loss == pytest.approx(np.mean(0.5 * (world.inputs @ world.snapshot - world.targets) ** 2))


def test_memory_is_that_of_an_autoregressive_chain() -> None:
    """One weight: the odd part is a multiple of w − w*, whose correlation falls by 1 − ελ/2 a step."""
    rng = np.random.default_rng(2)
    world = Regression(rng.normal(size=(50, 1)), rng.normal(size=50), np.zeros(1))
    rows = Examples(world.data())
    problem = Problem(
        module=world.model(), loss=half_square, objective=lambda m, b: mean_of(half_square(m, b)),
        train=rows, query=rows, training=rows, prepare=lambda batch: batch,
    )  # fmt: skip
    nb = 1e6
    stiffness = nb * float(world.hessian[0, 0])
    sampler = SGLD(step_size=0.2 / stiffness, inverse_temperature=nb, localization=1.0)
    with ready_for(problem, Chains()) as (host, _, _):
        found = run_pilot(small_problem(problem, host, 0), host, sampler, Chains(batch_size=50), 4, draws=300)
    assert found.memory == pytest.approx(-1 / np.log(1 - 0.1), rel=0.3)


def test_a_pilot_says_that_chains_ran_away() -> None:
    world, problem = world_problem()
    top = np.linalg.eigvalsh(world.hessian)[-1]
    sampler = SGLD(step_size=6 / (1e4 * top), inverse_temperature=1e4, localization=1.0)
    with ready_for(problem, Chains()) as (host, _, _):
        found = run_pilot(small_problem(problem, host, 0), host, sampler, Chains(), 20)
    assert found.diverged
    assert np.isnan(found.dimension)
    assert np.isnan(found.loss[:, -1]).all()


def test_largest_curvature_is_the_largest_eigenvalue() -> None:
    world, problem = world_problem(weights=6)
    with ready_for(problem, Chains()) as (host, _, _):
        assert largest_curvature(problem, host) == pytest.approx(np.linalg.eigvalsh(world.hessian)[-1], rel=0.02)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_search_meets_its_aim(seed: int) -> None:
    """λ such that d_eff is n/10, from the closed form, within the factor that the search allows itself."""
    world, problem = world_problem()
    with ready_for(problem, Chains()) as (host, _, _):
        found = find_settings(problem, host, None, seed=seed)
    sampler, h = found.settled.sampler, np.linalg.eigvalsh(world.hessian)
    assert found.sound
    assert found.target == 30
    pull = sampler.localization / sampler.inverse_temperature
    assert 1 / 1.7 < (h / (h + pull)).sum() / 30 < 1.7
    assert sampler.step_size * sampler.inverse_temperature * (h[-1] + pull) == pytest.approx(1.0, rel=0.05)
    assert 4 * 16 <= found.settled.chains.num_chains * found.settled.chains.num_draws <= 400


def test_given_chains_are_taken_as_they_are() -> None:
    _, problem = world_problem()
    given = Chains(num_chains=3, num_draws=11, thinning=2, batch_size=16, seed=5)
    with ready_for(problem, given) as (host, _, _):
        found = find_settings(problem, host, given)
    assert found.settled.chains == given
    assert found.target == pytest.approx(33 / 4)  # a quarter of the draws is less than n/10


def test_a_curved_loss_makes_the_posterior_smaller() -> None:
    """Losses that are far from linear at nβ = 1e4 are met with a larger nβ."""
    problem = problem_of(seeded(mlp))
    with ready_for(problem, Chains()) as (host, _, _):
        small = small_problem(problem, host, 0)
        shares = [
            run_pilot(small, host, SGLD(step_size=0.5 / nb, inverse_temperature=nb, localization=2 * nb), Chains(), 5)
            for nb in (1e2, 1e3, 1e4)
        ]
    nonlinear = [pilot.nonlinearity for pilot in shares]
    assert nonlinear[0] > nonlinear[1] > nonlinear[2]


def test_the_pilot_does_not_touch_the_module_nor_the_snapshots_noise() -> None:
    module = seeded(mlp)
    before = [p.detach().clone() for p in module.parameters()]
    sampler = SGLD(step_size=1e-4, inverse_temperature=100.0, localization=10.0)
    plain = bl.estimate(module, cross_entropy, data(), sampler=sampler, chains=Chains(num_draws=4))
    bl.estimate(module, cross_entropy, data(), sampler="auto", chains=Chains(num_draws=4))
    again = bl.estimate(module, cross_entropy, data(), sampler=sampler, chains=Chains(num_draws=4))
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
    assert np.array_equal(plain.influence, again.influence)


def test_auto_gives_the_same_settings_again() -> None:
    one, other = (bl.estimate(seeded(mlp), cross_entropy, data(), sampler="auto") for _ in range(2))
    assert one.sampler == other.sampler
    assert one.chains == other.chains
    assert np.array_equal(one.influence, other.influence)


def test_a_flat_loss_is_refused() -> None:
    world = Regression(np.zeros((8, 2)), np.zeros(8), np.ones(2))
    with pytest.raises(ValueError, match="does not depend on the sampled weights"):
        bl.estimate(world.model(), half_square, world.data(), sampler="auto")


def test_settled_settings_survive_plain_values() -> None:
    for sampler in (SGLD(step_size=1e-5, inverse_temperature=1e3, localization=7.0), Pairs(scale=0.02)):
        settled = Settled(sampler, Chains(num_draws=6), "because")
        assert Settled.from_dict(settled.as_dict()) == settled
    values = settled.as_dict() | {"kind": "Newer"}
    with pytest.raises(ValueError, match=r"'Newer' is unknown.*SGLD"):
        Settled.from_dict(values)


def test_the_aim_is_bounded_by_the_draws() -> None:
    assert [dimension_for(n, k) for n, k in ((1000, 400), (10**6, 400), (5, 400), (1000, 100))] == [100, 100, 1, 25]


def test_the_gradient_noise_is_that_of_the_definition() -> None:
    """ε·(nβ)²·λmax(F)/4m, of a regression whose gradients are known."""
    world = Regression.random(40, 3, 0)
    gradients = world.inputs * (world.inputs @ world.snapshot - world.targets)[:, None]
    largest = float(np.linalg.eigvalsh(np.cov(gradients.T))[-1])
    sampler = SGLD(step_size=1e-3, inverse_temperature=50.0, localization=1.0)
    found = Calibrated(Settled(sampler, Chains(batch_size=8)), 1.0, largest, 1.0, None, (), True)
    assert found.plain_noise_ratio == pytest.approx(1e-3 * 50.0**2 * largest / 32)
