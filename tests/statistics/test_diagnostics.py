"""Diagnostics against arviz on fixed arrays, and against numbers worked out by hand."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats
from scipy import stats

from bif_lightning.config import SGLD
from bif_lightning.sampling.divergence import left_posterior
from bif_lightning.statistics.diagnostics import (
    drift,
    effective_sample_size,
    group_agreement,
    local_learning_coefficient,
    score_agreement,
    split_rhat,
    top_stability,
)

pytestmark = pytest.mark.exact

SAMPLER = SGLD(step_size=0.03, inverse_temperature=7.0, localization=11.0)


def autocorrelated(chains: int, draws: int, factor: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = np.zeros((chains, draws))
    for t in range(1, draws):
        x[:, t] = factor * x[:, t - 1] + rng.normal(size=chains)
    return x + np.arange(chains)[:, None] * 0.1 + 3.0


ARRAYS = [
    pytest.param(autocorrelated(chains, draws, factor, seed), id=f"{chains}x{draws}, {factor}")
    for seed, (chains, draws, factor) in enumerate([
        (4, 100, 0.0), (4, 100, 0.9), (4, 101, 0.95), (2, 31, 0.5), (1, 200, 0.8), (1, 57, 0.3), (3, 8, 0.2),
        (3, 9, 0.7), (15, 40, -0.6), (4, 500, 0.99), (5, 13, 0.0), (2, 12, -0.9), (4, 10, 0.999),
    ])
]  # fmt: skip


@pytest.mark.parametrize("trace", ARRAYS)
def test_ess_is_that_of_arviz(trace: np.ndarray) -> None:
    expected = array_stats.ess(trace, method="mean")
    assert effective_sample_size(torch.from_numpy(trace)) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("trace", [case for case in ARRAYS if len(case.values[0]) > 1])
def test_rhat_is_that_of_arviz(trace: np.ndarray) -> None:
    expected = array_stats.rhat(trace, method="split")
    assert split_rhat(torch.from_numpy(trace)) == pytest.approx(float(expected), rel=1e-10)


def test_rhat_of_one_chain_compares_its_halves() -> None:
    trace = torch.tensor([[1.0, 2.0, 99.0, 4.0, 7.0]], dtype=torch.float64)
    within, between = (0.5 + 4.5) / 2, (5.5 - 1.5) ** 2 / 2
    assert split_rhat(trace) == pytest.approx(math.sqrt((within / 2 + between) / within))


def test_rhat_and_ess_are_undefined_without_draws_or_variation() -> None:
    for trace in (torch.ones(4, 100), torch.randn(4, 3)):
        assert math.isnan(split_rhat(trace))
        assert math.isnan(effective_sample_size(trace))


def test_local_learning_coefficient() -> None:
    trace = torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.0, 5.0]], dtype=torch.float64)
    value, error = local_learning_coefficient(trace, 0.5, SAMPLER)
    assert value == pytest.approx(7.0 * (2.5 - 0.5))
    assert error == pytest.approx(7.0 * 0.5)  # chain means 2 and 3: s = 1/√2, over √2
    single, error = local_learning_coefficient(torch.arange(8.0, dtype=torch.float64)[None], 0.0, SAMPLER)
    assert single == pytest.approx(7.0 * 3.5)
    assert error == pytest.approx(7.0 * np.std([0.5, 2.5, 4.5, 6.5], ddof=1) / 2)


def test_drift_is_in_standard_errors() -> None:
    trace = torch.tensor([[0.0, 0.0, 9.0, 1.0, 1.0], [0.0, 2.0, -9.0, 4.0, 4.0]], dtype=torch.float64)
    changes = np.array([1.0, 3.0])
    assert drift(trace) == pytest.approx(changes.mean() / (changes.std(ddof=1) / np.sqrt(2)))
    assert math.isnan(drift(trace[:1]))
    assert math.isnan(drift(trace[:, :1]))


def test_score_agreement_is_the_median_spearman() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(12, 5)), rng.normal(size=(12, 5))
    other[:, :3] += one[:, :3]
    one[2, 0] = one[5, 0]  # ties take their mean rank
    expected = np.median([stats.spearmanr(one[:, j], other[:, j]).statistic for j in range(5)])
    assert score_agreement(torch.from_numpy(one), torch.from_numpy(other)) == pytest.approx(expected, rel=1e-10)
    assert score_agreement(torch.from_numpy(one), -torch.from_numpy(one)) == pytest.approx(-1.0)


def test_group_agreement_is_that_of_the_sums_over_all_groups() -> None:
    """Over all halves of eight examples the sums by one estimate correlate with the other's as the columns do."""
    one, other = np.random.default_rng(3).normal(size=(2, 8, 5))
    groups = np.array([[i in group for i in range(8)] for group in combinations(range(8), 4)], float)
    expected = [np.corrcoef(groups @ one[:, j], groups @ other[:, j])[0, 1] for j in range(5)]
    found = group_agreement(torch.from_numpy(one), torch.from_numpy(other))
    assert found == pytest.approx(np.median(expected), rel=1e-10)


