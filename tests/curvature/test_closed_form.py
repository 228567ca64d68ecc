"""The closed form of `Subspace`, and SGLD inside directions, against linear regression where all is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bif_lightning.config import SGLD, Chains, Pairs, PullMetric, Subspace
from bif_lightning.curvature.closed_form import LinearizedPosterior
from bif_lightning.curvature.gaussian import SubspaceGaussian, strongest_directions
from bif_lightning.estimation.estimate import estimate
from bif_lightning.results.estimate import Estimate
from bif_lightning.statistics.effective_dimension import effective_dimension, ridge_for
from targets import Regression, WeightValues, half_square

pytestmark = pytest.mark.exact

TRAIN, QUERY = Regression.random(16, 5, 0), Regression.random(6, 5, 1)
CHAINS = Chains(num_chains=2, num_draws=6, batch_size=4, seed=3)
WHOLE = Subspace(num_directions=5, inverse_temperature=30.0, localization=2.0)


def run(sampler: Subspace | SGLD | Pairs, chains: Chains = CHAINS, **further: object) -> Estimate:
    return estimate(TRAIN.model(), half_square, TRAIN.data(), QUERY.data(), sampler=sampler, chains=chains, **further)  # type: ignore[arg-type]


def gradients(world: Regression) -> np.ndarray:
    return world.inputs * (world.inputs @ TRAIN.snapshot - world.targets)[:, None]


def root(metric: str) -> np.ndarray:
    """M^(−½), for the one layer of one output that there is: V·diag(Λ + mean Λ)^(−½)·Vᵀ, scaled."""
    if metric == "euclidean":
        return np.eye(5)
    g = gradients(TRAIN)
    v = np.linalg.eigh(g.T @ g)[1]
    moments = ((g @ v) ** 2).mean(0)
    found = v @ np.diag((moments + moments.mean()) ** -0.5) @ v.T
    return found * np.sqrt((g**2).sum() / ((g @ found) ** 2).sum())


def covariance(directions: int, nb: float, pull: float, metric: str = "kronecker") -> np.ndarray:
    """M^(−½)·(nβ·QᵀQĤQᵀQ + γ·I)⁻¹·M^(−½) with Q the leading right singular vectors of the gradients M^(−½)·g, and
    Ĥ = M^(−½)·H·M^(−½)."""
    lower = root(metric)
    q = np.linalg.svd(gradients(TRAIN) @ lower)[2][:directions]
    hessian = lower @ TRAIN.hessian @ lower
    return lower @ np.linalg.inv(nb * q.T @ (q @ hessian @ q.T) @ q + pull * np.eye(5)) @ lower


@pytest.mark.parametrize("metric", ["kronecker", "euclidean"])
@pytest.mark.parametrize("directions", [1, 3, 5, 64])
def test_influence_is_the_closed_form(directions: int, metric: PullMetric) -> None:
    found = run(replace(WHOLE, num_directions=directions, metric=metric))
    sigma = covariance(min(directions, 5), 30.0, 2.0, metric)
    exact = -gradients(TRAIN) @ sigma @ gradients(QUERY).T
    np.testing.assert_allclose(found.influence, exact, rtol=1e-5, atol=1e-7)
    own = [np.einsum("ia,ab,ib->i", g, sigma, g) for g in (gradients(TRAIN), gradients(QUERY))]
    np.testing.assert_allclose(found.correlation, -exact / np.sqrt(np.outer(*own)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.train_std, np.sqrt(own[0]), rtol=1e-6)


def test_its_error_is_the_spread_over_groups_of_examples_of_the_curvature() -> None:
    """dCov = −nβ·g_iᵀΣ·(H_g − H)·Σg_j for each of 8 groups of 2, found here from the examples themselves."""
    found = run(WHOLE)
    sigma = covariance(5, 30.0, 2.0)
    left, right = gradients(TRAIN) @ sigma, gradients(QUERY) @ sigma
    moved = list[np.ndarray]()
    for first in range(8):
        x = TRAIN.inputs[first::8][:2]
        moved.append(30.0 * left @ (x.T @ x / 2 - TRAIN.hessian) @ right.T)
    spread = np.std(moved, axis=0, ddof=1) / np.sqrt(8)
    t_quantile = 2.3646  # of 7 degrees of freedom, so that ±1.96 standard errors hold 95 %
    np.testing.assert_allclose(found.losses.influence_standard_error, spread * t_quantile / 1.96, rtol=2e-3)


def test_further_observables_have_the_slopes_that_were_measured() -> None:
    found = run(WHOLE, observables=[WeightValues(5)])
    exact = -gradients(TRAIN) @ covariance(5, 30.0, 2.0)
    np.testing.assert_allclose(found.observables["weights"].influence, exact, rtol=1e-5, atol=1e-7)


def test_the_draws_are_those_of_the_posterior_within_the_span() -> None:
    """LLC = nβ·E[L − L(w*)] of a quadratic loss, linear part apart, is ½·Σ nβh/(nβh + γ); pairs cancel the linear."""
    found = run(WHOLE, Chains(num_chains=4, num_draws=500, seed=1))
    dimension = np.trace(30.0 * TRAIN.hessian @ covariance(5, 30.0, 2.0))
    assert found.effective_dimension == pytest.approx(dimension, rel=1e-6)
    z = (found.diagnostics.llc - dimension / 2) / found.diagnostics.llc_standard_error
    assert abs(z) < 5
    assert found.diagnostics.llc == pytest.approx(dimension / 2, rel=0.2)


@pytest.mark.parametrize("flat", [1.0, 1e-9])
def test_draws_stay_near_however_flat_the_loss(flat: float) -> None:
    """A fitted model has hardly any curvature: nβ grows so that draws stay within 2 % of |w*|, and no rank changes."""
    found, steep = (
        estimate(
            TRAIN.model(), lambda m, b, by=by: by * half_square(m, b), TRAIN.data(), QUERY.data(),
            sampler=Subspace(num_directions=5), chains=CHAINS,
        )
        for by in (flat, 1.0)
    )  # fmt: skip
    assert found.divergences == ()
    reach = 0.02 * np.linalg.norm(TRAIN.snapshot)
    assert np.sqrt((found.distance_trace**2).mean()) < 2 * reach
    lower = root("kronecker")
    hessian = flat * lower @ TRAIN.hessian @ lower
    ridge = ridge_for(torch.from_numpy(np.linalg.eigvalsh(hessian)), 0.3 * 5)
    needed = np.trace(lower @ np.linalg.inv(hessian + ridge * np.eye(5)) @ lower) / reach**2
    assert found.sampler.inverse_temperature == pytest.approx(max(1e5, needed), rel=1e-3)
    np.testing.assert_allclose(found.correlation, steep.correlation, rtol=1e-4, atol=1e-6)


class Faint(torch.nn.Module):
    """A network of which one layer hardly acts."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        self.faint, self.by = torch.nn.Linear(8, 3), by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) + self.by * self.faint(x)


