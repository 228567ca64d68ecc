"""The measures of bias on linear regression, where each has a closed form."""

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

import bif_lightning as bl
from bif_lightning.config import SGLD, Chains, Pairs, Sampler, Subspace
from bif_lightning.data.dataset import Examples
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.estimation.estimator import at_snapshot
from bif_lightning.losses.observables import mean_of
from bif_lightning.losses.problem import Problem
from bif_lightning.results.estimate import Estimate
from bif_lightning.sampling import bias, prior_control
from bif_lightning.sampling.bias import BiasMeasures, curvature_size
from bif_lightning.sampling.choice import judge, sampler_of
from bif_lightning.sampling.context import engine_context
from bif_lightning.sampling.prior_control import control_influence
from bif_lightning.sampling.sampler import ChainContext, Prepared
from targets import Regression, gaussian_influence, half_square

pytestmark = pytest.mark.exact

WORLD, QUERY = Regression.random(40, 6, 0), Regression.random(7, 6, 1)
SAMPLER = SGLD(step_size=1e-9, inverse_temperature=100.0, localization=30.0, gradient="minibatch")
MANY = 120  # gradients: λmax of their covariance is known to about √(2/120) = 13 %


@contextmanager
def planned(sampler: Sampler, chains: Chains) -> Generator[tuple[ChainContext, Prepared]]:
    train, query = Examples(WORLD.data()), Examples(QUERY.data())
    problem = Problem(
        module=WORLD.model(), loss=half_square, objective=lambda module, batch: mean_of(half_square(module, batch)),
        train=train, query=query, training=train, prepare=lambda batch: batch,
    )  # fmt: skip
    with engine_context(problem, chains) as (backend, _, _):
        prepared = sampler_of(sampler).prepare(problem, backend, 1, Ranks())
        yield at_snapshot(problem, backend, prepared, chains), prepared


def spread(gradients: np.ndarray, batch: int) -> float:
    """λmax of the covariance of means of `batch` of these rows, drawn without repetition."""
    size = len(gradients)
    covariance = np.cov(gradients.T) * (size - batch) / (size * batch)
    return float(np.linalg.eigvalsh(covariance)[-1])


def test_noise_ratio_of_plain_minibatches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bias, "_GRADIENTS", MANY)
    with planned(SAMPLER, Chains(batch_size=8)) as (plan, prepared):
        got = prepared.noise_ratio(plan)
    residual = WORLD.inputs @ WORLD.snapshot - WORLD.targets
    exact = 1e-9 * 100**2 * spread(WORLD.inputs * residual[:, None], 8) / 4
    assert got == pytest.approx(exact, rel=0.35)


def test_noise_ratio_of_control_variates_is_that_where_chains_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bias, "_GRADIENTS", MANY)
    sampler = SGLD(step_size=1e-3, inverse_temperature=100.0, localization=30.0)
    with planned(sampler, Chains(batch_size=8)) as (plan, prepared):
        got = prepared.noise_ratio(plan)
        walker = prepared.start(plan, bias._CHAIN)
        for index in range(bias._STEPS):
            prepared.draw(walker, index)
        away = (walker.weights.flat - plan.backend.center)[:6].numpy()
    exact = 1e-3 * 100**2 * spread(WORLD.inputs * (WORLD.inputs @ away)[:, None], 8) / 4
    assert got == pytest.approx(exact, rel=0.35)


def test_few_gradients_are_about_right() -> None:
    """The usual number, over seeds: the largest eigenvalue of a sample is not too large on average by half."""
    residual = WORLD.inputs @ WORLD.snapshot - WORLD.targets
    exact = 1e-9 * 100**2 * spread(WORLD.inputs * residual[:, None], 8) / 4
    found = list[float]()
    for seed in range(30):
        with planned(SAMPLER, Chains(batch_size=8, seed=seed)) as (plan, prepared):
            found.append(prepared.noise_ratio(plan))
    assert np.mean(found) == pytest.approx(exact, rel=0.5)


def test_noise_ratio_with_a_preconditioner_uses_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bias, "_GRADIENTS", MANY)
    sampler = SGLD(
        step_size=1e-9, inverse_temperature=100.0, localization=30.0, gradient="minibatch", preconditioner="rmsprop"
    )
    with planned(sampler, Chains(batch_size=8)) as (plan, prepared):
        got = prepared.noise_ratio(plan)
        walker = prepared.start(plan, bias._CHAIN)
        for index in range(bias._STEPS):
            prepared.draw(walker, index)
        for index in range(bias._STEPS, bias._STEPS + MANY):  # they count for the preconditioner too
            walker.load_gradient(index)
        assert walker.preconditioner is not None
        root = walker.preconditioner.step_sizes(sampler).sqrt()[:6].numpy()
    residual = WORLD.inputs @ WORLD.snapshot - WORLD.targets
    exact = 100**2 * spread(WORLD.inputs * residual[:, None] * root, 8) / 4
    assert got == pytest.approx(exact, rel=0.35)


