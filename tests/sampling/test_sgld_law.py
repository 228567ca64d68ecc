"""Chains of the real engine against the exact law of SGLD's own steps on a quadratic target.

Every statistic is divided by its exact standard error, so |z| < 5 fails by chance about once in 10^6.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from bif_lightning.config import SGLD, Chains, Gradient
from bif_lightning.estimation.estimate import estimate
from targets import Law, Regression, WeightValues, chain_law, half_square

pytestmark = pytest.mark.statistical

LIMIT = 5.0


def world(correlated: bool) -> Regression:
    if correlated:
        return Regression.random(7, 2, 3)
    inputs = np.repeat(np.diag([0.6, 1.7]), 3, axis=0)
    return Regression(inputs, np.array([1.0, -0.4, 0.3, 0.8, -1.1, 0.2]), np.array([0.4, -0.3]))


def weights(world: Regression, sampler: SGLD, chains: Chains) -> np.ndarray:
    """Recorded weights [chain, draw, weight]."""
    size = len(world.snapshot)
    found = estimate(
        world.model(), half_square, world.data(), sampler=sampler, chains=chains,
        observables=[WeightValues(size)], store_traces=True,
    )  # fmt: skip
    assert found.traces is not None
    return found.traces.columns["weights"].astype(np.float64)


def recorded_steps(chains: Chains) -> np.ndarray:
    return chains.burn_in + chains.thinning * np.arange(1, chains.num_draws + 1)


def scores(w: np.ndarray, law: Law) -> dict[str, np.ndarray]:
    """z of the means, and of the mean products of all pairs of coordinates about their exact means."""
    chains, draws = w.shape[:2]
    k = law.covariance
    mean = (w - law.mean).mean((0, 1)) / np.sqrt(np.einsum("tuaa->a", k) / (chains * draws**2))
    x = w - law.mean
    product = np.einsum("cta,ctb->ab", x, x) / (chains * draws) - np.einsum("ttab->ab", k) / draws
    spread = np.einsum("tuaa,tubb->ab", k, k) + np.einsum("tuab,tuba->ab", k, k)
    z = product / np.sqrt(spread / (chains * draws**2))
    return {"mean": mean, "variance": np.diag(z), "cross": z[np.triu_indices(len(z), 1)]}


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["control_variate", "minibatch"])
@pytest.mark.parametrize("correlated", [False, True])
def test_full_batch_chains_follow_their_law(correlated: bool, gradient: Gradient) -> None:
    target = world(correlated)
    # ελ/4 is up to about a quarter: the law of the continuous process would miss the variance by that much.
    sampler = SGLD(step_size=0.08, inverse_temperature=3.0, localization=2.0, gradient=gradient)
    chains = Chains(num_chains=48, num_draws=30, burn_in=1, thinning=2, batch_size=len(target.targets), seed=5)
    law = chain_law(target, sampler, recorded_steps(chains))
    found = scores(weights(target, sampler, chains), law)
    assert {name: float(np.abs(z).max()) for name, z in found.items() if np.abs(z).max() > LIMIT} == {}


def test_without_data_the_pull_alone_is_sampled() -> None:
    """nβ = 0: a Gaussian of variance 1/(γ(1 − εγ/4)) around w*, whatever the loss."""
    target = world(True)
    sampler = SGLD(step_size=0.3, inverse_temperature=0.0, localization=2.0)
    chains = Chains(num_chains=32, num_draws=60, burn_in=10, seed=1)
    law = chain_law(target, sampler, recorded_steps(chains))
    np.testing.assert_allclose(np.diag(law.covariance[-1, -1]), 1 / (2 * 0.85), rtol=1e-6)
    found = scores(weights(target, sampler, chains), law)
    assert max(float(np.abs(z).max()) for z in found.values()) < LIMIT


def test_rmsprop_without_gradients_samples_with_a_constant_step() -> None:
    """Zero gradients leave ε_t = ε/δ, and the pull alone."""
    target = Regression(np.zeros((4, 2)), np.ones(4), np.array([0.4, -0.3]))
    plain = SGLD(step_size=0.3, inverse_temperature=3.0, localization=2.0)
    sampler = SGLD(
        step_size=0.06, inverse_temperature=3.0, localization=2.0, preconditioner="rmsprop", rmsprop_stability=0.2
    )
    chains = Chains(num_chains=32, num_draws=60, burn_in=4, batch_size=4, seed=2)
    # A loss that does not depend on the weights is refused, so one example sees them a very little.
    target.inputs[0, 0] = 1e-9
    found = scores(weights(target, sampler, chains), chain_law(target, plain, recorded_steps(chains)))
    assert max(float(np.abs(z).max()) for z in found.values()) < LIMIT


def replicated(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over chains of each chain's mean, and its standard error: chains are independent."""
    of_chain = w.mean(1)
    return of_chain.mean(0), of_chain.std(0, ddof=1) / np.sqrt(len(of_chain))


