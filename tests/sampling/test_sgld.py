"""The posterior's gradient against autograd, and one step of each kernel against its formula."""

import numpy as np
import pytest
import torch

from bif_lightning.config import SGLD
from bif_lightning.sampling.divergence import energy
from bif_lightning.sampling.kernel import Preconditioner, drift_, preconditioner_for, step_

pytestmark = pytest.mark.exact

F64 = torch.float64
W = torch.tensor([0.7, -1.3, 2.1], dtype=F64)
CENTER = torch.tensor([0.5, -1.0, 1.0], dtype=F64)
# No two of ε, nβ, γ and their ratios are equal, so that a mix-up of any two shows.
PLAIN = SGLD(step_size=0.03, inverse_temperature=7.0, localization=11.0)


def close(got: torch.Tensor, expected: np.ndarray | torch.Tensor) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=1e-10, atol=1e-13)


def loss(w: torch.Tensor) -> torch.Tensor:
    return (w.sin() * w.square()).sum() + w.prod()


def test_drift_is_the_gradient_of_the_energy() -> None:
    w = W.clone().requires_grad_()
    u = PLAIN.inverse_temperature * loss(w) + 0.5 * PLAIN.localization * (w - CENTER).square().sum()
    (expected,) = torch.autograd.grad(u, w)
    (gradient,) = torch.autograd.grad(loss(w), w)
    close(drift_(gradient.clone(), W, CENTER, PLAIN), expected)
    assert energy(float(loss(W)), float((W - CENTER).square().sum()), PLAIN) == pytest.approx(
        float(u.detach()), rel=1e-12
    )


def test_drift_of_a_difference_of_gradients_is_zero_at_the_snapshot() -> None:
    assert torch.equal(drift_(torch.zeros(3, dtype=F64), CENTER, CENTER, PLAIN), torch.zeros(3, dtype=F64))


@pytest.mark.parametrize("xi", [[0.0, 0.0, 0.0], [1.5, -0.25, 0.75]])
def test_one_step(xi: list[float]) -> None:
    """w − (ε/2)·∇U + √ε·ξ: the ½, the square root, and a number for each coordinate."""
    gradient = torch.tensor([0.3, -2.0, 0.9], dtype=F64)
    weights = W.clone()
    step_(weights, gradient.clone(), lambda out: out.copy_(torch.tensor(xi, dtype=F64)), PLAIN)
    close(weights, W.numpy() - 0.015 * gradient.numpy() + np.sqrt(0.03) * np.array(xi))


def test_three_steps_of_rmsprop() -> None:
    """v_t = a·v_{t−1} + (1−a)·g², v̂ = v_t/(1 − a^{t+1}), ε_t = ε/(√v̂ + δ), for t = 0, 1, 2."""
    a, delta, eps = 0.9, 0.2, 0.03
    sampler = SGLD(
        step_size=eps, inverse_temperature=7.0, localization=11.0,
        preconditioner="rmsprop", rmsprop_decay=a, rmsprop_stability=delta,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    weights, state = W.clone(), preconditioner_for(W, sampler)
    assert state is not None
    w, v = W.numpy().copy(), np.zeros(3)
    for t in range(3):
        g, noise = rng.normal(size=3), rng.normal(size=3)
        state.update(torch.from_numpy(g), sampler)
        drift = drift_(torch.from_numpy(g).clone(), weights, CENTER, sampler)
        step_(weights, drift, lambda out, noise=noise: out.copy_(torch.from_numpy(noise)), sampler, state)
        v = a * v + (1 - a) * g**2
        each = eps / (np.sqrt(v / (1 - a ** (t + 1))) + delta)
        w = w - each / 2 * (7.0 * g + 11.0 * (w - CENTER.numpy())) + np.sqrt(each) * noise
        close(weights, w)


def test_rmsprop_of_zero_gradients_divides_by_its_stability() -> None:
    sampler = SGLD(step_size=0.03, inverse_temperature=7.0, localization=11.0, preconditioner="rmsprop")
    state = Preconditioner(torch.zeros(3, dtype=F64))
    state.update(torch.zeros(3, dtype=F64), sampler)
    close(state.step_sizes(sampler), np.full(3, 0.3))


def test_plain_sgld_has_no_preconditioner() -> None:
    assert preconditioner_for(W, PLAIN) is None
