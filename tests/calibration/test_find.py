"""Settings by measurement: what a pilot shows where it is known, and what the search makes of it."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import bif_lightning as bl
from bif_lightning.calibration import find
from bif_lightning.calibration.find import FoundSettings, _chains_for, dimension_for, find_settings
from bif_lightning.calibration.pilot import Pilot, _chain_agreement, run_pilot, small_problem
from bif_lightning.config import SGLD, Chains, Pairs
from bif_lightning.curvature.hessian import Hessian
from bif_lightning.data.dataset import Examples, spread_rows
from bif_lightning.losses.observables import mean_of
from bif_lightning.losses.problem import Problem
from bif_lightning.results.settings import ResolvedSettings
from bif_lightning.sampling import bias, stability
from bif_lightning.sampling.context import engine_context
from bif_lightning.sampling.stability import check_stable, largest_curvature
from small_models import cross_entropy, data, mlp, problem_of, seeded
from targets import Regression, half_square

pytestmark = pytest.mark.exact


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
    with engine_context(problem, Chains()) as (backend, _, _):
        small = small_problem(problem, backend, 0)
        found = run_pilot(small, backend, sampler, Chains(batch_size=300), 20)
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
    with engine_context(problem, Chains()) as (backend, _, _):
        found = run_pilot(small_problem(problem, backend, 0), backend, sampler, Chains(batch_size=50), 4, draws=300)
    assert found.autocorrelation_time == pytest.approx(-1 / np.log(1 - 0.1), rel=0.3)


def test_a_pilot_says_that_chains_ran_away() -> None:
    world, problem = world_problem()
    top = np.linalg.eigvalsh(world.hessian)[-1]
    sampler = SGLD(step_size=6 / (1e4 * top), inverse_temperature=1e4, localization=1.0)
    with engine_context(problem, Chains()) as (backend, _, _):
        found = run_pilot(small_problem(problem, backend, 0), backend, sampler, Chains(), 20)
    assert found.diverged
    assert np.isnan(found.dimension)
    assert np.isnan(found.loss[:, -1]).all()


def test_largest_curvature_is_the_largest_eigenvalue() -> None:
    world, problem = world_problem(weights=6)
    with engine_context(problem, Chains()) as (backend, _, _):
        assert largest_curvature(problem, backend, Chains()) == pytest.approx(
            np.linalg.eigvalsh(world.hessian)[-1], rel=0.02
        )


@pytest.mark.parametrize(("fraction", "most"), [(0.2, 8), (1.0, 64), (3.9, 300)])
def test_only_a_long_step_is_held_against_many_examples(
    fraction: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that is below the limit is let pass, though a few examples are stiffer than all."""
    world, problem = world_problem(weights=40)
    counts = list[int]()

    def counted(*args: Any, rows: torch.Tensor, **options: Any) -> Hessian:
        counts.append(len(rows))
        return Hessian.of_training(*args, rows=rows, **options)

    monkeypatch.setattr(stability, "Hessian", SimpleNamespace(of_training=counted))
    top, few = (np.linalg.eigvalsh(h)[-1] for h in (world.hessian, hessian_of_few(world)))
    assert few > 4 * top
    sampler = SGLD(step_size=fraction / (1e3 * top), inverse_temperature=1e3, localization=0)
    with engine_context(problem, Chains()) as (backend, _, _):
        check_stable(sampler, problem, backend, Chains())
        assert max(counts) == most
        with pytest.raises(ValueError, match="overshoots"):
            check_stable(replace(sampler, step_size=4.4 / (1e3 * top)), problem, backend, Chains())


def hessian_of_few(world: Regression) -> np.ndarray:
    some = world.inputs[spread_rows(len(world.inputs), 8).numpy()]
    return some.T @ some / len(some)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_search_meets_its_aim(seed: int) -> None:
    """λ such that d_eff is n/10, from the closed form, within the factor that the search allows itself."""
    world, problem = world_problem()
    with engine_context(problem, Chains()) as (backend, _, _):
        found = find_settings(problem, backend, None, seed=seed)
    sampler, h = found.sampler, np.linalg.eigvalsh(world.hessian)
    assert found.sound
    assert found.target == 30
    pull = sampler.localization / sampler.inverse_temperature
    assert 1 / 1.7 < (h / (h + pull)).sum() / 30 < 1.7
    assert sampler.step_size * sampler.inverse_temperature * (h[-1] + pull) == pytest.approx(1.0, rel=0.05)
    assert found.lasting
    assert 64 <= found.chains.num_chains * found.chains.num_draws <= 800