@pytest.mark.slow
def test_minibatches_with_control_variate_stay_centred_on_the_snapshot() -> None:
    """The minibatch gradient of a quadratic is H_B(w − w*): unbiased, and zero at w*."""
    target = Regression.random(12, 2, 4)
    sampler = SGLD(step_size=0.08, inverse_temperature=3.0, localization=2.0)
    chains = Chains(num_chains=48, num_draws=40, burn_in=20, batch_size=3, seed=3)
    w = weights(target, sampler, chains)
    mean, error = replicated(w)
    assert np.abs((mean - target.snapshot) / error).max() < LIMIT
    found, error = replicated(np.einsum("cta,ctb->ctab", w - target.snapshot, w - target.snapshot))
    expected = minibatch_covariance(target, sampler, 3)
    assert np.abs((found - expected) / error).max() < LIMIT
    full = chain_law(target, sampler, [10**6]).covariance[0, 0]
    assert np.abs((found - full) / full).max() < 0.35, "close to the full batch all the same"
    assert np.abs((found - full) / error).max() > 1.0


def minibatch_covariance(target: Regression, sampler: SGLD, batch: int, center: np.ndarray | None = None) -> np.ndarray:
    """Stationary E(x xᵀ) about the mean, for gradients of `batch` random examples.

    A step is x ← M_B·x + c_B + √ε·ξ with M_B = I − ε/2·Λ_B, so that S = E[M_B S M_Bᵀ] + E[c_B c_Bᵀ] + εI, with the
    expectation over all minibatches. With a control variate c_B = 0; else it is the gradient noise at the mode.
    """
    d, eps, nb, pull = len(target.snapshot), sampler.step_size, sampler.inverse_temperature, sampler.localization
    total, source = np.zeros((d * d, d * d)), eps * np.eye(d)
    rows = list(itertools.combinations(range(len(target.targets)), batch))
    for chosen in rows:
        x = target.inputs[list(chosen)]
        move = np.eye(d) - eps / 2 * (nb * x.T @ x / batch + pull * np.eye(d))
        total += np.kron(move, move) / len(rows)
        if center is not None:
            push = -eps / 2 * (nb * target.gradient(center, np.array(chosen)) + pull * (center - target.snapshot))
            source = source + np.outer(push, push) / len(rows)
    return np.linalg.solve(np.eye(d * d) - total, source.ravel()).reshape(d, d)


def test_plain_minibatches_add_their_noise_and_it_shrinks_with_the_step_size() -> None:
    target = Regression.random(12, 2, 4)
    settings = SGLD(step_size=0.03, inverse_temperature=12.0, localization=2.0, gradient="minibatch")
    settled = chain_law(target, settings, [10**6])
    mode, full = settled.mean[0], settled.covariance[0, 0]
    expected = minibatch_covariance(target, settings, 2, mode)
    assert np.trace(expected) > 1.3 * np.trace(full)
    chains = Chains(num_chains=48, num_draws=50, burn_in=30, batch_size=2, seed=6)
    w = weights(target, settings, chains)
    mean, error = replicated(w)
    assert np.abs((mean - mode) / error).max() < LIMIT
    found, error = replicated(np.einsum("cta,ctb->ctab", w - mode, w - mode))
    assert np.abs((found - expected) / error).max() < LIMIT
    assert (np.diag(found - full) / np.diag(error)).max() > LIMIT, "far from the law of the full batch"
    # The excess over the posterior is of order ε: a tenth of the step leaves about a tenth of it.
    posterior = np.linalg.inv(12.0 * target.hessian + 2.0 * np.eye(2))

    def excess(step_size: float) -> float:
        return float(
            np.trace(minibatch_covariance(target, replace(settings, step_size=step_size), 2, mode) - posterior)
        )

    assert excess(1e-3) / excess(1e-4) == pytest.approx(10, rel=0.1)
