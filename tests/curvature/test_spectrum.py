"""Curvature by finite differences, against quadratic problems where all is known and a network's dense Hessian."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian

from bif_lightning.config import Chains
from bif_lightning.curvature.hessian import Hessian
from bif_lightning.curvature.spectrum import gradient_noise, hessian_spectrum
from bif_lightning.data.dataset import Examples
from bif_lightning.losses.observables import mean_of
from bif_lightning.losses.problem import Problem
from bif_lightning.sampling import bias
from bif_lightning.sampling.context import engine_context
from small_models import BATCH, cross_entropy, data, seeded
from targets import Regression, half_square

pytestmark = pytest.mark.exact


def problem(module: nn.Module, loss, examples) -> Problem:
    rows = Examples(examples)
    return Problem(
        module=module, loss=loss, objective=lambda m, b: mean_of(loss(m, b)), train=rows, query=rows, training=rows,
        prepare=lambda batch: batch,
    )  # fmt: skip


def regression(examples: int = 60, weights: int = 9) -> tuple[Regression, Problem]:
    world = Regression.random(examples, weights, seed=3)
    return world, problem(world.model(), half_square, world.data())


def test_all_eigenvalues_of_a_quadratic_are_found() -> None:
    """Lanczos in the whole space: Ritz values are the eigenvalues, and counts add up to their number."""
    world, quadratic = regression()
    with engine_context(quadratic, Chains()) as (backend, _, _):
        found = hessian_spectrum(Hessian.of_training(quadratic, backend), probes=1, steps=9)
    expected = np.linalg.eigvalsh(world.hessian)
    np.testing.assert_allclose(found.values.sort().values, expected, rtol=1e-6)
    assert float(found.counts.sum()) == pytest.approx(9)


def test_the_effective_dimension_is_right_on_average() -> None:
    """Each probe is unbiased; 100 of them come within five of their own standard errors, √(2·Σf²/probes) at most."""
    world, quadratic = regression()
    with engine_context(quadratic, Chains()) as (backend, _, _):
        found = hessian_spectrum(Hessian.of_training(quadratic, backend), probes=100, steps=9)
    h = np.linalg.eigvalsh(world.hessian)
    for pull in (0.01, 0.3, 5.0):
        share = h / (h + pull)
        bound = 5 * np.sqrt(2 * (share**2).sum() / 100)
        assert found.effective_dimension(pull) == pytest.approx(share.sum(), abs=bound)


def test_steps_and_held_vectors_of_a_snapshot_resolve_a_wide_spectrum() -> None:
    """Eigenvalues over five decades, most of them near 0: the quadrature adds less than the probes' own error."""
    rng = np.random.default_rng(4)
    inputs = rng.normal(size=(600, 300)) / np.arange(1, 301) ** 1.0
    world = Regression(inputs, rng.normal(size=600), np.zeros(300))
    quadratic, probes = problem(world.model(), half_square, world.data()), 40
    with engine_context(quadratic, Chains()) as (backend, _, _):
        hessian = Hessian.of_training(quadratic, backend, rows=torch.arange(600), chunk=600)
        found = hessian_spectrum(hessian, probes=probes, steps=bias._LANCZOS, held=bias._HELD)
    h = np.linalg.eigvalsh(world.hessian)
    for condition in (30, 300):
        pull = h[-1] / condition
        share = h / (h + pull)
        bound = 5 * np.sqrt(2 * (share**2).sum() / probes)
        assert found.effective_dimension(pull) == pytest.approx(share.sum(), abs=bound)


def test_a_networks_spectrum_is_that_of_its_dense_hessian() -> None:
    module = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))).double()
    examples = [(x.double(), y) for x, y in data(examples=20)]
    inputs, targets = (torch.stack(part) for part in zip(*examples, strict=True))
    names, sizes = zip(*((name, p.shape) for name, p in module.named_parameters()), strict=True)
    flat = torch.cat([p.detach().flatten() for p in module.parameters()])

    def loss(weights: Tensor) -> Tensor:
        parts = weights.split([size.numel() for size in sizes])
        named = {name: part.view(size) for name, part, size in zip(names, parts, sizes, strict=True)}
        return nn.functional.cross_entropy(functional_call(module, named, (inputs,)), targets)

    expected = torch.linalg.eigvalsh(hessian(loss)(flat))
    net = problem(module, cross_entropy, examples)
    with engine_context(net, Chains()) as (backend, _, _):
        found = hessian_spectrum(Hessian.of_training(net, backend, chunk=BATCH), probes=16, steps=20)
    assert found.largest == pytest.approx(float(expected[-1]), rel=1e-4)
    positive = expected.clamp(min=0)
    for pull in (0.003, 0.03):
        assert found.effective_dimension(pull) == pytest.approx(float((positive / (positive + pull)).sum()), rel=0.2)


def test_gradient_noise_is_that_of_single_gradients() -> None:
    """One strong direction among 30: trace and λmax of the covariance of r·x, from 32 minibatches."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(4000, 30))
    inputs[:, 0] *= 6
    world = Regression(inputs, rng.normal(size=4000), np.zeros(30))
    single = problem(world.model(), half_square, world.data())
    with engine_context(single, Chains()) as (backend, _, _):
        found = gradient_noise(single, backend)
    rows = np.linspace(0, 3999, 512).astype(int)
    each = inputs[rows] * (inputs[rows] @ world.snapshot - world.targets[rows])[:, None]
    covariance = np.cov(each.T)
    # A sample of 31 degrees of freedom: relative standard error √(2/31) of the eigenvalue.
    assert found.largest == pytest.approx(np.linalg.eigvalsh(covariance)[-1], rel=4 * np.sqrt(2 / 31))
    assert found.trace == pytest.approx(np.trace(covariance), rel=4 * np.sqrt(2 / 31))


def test_too_few_examples_have_no_noise_to_measure() -> None:
    _, tiny = regression(examples=3, weights=2)
    with engine_context(tiny, Chains()) as (backend, _, _):
        assert np.isnan(gradient_noise(tiny, backend).largest)
