"""A whole estimate against a few lines of numpy that walk the same chains with the same noise."""

import numpy as np
import pytest
import torch

from bif_lightning.config import SGLD, Chains, Gradient, Preconditioner
from bif_lightning.estimation.estimate import estimate
from bif_lightning.rng import chain_noise
from targets import Regression, WeightValues, half_square

pytestmark = pytest.mark.exact

WORLD = Regression.random(9, 3, 0)
QUERY = Regression.random(5, 3, 1)
CHAINS = Chains(num_chains=3, num_draws=10, burn_in=2, thinning=3, batch_size=4, seed=11)


def settings(gradient: Gradient, preconditioner: Preconditioner | None) -> SGLD:
    return SGLD(
        step_size=0.02, inverse_temperature=7.0, localization=11.0, gradient=gradient, preconditioner=preconditioner,
        rmsprop_decay=0.9, rmsprop_stability=0.3,
    )  # fmt: skip


def replayed(sampler: SGLD, chains: Chains, chain: int) -> np.ndarray:
    """Recorded weights [draw, weight]: after burn-in, then after every `thinning`-th step."""
    noise = chain_noise(chains.seed, 0, chain, torch.device("cpu"))
    center = WORLD.snapshot
    w, v, recorded = center.copy(), np.zeros(3), []
    for t in range(chains.burn_in + chains.thinning * chains.num_draws):
        rows = noise.minibatch(t, len(WORLD.targets), chains.batch_size).numpy()
        g = WORLD.gradient(w, rows)
        eps = np.full(3, sampler.step_size)
        if sampler.preconditioner:
            v = sampler.rmsprop_decay * v + (1 - sampler.rmsprop_decay) * g**2
            unbiased = v / (1 - sampler.rmsprop_decay ** (t + 1))
            eps = eps / (np.sqrt(unbiased) + sampler.rmsprop_stability)
        if sampler.gradient == "control_variate":
            g = g - WORLD.gradient(center, rows)
        xi = torch.empty(3, dtype=torch.float64)
        xi.normal_(generator=noise.normals(t, 0))
        drift = sampler.inverse_temperature * g + sampler.localization * (w - center)
        w = w - eps / 2 * drift + np.sqrt(eps) * xi.numpy()
        past = t + 1 - chains.burn_in
        if past >= 1 and past % chains.thinning == 0:
            recorded.append(w)
    return np.array(recorded)


@pytest.mark.parametrize("preconditioner", [None, "rmsprop"])
@pytest.mark.parametrize("gradient", ["control_variate", "minibatch"])
def test_estimate_is_that_of_chains_walked_by_hand(gradient: Gradient, preconditioner: Preconditioner | None) -> None:
    sampler = settings(gradient, preconditioner)
    got = estimate(
        WORLD.model(), half_square, WORLD.data(), QUERY.data(),
        sampler=sampler, chains=CHAINS, observables=[WeightValues(3)], store_traces=True,
    )  # fmt: skip
    w = np.stack([replayed(sampler, CHAINS, chain) for chain in range(CHAINS.num_chains)])
    train = 0.5 * (w @ WORLD.inputs.T - WORLD.targets) ** 2
    query = 0.5 * (w @ QUERY.inputs.T - QUERY.targets) ** 2
    assert got.traces is not None
    # Matrices and traces are stored in float32; what is stored in float64 agrees to its own precision.
    np.testing.assert_allclose(got.traces.columns["weights"], w, rtol=1e-6)
    np.testing.assert_allclose(got.traces.train, train, rtol=2e-6)
    np.testing.assert_allclose(got.loss_trace, train.mean(2), rtol=1e-10)
    np.testing.assert_allclose(got.distance_trace, np.linalg.norm(w - WORLD.snapshot, axis=2), rtol=1e-10)
    np.testing.assert_allclose(got.train_loss, train.mean((0, 1)), rtol=1e-10)
    np.testing.assert_allclose(got.losses.mean, query.mean((0, 1)), rtol=1e-10)
    np.testing.assert_allclose(got.train_std, np.sqrt(train.var(1, ddof=1).mean(0)), rtol=1e-10)
    blocks = [np.cov(train[c].T, query[c].T) for c in range(CHAINS.num_chains)]
    covariance = np.mean([block[:9, 9:] for block in blocks], axis=0)
    spread = np.sqrt(np.outer(*(np.mean([np.diag(b)[part] for b in blocks], 0) for part in (slice(9), slice(9, None)))))
    np.testing.assert_allclose(got.influence, -covariance, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(got.correlation, covariance / spread, rtol=1e-6, atol=1e-7)
    of_weights = got.observables["weights"]
    assert of_weights.columns == ("w0", "w1", "w2")
    expected = -np.mean([np.cov(train[c].T, w[c].T)[:9, 9:] for c in range(CHAINS.num_chains)], axis=0)
    np.testing.assert_allclose(of_weights.influence, expected, rtol=1e-6, atol=1e-7)
    assert got.diagnostics.llc == pytest.approx(7.0 * (train.mean() - got.snapshot_loss), rel=1e-9)
    assert got.snapshot_loss == pytest.approx(0.5 * np.mean((WORLD.inputs @ WORLD.snapshot - WORLD.targets) ** 2))


def test_full_batch_control_variate_has_no_gradient_at_the_snapshot() -> None:
    """With the whole set as minibatch the first move from w* is noise alone, and each gradient is a difference of
    full gradients."""
    sampler = settings("control_variate", None)
    chains = Chains(num_chains=1, num_draws=8, batch_size=9, seed=4)
    got = estimate(
        WORLD.model(), half_square, WORLD.data(), sampler=sampler, chains=chains,
        observables=[WeightValues(3)], store_traces=True,
    )  # fmt: skip
    noise, w = chain_noise(4, 0, 0, torch.device("cpu")), WORLD.snapshot.copy()
    curvature = 7.0 * WORLD.hessian + 11.0 * np.eye(3)
    assert got.traces is not None
    for t, recorded in enumerate(got.traces.columns["weights"][0]):
        xi = torch.empty(3, dtype=torch.float64)
        xi.normal_(generator=noise.normals(t, 0))
        w = w - 0.01 * curvature @ (w - WORLD.snapshot) + np.sqrt(0.02) * xi.numpy()
        np.testing.assert_allclose(recorded, w, rtol=1e-6)


def test_snapshots_share_their_noise_only_where_asked() -> None:
    from bif_lightning.data.dataset import Examples
    from bif_lightning.estimation.estimator import estimate_problem
    from bif_lightning.losses.problem import Problem

    examples = Examples(WORLD.data())
    problem = Problem(
        module=WORLD.model(), loss=half_square, objective=lambda m, b: half_square(m, b).mean(),
        train=examples, query=examples, training=examples, prepare=lambda batch: batch,
    )  # fmt: skip

    def trace(snapshot: int, common: bool) -> np.ndarray:
        chains = Chains(num_chains=2, num_draws=4, batch_size=4, common_random_numbers=common)
        return estimate_problem(problem, settings("minibatch", None), chains, snapshot=snapshot).loss_trace

    assert np.array_equal(trace(0, True), trace(6, True))
    assert np.array_equal(trace(6, False), trace(6, False))
    assert not np.isclose(trace(0, False), trace(6, False)).any()
    assert not np.isclose(trace(0, True)[0], trace(0, True)[1]).any()
