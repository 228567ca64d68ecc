"""How much of a correction counts."""

import numpy as np
import pytest

from bif_lightning.statistics.correction import agreement, difference, largest, residual_share


@pytest.mark.exact
def test_the_difference_is_that_of_two_covariances() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(7, 2, 3))
    exact = np.cov(draws[:, 0].T) - np.cov(draws[:, 1].T)
    np.testing.assert_allclose(difference(draws), exact)


@pytest.mark.exact
def test_agreement_is_the_shared_part_of_the_corrections_themselves() -> None:
    """Its definition, with the corrections of all entries written out."""
    rng = np.random.default_rng(1)
    train, columns, shared = rng.normal(size=(9, 3)), rng.normal(size=(5, 3)), rng.normal(size=(3, 3))
    differences = shared + 0.7 * rng.normal(size=(4, 3, 3))
    whole = np.array([train @ each @ columns.T for each in differences])
    cross = sum((whole[a] * whole[b]).sum() for a in range(4) for b in range(4) if a != b) / 12
    exact = cross / (whole.mean(0) ** 2).sum()
    assert agreement(differences, train, columns) == pytest.approx(exact)
    assert 0 < exact < 1


@pytest.mark.exact
def test_its_limits() -> None:
    one = np.eye(2)
    assert agreement(np.array([one, one, one]), one, one) == 1
    assert agreement(np.array([one, -one]), one, one) == 0
    assert agreement(np.array([one]), one, one) == 0
    assert agreement(np.zeros((3, 2, 2)), one, one) == 0


@pytest.mark.statistical
def test_it_is_the_best_factor_on_average() -> None:
    """With noise of known size, the mean over many sets of chains is signal/(signal + noise/C) within 5 errors."""
    rng = np.random.default_rng(2)
    signal, chains, one = rng.normal(size=(12, 12)), 8, np.eye(12)
    found = [agreement(signal + 2 * rng.normal(size=(chains, 12, 12)), one, one) for _ in range(400)]
    power = (signal**2).sum()
    expected = power / (power + 4 * 144 / chains)
    # A ratio of two means is biased by about the variance of its denominator, of order 2/144.
    assert abs(np.mean(found) - expected) < 5 * np.std(found) / 20 + 2 / 144


@pytest.mark.exact
def test_the_residual_share_compares_variances_along_the_losses() -> None:
    rng = np.random.default_rng(3)
    draws, train = rng.normal(size=(2, 6, 2, 3)), rng.normal(size=(4, 3))
    losses = draws @ train.T
    centred = losses - losses.mean(1, keepdims=True)
    exact = ((centred[:, :, 0] - centred[:, :, 1]) ** 2).sum() / (centred[:, :, 1] ** 2).sum()
    assert residual_share(draws, train) == pytest.approx(exact)
    draws[:, :, 0] = draws[:, :, 1]
    assert residual_share(draws, train) == 0


@pytest.mark.exact
def test_no_variance_becomes_negative() -> None:
    rng = np.random.default_rng(4)
    root = rng.normal(size=(3, 3))
    correction, variances = -root @ root.T, np.array([0.5, 1.0, 2.0])
    most = largest(correction, variances)
    scale = np.sqrt(variances)
    least = np.linalg.eigvalsh(np.eye(3) + most * correction / np.outer(scale, scale))[0]
    assert least == pytest.approx(0.1)
    assert largest(-correction, variances) == np.inf
