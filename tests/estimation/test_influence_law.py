"""Influence of the real engine against what its estimator is on average, exactly, for linear regression."""

import numpy as np
import pytest

from bif_lightning.config import SGLD, Chains
from bif_lightning.estimation.estimate import estimate
from bif_lightning.results.estimate import Estimate
from targets import Regression, chain_law, gaussian_influence, half_square

pytestmark = pytest.mark.statistical

TRAIN, QUERY = Regression.random(8, 3, 0), Regression.random(5, 3, 1)
SAMPLER = SGLD(step_size=0.06, inverse_temperature=4.0, localization=2.0)
CHAINS = Chains(num_chains=40, num_draws=40, burn_in=3, thinning=2, batch_size=8, seed=9)


@pytest.fixture(scope="module")
def found() -> Estimate:
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    return estimate(
        TRAIN.model(), half_square, TRAIN.data(), QUERY.data(), sampler=SAMPLER, chains=CHAINS, store_traces=True
    )


def expected() -> np.ndarray:
    steps = CHAINS.burn_in + CHAINS.thinning * np.arange(1, CHAINS.num_draws + 1)
    law = chain_law(TRAIN, SAMPLER, steps)
    query = Regression(QUERY.inputs, QUERY.targets, TRAIN.snapshot)
    return -law.sample_covariance(TRAIN, query)


def test_influence_is_the_closed_form_within_its_reported_error(found: Estimate) -> None:
    z = (found.influence - expected()) / found.losses.influence_standard_error
    assert np.abs(z).max() < 5
    assert 0.4 < np.sqrt((z**2).mean()) < 1.8, "errors are of the right size, not merely large"


def test_influence_is_the_closed_form_within_the_spread_of_its_chains(found: Estimate) -> None:
    """Every chain is an independent estimate, so their spread is an error without assumptions."""
    assert found.traces is not None
    train, query = found.traces.train.astype(float), found.traces.columns["loss"].astype(float)
    each = np.array([-np.cov(a.T, b.T)[:8, 8:] for a, b in zip(train, query, strict=True)])
    error = each.std(0, ddof=1) / np.sqrt(len(each))
    np.testing.assert_allclose(each.mean(0), found.influence, rtol=1e-3, atol=1e-5)
    assert np.abs((found.influence - expected()) / error).max() < 5
    ratio = found.losses.influence_standard_error / error
    assert 0.7 < np.median(ratio) < 1.5


def test_long_chains_come_to_the_influence_of_the_posterior() -> None:
    """The finite-sample law above goes to −(r_i r_j x_iᵀΣx_j + ½(x_iᵀΣx_j)²) as chains grow and steps shrink."""
    fine = SGLD(step_size=1e-3, inverse_temperature=4.0, localization=2.0)
    law = chain_law(TRAIN, fine, 4000 * np.arange(1, 301))
    query = Regression(QUERY.inputs, QUERY.targets, TRAIN.snapshot)
    covariance = np.linalg.inv(4.0 * TRAIN.hessian + 2.0 * np.eye(3))
    exact = gaussian_influence(TRAIN, query, TRAIN.snapshot, covariance)
    np.testing.assert_allclose(-law.sample_covariance(TRAIN, query), exact, rtol=1e-2, atol=1e-5)


def test_local_learning_coefficient_is_that_of_the_law(found: Estimate) -> None:
    """λ̂ = nβ·E[L − L(w*)] is nβ·½·tr(H·Cov) where the mean stays at w*, and so does its error over chains."""
    steps = CHAINS.burn_in + CHAINS.thinning * np.arange(1, CHAINS.num_draws + 1)
    law = chain_law(TRAIN, SAMPLER, steps)
    exact = 4.0 * 0.5 * np.einsum("ab,ttab->t", TRAIN.hessian, law.covariance).mean()
    z = (found.diagnostics.llc - exact) / found.diagnostics.llc_standard_error
    assert abs(z) < 5
    # Long chains are settled: drift is a t statistic with 39 degrees of freedom.
    assert abs(found.diagnostics.drift) < 5
    assert found.diagnostics.rhat < 1.1
    assert found.diagnostics.score_agreement > 0.7