def test_where_there_is_no_noise_or_no_sgld() -> None:
    cold = SGLD(step_size=1e-3, inverse_temperature=0.0, localization=30.0)
    for sampler, chains, expected in (
        (SAMPLER, Chains(batch_size=40), 0.0),
        (cold, Chains(batch_size=8), 0.0),
        (Pairs(), Chains(batch_size=8), math.nan),
    ):
        with planned(sampler, chains) as (plan, prepared):
            assert prepared.noise_ratio(plan) == pytest.approx(expected, nan_ok=True)


def test_gradients_that_do_not_fit_into_memory_give_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    with planned(SAMPLER, Chains(batch_size=8)) as (plan, prepared):
        monkeypatch.setattr(bias, "_KEPT_BYTES", 4 * 8 * plan.backend.layout.size - 1)
        assert math.isnan(prepared.noise_ratio(plan))


def test_llc_ratio_is_one_for_the_exact_posterior() -> None:
    """nβ·(E L − L*) = d_eff/2 for N(w*, (nβH + γI)⁻¹) and a quadratic loss whose minimum is w*; the probe is random."""
    held = 100 * np.linalg.eigvalsh(WORLD.hessian)
    llc = float((held / (held + 30)).sum() / 2)
    inverse = list[float]()
    for seed in range(60):
        with planned(SAMPLER, Chains(seed=seed)) as (plan, prepared):
            inverse.append(1 / prepared.llc_ratio(plan, llc))
    assert np.mean(inverse) == pytest.approx(1.0, abs=5 * np.std(inverse) / math.sqrt(60))
    assert np.std(inverse) < 0.5


def test_llc_ratio_is_unknown_without_a_pull_or_data() -> None:
    for sampler in (
        SGLD(step_size=1e-9, inverse_temperature=100.0, localization=0.0),
        SGLD(step_size=1e-9, inverse_temperature=0.0, localization=1.0),
        Pairs(),
    ):
        with planned(sampler, Chains()) as (plan, prepared):
            assert math.isnan(prepared.llc_ratio(plan, 1.0))


def test_the_draws_of_subspace_check_its_closed_form() -> None:
    """2·LLC/d_eff is 1 for a quadratic loss; nothing further is measured."""
    sampler = Subspace(inverse_temperature=100.0, localization=30.0, metric="euclidean")
    chains = Chains(num_draws=500)
    got = bl.estimate(WORLD.model(), half_square, WORLD.data(), QUERY.data(), sampler=sampler, chains=chains)
    of, held = got.diagnostics, 100 * np.linalg.eigvalsh(WORLD.hessian)
    dimension = float((held / (held + 30)).sum())
    assert of.llc_ratio == pytest.approx(2 * of.llc / dimension, rel=1e-6)
    assert of.llc_ratio == pytest.approx(1.0, abs=5 * 2 * of.llc_standard_error / dimension)
    assert of.llc_standard_error < 0.1 * dimension
    assert math.isnan(of.noise_ratio)
    assert math.isnan(of.control_agreement)
    assert judge(got).word == "good"


def test_a_loss_that_outgrows_its_curvature_is_not_local_to_subspace() -> None:
    """The advice that it gives is followed, and holds."""

    def steep(module: torch.nn.Module, batch: Sequence[torch.Tensor]) -> torch.Tensor:
        residual = module(batch[0]) - batch[1]
        return 0.5 * residual**2 + residual**6

    world = replace(WORLD, targets=WORLD.inputs @ WORLD.snapshot + 0.1 * WORLD.targets)

    def run(pull: float) -> Estimate:
        sampler = Subspace(inverse_temperature=3.0, localization=pull)
        return bl.estimate(world.model(), steep, world.data(), QUERY.data(), sampler=sampler)

    wide = run(10.0)
    assert wide.diagnostics.llc_ratio > 3
    assert judge(wide).word == "not local"
    assert "influence beyond first order is missing" in judge(wide).sentence
    advised = float(judge(wide).advice.split("about ")[1].split(",")[0])
    assert run(advised).diagnostics.llc_ratio < 3


