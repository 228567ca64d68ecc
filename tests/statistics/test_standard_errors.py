"""What makes an error cover, piece by piece: against scipy, plain loops, and processes that are known."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from bif_lightning.config import Centring
from bif_lightning.statistics.draws import from_draws
from bif_lightning.statistics.influence import correlation, products
from bif_lightning.statistics.moments import Moments, merge_batches, stack
from bif_lightning.statistics.standard_errors import (
    LEAST_DRAWS,
    ErrorScale,
    chain_mean_covariance,
    correlation_bias,
    correlation_error,
    fit_error_model,
    influence_error,
    lags,
    quantile,
    skewness_factor,
    variance_inflation,
)

pytestmark = pytest.mark.exact

RNG = np.random.default_rng(0)


def moments(train: np.ndarray, columns: np.ndarray, lengths: list[int]) -> Moments:
    """[chain, batch] moments of draws [chain, draw, row]."""
    chains = zip(torch.from_numpy(train), torch.from_numpy(columns), strict=True)
    return stack([
        stack([from_draws(t, c) for t, c in zip(of_train.split(lengths), of_columns.split(lengths), strict=True)])
        for of_train, of_columns in chains
    ])  # fmt: skip


def test_merged_batches_are_those_of_the_longer_lengths() -> None:
    train, columns = RNG.normal(size=(3, 20, 4)), RNG.normal(size=(3, 20, 2))
    fine = moments(train, columns, [3, 3, 3, 3, 2, 2, 2, 2])
    for count, lengths in ((8, [3, 3, 3, 3, 2, 2, 2, 2]), (3, [9, 7, 4]), (2, [12, 8]), (1, [20])):
        expected = moments(train, columns, lengths)
        for got, want in zip(vars(merge_batches(fine, count)).values(), vars(expected).values(), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_lags_are_sums_over_chains_and_entries() -> None:
    moved, share = RNG.normal(size=(8, 3, 2)), np.array([0.1, 0.15] * 4)
    moved[:, 1, 1] = math.nan  # an undefined entry counts for nothing
    deviation = (moved - np.tensordot(share, moved, 1)) * share[:, None, None]
    chains = deviation.reshape(2, 4, 3, 2)
    expected = [np.nansum(chains[:, : 4 - j] * chains[:, j:]) for j in range(4)]
    assert lags(moved * share[:, None, None], share, 2) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("factor", [0.0, 0.3, 0.7])
def test_memory_is_that_of_an_autoregression(factor: float) -> None:
    """Of K batches with ρ_j = a^j it is 1 + 2·Σ(1 − j/K)·a^j, also where the lags are about the batches' own mean."""
    chains, count = 5, 12
    truth = 1 + 2 * sum((1 - j / count) * factor**j for j in range(1, count))
    lost = truth / (chains * count)
    about_own_mean = [chains * (count - j) * (factor**j - lost) for j in range(count)]
    assert variance_inflation(about_own_mean, chains) == pytest.approx(truth, rel=1e-6)


def test_memory_is_at_least_one_and_stops_where_correlation_ends() -> None:
    assert variance_inflation([0.0, 0.0], 3) == 1.0  # nothing varies
    assert variance_inflation([1.0], 24) == 1.0  # chains are independent
    assert variance_inflation([1.0, -0.3, 0.2, 0.1], 1000) == pytest.approx(1.0)
    # Lag 2 is cut down to lag 1: correlation that grows with distance is noise.
    assert variance_inflation([1.0, 0.1 * 3 / 4, 0.5, 0.0], 10**6) == pytest.approx(
        1 + 2 * (3 / 4 + 2 / 4) * 0.1, rel=1e-4
    )


@pytest.mark.parametrize("degrees", [1, 2.5, 10, 100])
def test_quantile_is_student_s(degrees: float) -> None:
    assert quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-12)


def test_skewness_factor_is_that_of_gaussian_products() -> None:
    """g of u·v by its third central moment, from a million draws."""
    u, v = RNG.normal(size=(2, 10**6))
    for corr in (0.0, 0.5, 1.0):
        product = u * (corr * u + math.sqrt(1 - corr**2) * v)
        expected = 1 + 1.08 / 50 * float(stats.skew(product)) ** 2
        assert float(skewness_factor(np.array([corr]), 50.0)[0]) == pytest.approx(expected, rel=0.01)
    assert float(skewness_factor(np.array([1.0]), 2.0)[0]) == 2.0
    assert float(skewness_factor(np.array([math.nan]), 2.0)[0]) == 1.0


@pytest.mark.parametrize(("centring", "share"), [("chain", 1.0), ("pooled", 0.25)])
def test_the_centre_is_known_from_the_spread_of_chains(centring: Centring, share: float) -> None:
    train, columns = RNG.normal(size=(4, 12, 3)), RNG.normal(size=(4, 12, 2))
    got = chain_mean_covariance(moments(train, columns, [6, 6]), centring)
    both = np.concatenate([train, columns], axis=2).mean(1)
    expected = np.cov(both.T) * share * 1.3
    np.testing.assert_allclose(got.covariance, expected[:3, 3:], rtol=1e-4)
    np.testing.assert_allclose(got.train_variance, np.diag(expected)[:3], rtol=1e-4)
    np.testing.assert_allclose(got.column_variance, np.diag(expected)[3:], rtol=1e-4)