@pytest.mark.parametrize("by", [1.0, 1e-2, 1e-4, 1e-6])
def test_a_layer_that_hardly_acts_makes_no_draw_diverge(by: float) -> None:
    """The pull hardly holds its weights, and what they move by is measured as the pull has it."""
    made = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(80, 8, generator=made), torch.randint(0, 3, (80,), generator=made)
    examples = list(zip(inputs, labels, strict=True))
    torch.manual_seed(0)
    found = estimate(
        Faint(by), lambda m, b: torch.nn.functional.cross_entropy(m(b[0]), b[1], reduction="none"),
        examples[:60], examples[60:], sampler=Subspace(),
    )  # fmt: skip
    assert found.divergences == ()
    assert np.isfinite(found.correlation).all()


def test_a_loss_without_gradients_is_refused() -> None:
    with pytest.raises(ValueError, match="the gradient of every train example is 0"):
        strongest_directions(torch.zeros(3, 5), 2)


def test_pairs_are_mirrored_about_the_snapshot() -> None:
    weights = run(Pairs(scale=0.3), observables=[WeightValues(5)], store_traces=True).traces
    assert weights is not None
    drawn = weights.columns["weights"]
    np.testing.assert_allclose(
        drawn[:, 0::2] + drawn[:, 1::2], np.broadcast_to(2 * TRAIN.snapshot, (2, 3, 5)), rtol=1e-6
    )
    assert np.unique(drawn[:, 0::2].round(6)).size == drawn[:, 0::2].size