def test_group_agreement_leaves_out_queries_without_scores() -> None:
    one = torch.tensor([[1.0, 2.0], [2.0, 2.0], [4.0, 2.0]])
    assert group_agreement(one, -one) == pytest.approx(-1.0)
    assert math.isnan(group_agreement(one[:, 1:], one[:, 1:]))
    assert math.isnan(group_agreement(one[:2], one[:2]))


def test_score_agreement_leaves_out_queries_without_scores() -> None:
    one = torch.arange(4.0)[:, None].repeat(1, 3)
    one[:, 1:] = 0.0  # two of three queries never vary: nothing to agree on
    assert score_agreement(one, -one) == pytest.approx(-1.0)
    assert math.isnan(score_agreement(one[:, 1:], one[:, 1:]))
    assert math.isnan(score_agreement(one[:2], one[:2]))


def test_top_stability_is_the_share_of_both_ends_that_is_found_again() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(30, 4)), rng.normal(size=(30, 4))
    other[:, :2] += 2 * one[:, :2]
    for k, used in ((5, 5), (10, 7)):  # at most a quarter of the examples
        expected = [
            np.mean([
                len({*np.argsort(sign * one[:, j])[:used]} & {*np.argsort(sign * other[:, j])[:used]}) / used
                for sign in (1, -1)
            ])
            for j in range(4)
        ]  # fmt: skip
        got = top_stability(torch.from_numpy(one), torch.from_numpy(other), k)
        np.testing.assert_allclose(got, expected)
    assert top_stability(torch.from_numpy(one), torch.from_numpy(one)).tolist() == [1.0] * 4
    assert top_stability(torch.from_numpy(one), -torch.from_numpy(one)).tolist() == [0.0] * 4


def test_top_stability_is_unknown_without_scores() -> None:
    one = torch.arange(8.0)[:, None].repeat(1, 2)
    one[:, 1] = 0.0
    assert top_stability(one, one).isnan().tolist() == [False, True]
    assert bool(top_stability(one[:3], one[:3]).isnan().all())


def test_what_left_the_posterior() -> None:
    fine, bad = torch.ones(3), torch.tensor([1.0, math.nan, 1.0])
    check = lambda train, columns, distance: left_posterior(train, columns, distance, 1.0, 10, SAMPLER)  # noqa: E731
    assert check(fine, fine, 1.0) is None
    assert "train loss" in str(check(bad, fine, 1.0))
    assert "train loss" in str(check(fine, fine, math.inf))
    assert "observable" in str(check(fine, bad, 1.0))
    limit = 1000 * (10 + 100)
    assert check(fine, fine, 2 * (limit - 1) / 11) is None
    assert "energy" in str(check(fine, fine, 2 * (limit + 1) / 11))
    assert check(fine + (limit - 1) / 7, fine, 0.0) is None
    assert "energy" in str(check(fine + (limit + 1) / 7, fine, 0.0))