def test_given_chains_are_taken_as_they_are() -> None:
    _, problem = world_problem()
    given = Chains(num_chains=3, num_draws=11, thinning=2, batch_size=16, seed=5)
    with engine_context(problem, given) as (backend, _, _):
        found = find_settings(problem, backend, given)
    assert found.chains == given
    assert found.target == pytest.approx(33 / 8)  # an eighth of the draws is less than n/10


def test_a_curved_loss_makes_the_posterior_smaller() -> None:
    """Losses that are far from linear at nβ = 1e4 are met with a larger nβ."""
    problem = problem_of(seeded(mlp))
    with engine_context(problem, Chains()) as (backend, _, _):
        small = small_problem(problem, backend, 0)
        shares = [
            run_pilot(
                small, backend, SGLD(step_size=0.5 / nb, inverse_temperature=nb, localization=2 * nb), Chains(), 5
            )
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


def test_draws_follow_from_the_agreement_of_the_pilots_chains() -> None:
    """Chains of 18 draws that agree at 1/4 leave D = 54; 3 D then agree at 3/4. At a spacing of one memory each draw is
    worth tanh 1 of an independent one."""
    sampler = SGLD(step_size=1e-4, inverse_temperature=1.0, localization=1.0)
    pilot = Pilot(sampler, 3, torch.zeros(2, 24), 1.0, agreement=0.25, autocorrelation_time=5.0)
    assert pilot.draws_for(0.75, 10**6) == pytest.approx(162)
    assert pilot.draws_for(0.75, 5) == pytest.approx(162 / np.tanh(1))
    assert pilot.draws_for(0.5, 10**6) == pytest.approx(54)
    for nothing in (0.0, -0.1, float("nan")):
        assert replace(pilot, agreement=nothing).draws_for(0.75, 5) == np.inf


def odd_parts(draws: int, generator: torch.Generator) -> torch.Tensor:
    """Of two chains: independent draws of losses that are linear in 6 weights."""
    mixing = torch.randn(6, 41, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return torch.randn(2, draws, 6, dtype=torch.float64, generator=generator) @ mixing


def test_the_agreement_of_a_pilot_leaves_each_example_itself_out() -> None:
    """The median over examples of the correlation of what two chains find of its covariances with all others."""
    odd = odd_parts(20, torch.Generator().manual_seed(1))
    one, other = (chain.T @ chain for chain in odd.numpy())
    rest = [np.delete(np.arange(41), i) for i in range(41)]
    expected = np.median([np.corrcoef(one[i, j], other[i, j])[0, 1] for i, j in enumerate(rest)])
    assert _chain_agreement(odd) == pytest.approx(expected, rel=1e-12)


def test_agreement_grows_with_draws_as_n_over_n_and_d() -> None:
    """D from chains of 100 draws foretells how chains of 300 agree."""
    generator = torch.Generator().manual_seed(2)
    short, long = (torch.tensor([_chain_agreement(odd_parts(n, generator)) for _ in range(200)]) for n in (100, 300))
    foretold = 3 / (3 + 1 / short.mean() - 1)
    error = torch.hypot(long.std(), 3 * short.std()) / 200**0.5
    assert abs(float(long.mean() - foretold)) < 5 * float(error)


@pytest.mark.slow
def test_steps_are_shortened_until_minibatches_are_cooler_than_the_sampler() -> None:
    """By twice the noise ratio, which is proportional to them. Given chains are taken as they are."""
    world, problem = world_problem(weights=20)
    top = np.linalg.eigvalsh(world.hessian)[-1]
    given = Chains(num_draws=200, batch_size=4)
    with engine_context(problem, given) as (backend, _, _):
        hot, whole = (find_settings(problem, backend, replace(given, batch_size=size)) for size in (4, 300))
    heat, cool = hot.sampler, whole.sampler
    assert isinstance(heat, SGLD)
    assert isinstance(cool, SGLD)
    shorter = 1 / (heat.step_size * (heat.inverse_temperature * top + heat.localization))
    assert 1.2 < shorter <= find.MOST_COOLED + 0.2
    assert hot.minibatch_noise == pytest.approx(0.5) or shorter > 3.8
    assert hot.chains == given
    assert whole.minibatch_noise == 0
    assert cool.step_size * (cool.inverse_temperature * top + cool.localization) == pytest.approx(1, rel=0.05)


def test_gradients_that_memory_does_not_hold_leave_the_step_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    _, problem = world_problem(weights=20)
    monkeypatch.setattr(bias, "_KEPT_BYTES", 8)
    with engine_context(problem, Chains()) as (backend, _, _):
        found = find_settings(problem, backend, None)
    assert np.isnan(found.minibatch_noise)
    assert found.sampler == found.pilot.sampler


def test_chains_of_shorter_steps_are_longer() -> None:
    """Of the same draws, as far apart in memories of the chain as those of the pilot's steps."""
    sampler = SGLD(step_size=1e-4, inverse_temperature=1.0, localization=1.0)
    pilot = Pilot(sampler, 3, torch.zeros(2, 24), 1.0, agreement=0.25, autocorrelation_time=5.0)
    one, other = (_chains_for(pilot, shorter) for shorter in (1.0, 3.0))
    assert (one.thinning, other.thinning) == (5, 15)
    assert (one.burn_in, other.burn_in) == (10, 30)
    assert one.num_draws == other.num_draws == 54  # a quarter of 162/tanh 1


def test_weights_that_have_learned_nothing_have_settings_for_themselves_alone() -> None:
    """Settings of a quadratic loss last; those of a network that has not been trained do not meet their aim."""
    problem = problem_of(seeded(mlp))
    with engine_context(problem, Chains()) as (backend, _, _):
        found = find_settings(problem, backend, None)
    assert found.pilot.dimension < found.target / 4
    assert not found.lasting
    assert not found.sound


def test_a_flat_loss_is_refused() -> None:
    world = Regression(np.zeros((8, 2)), np.zeros(8), np.ones(2))
    with pytest.raises(ValueError, match="no gradient to any weight"):
        bl.estimate(world.model(), half_square, world.data(), sampler="auto")


def test_settled_settings_survive_plain_values() -> None:
    for sampler in (SGLD(step_size=1e-5, inverse_temperature=1e3, localization=7.0), Pairs(scale=0.02)):
        resolved = ResolvedSettings(sampler, Chains(num_draws=6), "because")
        assert ResolvedSettings.from_dict(resolved.as_dict()) == resolved
    values = resolved.as_dict() | {"sampler": {"kind": "Newer"}}
    with pytest.raises(ValueError, match=r"'Newer' is unknown.*SGLD"):
        ResolvedSettings.from_dict(values)


def test_the_aim_is_bounded_by_the_draws() -> None:
    assert [dimension_for(n, k) for n, k in ((1000, 800), (10**6, 800), (5, 800), (1000, 200))] == [100, 100, 1, 25]


def test_the_gradient_noise_is_that_of_the_definition() -> None:
    """ε·(nβ)²·λmax(F)/4m, of a regression whose gradients are known."""
    world = Regression.random(40, 3, 0)
    gradients = world.inputs * (world.inputs @ world.snapshot - world.targets)[:, None]
    largest = float(np.linalg.eigvalsh(np.cov(gradients.T))[-1])
    sampler = SGLD(step_size=1e-3, inverse_temperature=50.0, localization=1.0)
    found = FoundSettings(sampler, Chains(batch_size=8), True, 1.0, largest, 1.0, None, (), True)
    assert found.plain_noise_ratio == pytest.approx(1e-3 * 50.0**2 * largest / 32)