def test_the_centre_of_a_single_chain_is_known_from_its_quarters() -> None:
    train, columns = RNG.normal(size=(1, 16, 3)), RNG.normal(size=(1, 16, 2))
    got = chain_mean_covariance(moments(train, columns, [2] * 8), "chain").covariance
    quarters = np.concatenate([train, columns], axis=2).reshape(4, 4, 5).mean(1)
    np.testing.assert_allclose(got, np.cov(quarters.T)[:3, 3:] / 4 * 1.3, rtol=1e-4)
    nothing = chain_mean_covariance(moments(train, columns, [16]), "chain")
    assert np.abs(nothing.covariance).max() == 0.0


def test_the_bias_of_a_correlation_is_its_derivative() -> None:
    train, columns = RNG.normal(size=(4, 50, 3)), RNG.normal(size=(4, 50, 2))
    columns[..., 0] += train[..., 0]
    parts = moments(train, columns, [25, 25])
    draws, lacking = products(parts, "chain"), chain_mean_covariance(parts, "chain")
    corr = correlation(draws.standardized())[0].value
    got = correlation_bias(corr, draws, lacking)
    covariance, (left, right) = draws.covariance.sum(0), (np.square(std) for std in draws.stds)

    def at(h: float) -> np.ndarray:
        scale = (left + h * lacking.train_variance)[:, None] * (right + h * lacking.column_variance)
        return (covariance + h * lacking.covariance) / np.sqrt(scale)

    np.testing.assert_allclose(got, (at(1e-5) - at(-1e-5)) / 2e-5, rtol=1e-6, atol=1e-9)


def test_errors_add_what_is_lacking_in_quadrature() -> None:
    spread, corr, lacking = np.array([[3.0]]), np.array([[1.0]]), np.array([[-4.0]])
    factor = 1 + 1.08 * 8 / 100  # g² of a square is 8
    got = influence_error(spread, corr, ErrorScale(1.5, 100.0), lacking)
    assert got.item() == pytest.approx(math.hypot(3 * 1.5 * factor, 4))
    assert correlation_error(spread, ErrorScale(1.5, 100.0), lacking).item() == pytest.approx(math.hypot(4.5, 4))


def walk(chains: int, draws: int, factor: float, rng: np.random.Generator) -> np.ndarray:
    x = rng.normal(size=(chains, 30))
    out = np.empty((chains, draws, 30))
    for t in range(draws):
        x = factor * x + math.sqrt(1 - factor**2) * rng.normal(size=x.shape)
        out[:, t] = x
    return out


def test_independent_draws_are_worth_their_number() -> None:
    draws = walk(4, 1200, 0.0, np.random.default_rng(1))
    got = fit_error_model(moments(draws[..., :20], draws[..., 20:], [200] * 6), "chain")
    assert got.influence.draws == pytest.approx(4800, rel=0.15)
    assert got.correlation.draws == pytest.approx(4800, rel=0.15)
    assert got.parts == 6
    assert got.influence.factor == pytest.approx(stats.t.ppf(0.975, 23) / 1.96, rel=0.05)


def test_draws_that_repeat_one_another_are_worth_fewer_and_are_merged() -> None:
    """Products of an autoregression with factor a forget by a²: N·(1 − a²)/(1 + a²) draws."""
    draws = walk(4, 1200, 0.98, np.random.default_rng(1))
    got = fit_error_model(moments(draws[..., :20], draws[..., 20:], [50] * 24), "chain")
    assert got.parts < 24
    assert got.correlation.draws == pytest.approx(4800 * (1 - 0.98**2) / (1 + 0.98**2), rel=0.3)


def test_chains_that_stand_apart_have_wider_errors() -> None:
    """Draws are the same about the means of their chains, and products of losses wider about the long-run means:
    √((1 + C_ii/s_i²)(1 + C_jj/s_j²)) times. The errors of correlations, which have no width, stay."""
    draws = walk(4, 400, 0.0, np.random.default_rng(1))
    apart = draws + np.random.default_rng(2).normal(size=(4, 1, 1)) * np.linspace(0.5, 1.5, draws.shape[-1])
    together = draws - draws.mean(1, keepdims=True)
    parts, narrow = (moments(each[..., :20], each[..., 20:], [100] * 4) for each in (apart, together))
    found, before, lacking = (
        fit_error_model(parts, "chain"),
        fit_error_model(narrow, "chain"),
        chain_mean_covariance(parts, "chain"),
    )
    within = draws.var(1).mean(0) * 400 / 399
    sides = (lacking.train_variance, within[:20]), (lacking.column_variance, within[20:])
    wider = math.prod(float(np.mean(1 + lack / variance)) for lack, variance in sides)
    assert wider > 1.5
    assert found.influence.factor / before.influence.factor == pytest.approx(math.sqrt(wider), rel=1e-6)
    assert found.correlation.factor == pytest.approx(before.correlation.factor, rel=1e-9)


def test_a_single_chain_that_is_too_short_has_no_error() -> None:
    rng = np.random.default_rng(1)
    long, short = walk(1, 400, 0.0, rng), walk(1, 400, 0.98, rng)
    enough, lacking = (
        fit_error_model(moments(draws[..., :20], draws[..., 20:], [50] * 8), "chain") for draws in (long, short)
    )
    assert math.isfinite(enough.influence.factor)
    assert lacking.influence.draws < LEAST_DRAWS
    assert math.isnan(lacking.influence.factor)
    assert math.isnan(lacking.correlation.factor)
