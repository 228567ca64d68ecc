"""Antithetic pairs, and SGLD inside directions, against what their estimators are on average, exactly."""

import numpy as np
import pytest
import torch

from bif_lightning.config import SGLD, Chains, Pairs
from bif_lightning.curvature.closed_form import LinearizedPosterior
from bif_lightning.curvature.gaussian import SubspaceGaussian, rotate
from bif_lightning.estimation.estimate import estimate
from bif_lightning.results.estimate import Estimate
from bif_lightning.statistics.conditioned import conditioned_influence
from bif_lightning.statistics.influence import influence
from bif_lightning.statistics.standard_errors import independent
from targets import Regression, chain_law, gaussian_influence, half_square

pytestmark = pytest.mark.statistical

TRAIN, QUERY = Regression.random(8, 3, 0), Regression.random(5, 3, 1)
HERE = Regression(QUERY.inputs, QUERY.targets, TRAIN.snapshot)


def run(sampler: SGLD | Pairs, chains: Chains) -> Estimate:
    return estimate(
        TRAIN.model(), half_square, TRAIN.data(), QUERY.data(), sampler=sampler, chains=chains, store_traces=True
    )


def z_scores(found: np.ndarray, expected: np.ndarray, error: np.ndarray) -> np.ndarray:
    return (found - expected) / error


def test_pairs_have_the_influence_of_the_isotropic_gaussian() -> None:
    """−(r_i r_j x_iᵀΣx_j + ½(x_iᵀΣx_j)²), Σ = σ²I: the odd part times T/(T − 1), as pairs centre it exactly, the even
    one times (T − 2)/(T − 1)."""
    scale, draws = 0.4, 40
    found = run(Pairs(scale=scale), Chains(num_chains=40, num_draws=draws, seed=2))
    c = scale**2 * TRAIN.inputs @ QUERY.inputs.T
    even = -0.5 * c**2
    odd = gaussian_influence(TRAIN, HERE, TRAIN.snapshot, scale**2 * np.eye(3)) - even
    z = z_scores(
        found.influence, (draws * odd + (draws - 2) * even) / (draws - 1), found.losses.influence_standard_error
    )
    assert np.abs(z).max() < 5
    assert 0.4 < np.sqrt((z**2).mean()) < 1.8


def test_sgld_inside_directions_has_the_law_of_the_restricted_posterior() -> None:
    """In coordinates θ of the span, w = w* + Qᵀθ, the losses are those of a regression on the inputs Q·x."""
    sampler = SGLD(step_size=0.06, inverse_temperature=4.0, localization=2.0, num_directions=2)
    chains = Chains(num_chains=40, num_draws=40, burn_in=3, thinning=2, batch_size=8, seed=9)
    found = run(sampler, chains)
    gradients = TRAIN.inputs * (TRAIN.inputs @ TRAIN.snapshot - TRAIN.targets)[:, None]
    q = np.linalg.svd(gradients)[2][:2]
    inside = [
        Regression(each.inputs @ q.T, each.targets - each.inputs @ TRAIN.snapshot, np.zeros(2))
        for each in (TRAIN, QUERY)
    ]
    law = chain_law(inside[0], sampler, chains.burn_in + chains.thinning * np.arange(1, chains.num_draws + 1))
    z = z_scores(found.influence, -law.sample_covariance(*inside), found.losses.influence_standard_error)
    assert np.abs(z).max() < 5
    assert 0.4 < np.sqrt((z**2).mean()) < 1.8


@pytest.mark.parametrize("paired", [False, True])
def test_intervals_of_the_conditioned_influence_hold_its_long_run_mean(*, paired: bool) -> None:
    """±1.96 standard errors around the mean of 160 estimates of 4 chains of 60 independent draws, at a fixed ridge."""
    generator = torch.Generator().manual_seed(0)
    train, query = (torch.from_numpy(each.inputs) for each in (TRAIN, QUERY))
    values, errors = list[np.ndarray](), list[np.ndarray]()
    for _ in range(160):
        w = torch.randn(4, 60, 3, generator=generator, dtype=torch.float64)
        if paired:
            w[:, 1::2] = -w[:, 0::2]
        found = conditioned_influence((w @ train.mT).numpy(), (w @ query.mT).numpy(), 2.0, paired=paired)
        values.append(found.value)
        errors.append(found.standard_error)
    value, error = np.array(values), np.array(errors)
    held = (np.abs(value - value.mean(0)) < 1.96 * error).mean((1, 2))
    # Entries of one estimate go together, so that the estimates are what is counted.
    spread = float(held.std()) / 160**0.5
    assert 0.93 - 5 * spread < float(held.mean()) < 0.97 + 5 * spread
    assert 0.92 < float(held.mean()) < 0.98


def test_intervals_of_the_closed_form_hold_its_value_for_all_examples() -> None:
    """±1.96 standard errors around −gᵀΣg, Σ of a whole population's curvature, from 8 groups of 32 of its examples."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(0.5, 1.5, 4, dtype=torch.float64)
    train, query = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (8, 5))
    exact = train @ torch.linalg.inv(10 * torch.diag(scales**2) + 3 * torch.eye(4)) @ query.mT
    held = list[float]()
    for _ in range(200):
        x = torch.randn(8, 32, 4, generator=generator, dtype=torch.float64) * scales
        hessians = x.mT @ x / 32
        normal, vectors = SubspaceGaussian.of(torch.eye(4, dtype=torch.float64), hessians.mean(0), 10.0, 3.0)
        linear = LinearizedPosterior.of(normal, rotate(hessians, vectors), train, query)
        found = influence(linear.products(slice(None)))
        error = found.standard_error * independent(8).influence.factor
        held.append(float((np.abs(found.value + exact.numpy()) < 1.96 * error).mean()))
    spread = float(np.std(held)) / 200**0.5
    assert 0.93 - 5 * spread < float(np.mean(held)) < 0.97 + 5 * spread