def test_curvature_takes_a_small_share_of_the_passes() -> None:
    with planned(SAMPLER, Chains(num_draws=2000, batch_size=8)) as (plan, _):
        rows, steps = curvature_size(plan, SAMPLER)
        passes = 4 * 2000 * (40 + 7) + 4 * 2000 * 8 * 3
        assert steps == 24
        assert 0 <= 0.02 * passes - rows * steps * 12 < steps * 12
    # Passes of a draw are 4·(47 + 24); 5 % of those of 400 draws are 473 products with one example each.
    for draws, size in ((400, (32, 14)), (80, (11, 8)), (2, (8, 8))):
        with planned(SAMPLER, Chains(num_draws=draws, batch_size=8)) as (plan, _):
            assert curvature_size(plan, SAMPLER) == size


def test_the_control_is_the_influence_under_the_pull_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prior_control, "MOST_DRAWS", 4000)
    with planned(SAMPLER, Chains(num_chains=4, num_draws=20000)) as (plan, prepared):
        got = control_influence(prepared, plan, [0, 3, 6], 1, Ranks())
    assert got is not None
    exact = gaussian_influence(WORLD, QUERY, WORLD.snapshot, np.eye(6) / 30)[:, [0, 3, 6]]
    spreads = np.outer(*(
        np.sqrt(-np.diag(gaussian_influence(w, w, WORLD.snapshot, np.eye(6) / 30))) for w in (WORLD, QUERY)
    ))[:, [0, 3, 6]]  # fmt: skip
    assert np.abs((got.numpy() - exact) / spreads).max() < 5 * math.sqrt(3 / 4000)


def test_the_control_does_not_depend_on_how_many_draw() -> None:
    with planned(SAMPLER, Chains()) as (plan, prepared):
        one, three = (control_influence(prepared, plan, [0, 1], workers, Ranks()) for workers in (1, 3))
    assert one is not None
    assert torch.equal(one, three)  # pyright: ignore[reportArgumentType]


def test_a_model_that_refuses_to_be_so_far_away_has_no_control(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(problem: Problem, bound: object) -> tuple[torch.Tensor, torch.Tensor]:
        raise ValueError("logits must be finite")

    with planned(SAMPLER, Chains()) as (plan, prepared):
        monkeypatch.setattr(Problem, "measure", refusing)
        assert control_influence(prepared, plan, [0, 1], 1, Ranks()) is None


def test_weights_that_run_away_have_an_infinite_noise_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    wild = SGLD(step_size=1e30, inverse_temperature=1e30, localization=0.0)
    with planned(wild, Chains(batch_size=8)) as (plan, prepared):
        assert prepared.noise_ratio(plan) == math.inf

        def refusing(problem: Problem, bound: object, minibatch: object, factor: float) -> None:
            raise ValueError("weights must be finite")

        monkeypatch.setattr(Problem, "add_gradient", refusing)
        with pytest.raises(ValueError, match="weights must be finite"):
            prepared.noise_ratio(plan)


@pytest.mark.parametrize(
    ("sampler", "draws", "expected"),
    [
        (SAMPLER, 100, 20),
        (SAMPLER, 1000, prior_control.MOST_DRAWS),
        (SAMPLER, 39, 0),
        (Pairs(), 100, 0),
        (SGLD(step_size=1e-9, inverse_temperature=1.0, localization=0.0), 100, 0),
    ],
)
def test_how_many_draws_the_control_takes(sampler: Sampler, draws: int, expected: int) -> None:
    with planned(sampler, Chains(num_draws=draws + draws % 2 * isinstance(sampler, Pairs))) as (plan, prepared):
        assert prepared.control_draws(plan.chains) == expected


def test_agreement_is_over_the_scored_queries() -> None:
    scores = np.random.default_rng(0).normal(size=(9, 4))
    with_control = BiasMeasures(0.0, 1.0, torch.from_numpy(scores[:, [1, 3]]), [1, 3])
    assert with_control.agreement(scores) == pytest.approx(1.0)
    assert with_control.agreement(-scores) == pytest.approx(-1.0)
    assert math.isnan(BiasMeasures(0.0, 1.0, None, [1, 3]).agreement(scores))


def test_an_estimate_holds_all_of_it() -> None:
    sampler = SGLD(step_size=0.002, inverse_temperature=100.0, localization=30.0)
    chains = Chains(burn_in=20, batch_size=8)
    got = bl.estimate(WORLD.model(), half_square, WORLD.data(), QUERY.data(), sampler=sampler, chains=chains)
    of = got.diagnostics
    assert 0 < of.noise_ratio < 1
    assert 0.3 < of.llc_ratio < 3
    assert 0.2 < of.control_agreement < 1
    assert got.top_stability is not None
    assert got.top_stability.shape == (7,)
    assert 0.5 < got.top_stability.mean() <= 1
