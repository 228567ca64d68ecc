"""Moments, influence, correlation and their errors against numpy and the formulas in plain loops."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from bif_lightning.config import Centring
from bif_lightning.statistics.draws import from_draws
from bif_lightning.statistics.influence import correlation, influence, products
from bif_lightning.statistics.moments import Moments, merge, stack
from targets import Regression, gaussian_influence

pytestmark = pytest.mark.exact

C, T, N, Q = 3, 11, 4, 5
LENGTHS = [4, 4, 3]
RNG = np.random.default_rng(1)
TRAIN = RNG.normal(size=(C, T, N)) * np.arange(1, N + 1) + 3.0
COLUMNS = RNG.normal(size=(C, T, Q)) + TRAIN[..., :1] * 0.4 + np.arange(C)[:, None, None]


def close(got: object, expected: object, rtol: float = 1e-10) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=rtol, atol=1e-12)


def parts(train: np.ndarray, columns: np.ndarray, lengths: list[int]) -> Moments:
    chains = []
    for losses, f in zip(torch.from_numpy(train), torch.from_numpy(columns), strict=True):
        pieces = zip(losses.split(lengths), f.split(lengths), strict=True)
        chains.append(stack([from_draws(a, b) for a, b in pieces]))
    return stack(chains)


def test_moments_are_those_of_numpy() -> None:
    train, columns = TRAIN[0], COLUMNS[0]
    m = from_draws(torch.from_numpy(train), torch.from_numpy(columns))
    full = np.cov(train.T, columns.T)
    close(m.comoment / (T - 1), full[:N, N:])
    close(m.train_square / (T - 1), np.diag(full)[:N])
    close(m.column_square / (T - 1), np.diag(full)[N:])
    close(m.train_mean, train.mean(0))
    close(m.column_mean, columns.mean(0))
    assert float(m.count) == T


def test_merged_moments_equal_those_of_one_batch() -> None:
    whole = from_draws(torch.from_numpy(TRAIN[0]), torch.from_numpy(COLUMNS[0]))
    merged = merge(Moments(*(f[0] for f in vars(parts(TRAIN, COLUMNS, LENGTHS)).values())))
    for name, expected in vars(whole).items():
        close(getattr(merged, name), expected)


def centred(values: np.ndarray, centring: Centring) -> np.ndarray:
    return values - values.mean(1 if centring == "chain" else (0, 1), keepdims=True)


@pytest.mark.parametrize(("centring", "lost"), [("chain", C), ("pooled", 1)])
def test_influence_correlation_and_errors(centring: Centring, lost: int) -> None:
    draws = products(parts(TRAIN, COLUMNS, LENGTHS), centring)
    lc, f = centred(TRAIN, centring), centred(COLUMNS, centring)
    scale = 1 / (C * T - lost)
    covariance = np.einsum("cti,ctj->ij", lc, f) * scale
    spread = np.sqrt(np.outer((lc**2).sum((0, 1)), (f**2).sum((0, 1)))) * scale
    got, (corr, moved) = influence(draws), correlation(draws.standardized())
    close(got.value, -covariance)
    close(corr.value, covariance / spread)
    if centring == "chain":
        close(got.value, -np.mean([np.cov(TRAIN[c].T, COLUMNS[c].T)[:N, N:] for c in range(C)], axis=0))
    starts = np.cumsum([0, *LENGTHS])
    z, psi, share = [], [], []
    for c in range(C):
        for start, end in pairwise(starts):
            a, b = lc[c, start:end], f[c, start:end]
            inflate = C * T * scale
            z.append(a.T @ b / (end - start) * inflate)
            u = a / np.sqrt((lc**2).sum((0, 1)) * scale)
            v = b / np.sqrt((f**2).sum((0, 1)) * scale)
            half = 0.5 * (covariance / spread)[None] * (u[:, :, None] ** 2 + v[:, None, :] ** 2)
            psi.append((u[:, :, None] * v[:, None, :] - half).mean(0) * inflate)
            share.append((end - start) / (C * T))
    k = len(share)
    weights = np.array(share)[:, None, None] ** 2
    close(got.standard_error, np.sqrt(k / (k - 1) * (weights * (np.array(z) - covariance) ** 2).sum(0)))
    close(corr.standard_error, np.sqrt(k / (k - 1) * (weights * np.array(psi) ** 2).sum(0)))
    close(moved, np.array(share)[:, None, None] * (np.array(psi) + covariance / spread), rtol=1e-9)


def test_standard_error_of_equal_batches_is_that_of_a_mean() -> None:
    draws = products(parts(TRAIN[:, :9], COLUMNS[:, :9], [3, 3, 3]), "chain")
    batches = draws.covariance / draws.share[:, None, None]
    close(influence(draws).standard_error, batches.std(0, ddof=1) / np.sqrt(len(batches)))


def test_correlation_is_one_with_itself_and_undefined_without_variation() -> None:
    train = TRAIN.copy()
    train[..., 2] = 5.0
    draws = products(parts(train, train, LENGTHS), "chain")
    value = correlation(draws.standardized())[0].value
    moving = [0, 1, 3]
    close(np.diag(value)[moving], 1.0)
    assert np.isnan(value[2]).all()
    assert np.isnan(value[:, 2]).all()
    assert np.isfinite(value[np.ix_(moving, moving)]).all()
    assert np.abs(influence(draws).value[2]).max() == 0.0


def test_one_batch_has_no_standard_error() -> None:
    draws = products(parts(TRAIN[:1], COLUMNS[:1], [T]), "chain")
    assert np.isnan(influence(draws).standard_error).all()


def gaussian_draws(center: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Draws whose moments up to the fourth are those of N(center, covariance): a Gauss-Hermite grid of 4 points
    a dimension, each repeated in proportion to its weight (rounded to the nearest of 10^5)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)  # nodes −√3, 0, √3 with weights 1 : 4 : 1, exact to degree 5
    counts = np.rint(6 * weights / weights.sum()).astype(int)
    points = np.repeat(nodes, counts)
    grid = np.stack(np.meshgrid(*[points] * len(center), indexing="ij"), -1).reshape(-1, len(center))
    return center + grid @ np.linalg.cholesky(covariance).T


def test_influence_of_gaussian_draws_is_the_closed_form() -> None:
    """Cov(l_i, φ_j) = r_i r_j x_iᵀΣx_j + ½(x_iᵀΣx_j)², and with a linear observable a·w it is r_i x_iᵀΣa.

    Products of two quadratics are of degree 4, so a cubature of degree 5 gives them exactly."""
    world, other = Regression.random(6, 3, 0), Regression.random(4, 3, 1)
    root = np.random.default_rng(2).normal(size=(3, 3))
    covariance, center = root @ root.T / 5 + 0.1 * np.eye(3), np.array([0.3, -0.2, 0.5])
    draws = gaussian_draws(center, covariance)
    train = 0.5 * (draws @ world.inputs.T - world.targets) ** 2
    columns = np.concatenate([0.5 * (draws @ other.inputs.T - other.targets) ** 2, draws], axis=1)
    got = influence(products(parts(train[None], columns[None], [len(draws)]), "chain")).value
    got = got * (len(draws) - 1) / len(draws)  # the draws are the whole law, not a sample of it
    close(got[:, :4], gaussian_influence(world, other, center, covariance))
    residual = world.inputs @ center - world.targets
    close(got[:, 4:], -residual[:, None] * (world.inputs @ covariance))