def test_without_a_localization_the_rule_gives_one() -> None:
    found = run(replace(WHOLE, localization=None))
    assert isinstance(found.sampler, Subspace)
    assert found.sampler.localization is not None, "the dump says which it was"
    assert found.effective_dimension == pytest.approx(min(0.1 * 16, 0.3 * 5), rel=1e-9)
    isotropic = run(replace(WHOLE, localization=None, metric="euclidean"))
    assert isotropic.effective_dimension == pytest.approx(min(0.1 * 16, 0.7 * 5), rel=1e-9)


def test_sgld_stays_in_its_directions() -> None:
    sampler = SGLD(step_size=0.01, inverse_temperature=4.0, localization=2.0, num_directions=2)
    found = run(sampler, observables=[WeightValues(5)], store_traces=True)
    assert found.traces is not None
    moved = (found.traces.columns["weights"] - TRAIN.snapshot).reshape(-1, 5)
    q = np.linalg.svd(gradients(TRAIN))[2][:2]
    np.testing.assert_allclose(moved @ q.T @ q, moved, atol=1e-6)
    assert np.linalg.matrix_rank(moved, tol=1e-4) == 2


def test_strongest_directions_are_singular_vectors() -> None:
    rows = torch.randn(20, 300, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 0.1, 20)[:, None]
    found = strongest_directions(rows, 6)
    torch.testing.assert_close(found @ found.mT, torch.eye(6), rtol=0, atol=1e-5)
    exact = torch.linalg.svd(rows.double(), full_matrices=False).Vh[:6]
    torch.testing.assert_close(
        (found.double() @ exact.mT).square().sum(), torch.tensor(6.0).double(), rtol=1e-5, atol=0
    )
    twice = torch.cat([rows, rows])  # of rank 20 still
    assert len(strongest_directions(twice, 40)) == 20


def test_ridge_and_dimension_are_inverse_to_each_other() -> None:
    curvature = torch.logspace(-4, 1, 30, dtype=torch.float64)
    for wanted in (0.5, 7.0, 29.0):
        assert effective_dimension(curvature, ridge_for(curvature, wanted)) == pytest.approx(wanted, rel=1e-9)
    with pytest.raises(ValueError, match="raise num_directions"):
        ridge_for(curvature, 30.0)


def test_a_direction_of_negative_curvature_is_cut_off() -> None:
    normal, _ = SubspaceGaussian.of(
        torch.eye(3).double(), torch.diag(torch.tensor([2.0, -5.0, 1.0])).double(), 10.0, 1.0
    )
    assert sorted(normal.curvature.tolist()) == [0.0, 1.0, 2.0]
    groups = torch.stack([torch.eye(3), -torch.eye(3)]).double()
    linear = LinearizedPosterior.of(normal, groups, torch.eye(3).double(), torch.eye(3).double())
    cut = linear.deviations[:, normal.curvature == 0]
    assert float(cut.abs().max()) == 0


@pytest.mark.parametrize("change", [{"burn_in": 1}, {"thinning": 2}, {"num_draws": 7}])
def test_chains_that_pairs_cannot_run_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="burn_in=0, thinning=1 and an even num_draws"):
        run(WHOLE, replace(CHAINS, **change))
    with pytest.raises(ValueError, match="Pairs makes independent draws"):
        run(Pairs(), replace(CHAINS, **change))


def test_gradients_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bif_lightning.curvature.gradients.MOST_BYTES", 100)
    with pytest.raises(ValueError, match=r"16 train and 6 query examples with respect to 5 weights .* restrict params"):
        run(WHOLE)
