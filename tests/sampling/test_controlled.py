"""Controlled chains: the surrogate's own law, no correction where the loss is quadratic, the right one where not."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from bif_lightning.config import SGLD, Chains, ControlledSGLD, Subspace
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.estimation.estimate import estimate
from bif_lightning.estimation.estimator import at_snapshot
from bif_lightning.exceptions import ChainsDivergedError
from bif_lightning.results.estimate import Estimate
from bif_lightning.sampling.chain import draws
from bif_lightning.sampling.choice import sampler_of
from bif_lightning.sampling.context import engine_context
from targets import Regression, problem_with

TRAIN, QUERY = Regression.random(16, 5, 0), Regression.random(6, 5, 1)
WHOLE = ControlledSGLD(num_directions=5, num_probes=1, inverse_temperature=30.0, localization=2.0)
CHAINS = Chains(num_chains=2, num_draws=6, thinning=2, batch_size=16, seed=3)


def squares(module: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """½(w·x − y)² of each example."""
    return 0.5 * F.mse_loss(module(batch[0]), batch[1], reduction="none")


def run(sampler: ControlledSGLD | Subspace = WHOLE, chains: Chains = CHAINS, **further: object) -> Estimate:
    loss = further.pop("loss", squares)
    return estimate(TRAIN.model(), loss, TRAIN.data(), QUERY.data(), sampler=sampler, chains=chains, **further)  # type: ignore[arg-type]


def paths(sampler: ControlledSGLD, chains: Chains) -> tuple[np.ndarray, np.ndarray, float]:
    """Coordinates [chain, draw, 2, direction] from the start on, variances of the directions, and the step."""
    problem = problem_with(TRAIN.model(), squares, TRAIN.data(), QUERY.data())
    with engine_context(problem, chains) as (backend, workers, _):
        prepared = sampler_of(sampler).prepare(problem, backend, workers, Ranks())
        context = at_snapshot(problem, backend, prepared, chains)
        found = list[list[np.ndarray]]()
        for chain in range(chains.num_chains):
            state = prepared.start(context, chain)
            path = [state.coordinates().numpy()]  # type: ignore[union-attr]
            found.append(path + [draw.coordinates.numpy() for draw in draws(state)])  # type: ignore[union-attr]
    normal = prepared.surrogate.posterior.normal  # type: ignore[attr-defined]
    return np.array(found), normal.variances.numpy(), prepared.sampler.settings.step_size  # type: ignore[attr-defined]


@pytest.mark.exact
@pytest.mark.parametrize("batch", [16, 6])
def test_of_a_quadratic_loss_chain_and_surrogate_are_one(batch: int) -> None:
    """With all examples in each step, bit by bit up to rounding; with minibatches they part by their noise alone."""
    found, _, _ = paths(WHOLE, replace(CHAINS, num_draws=20, batch_size=batch))
    apart = np.abs(found[:, :, 0] - found[:, :, 1]).max() / found.std()
    if batch == 16:
        assert apart < 1e-10
    else:
        assert 1e-3 < apart < 2


@pytest.mark.exact
def test_of_a_quadratic_loss_the_matrices_are_the_closed_form() -> None:
    given = Subspace(num_directions=5, inverse_temperature=30.0, localization=2.0)
    found, exact = run(replace(WHOLE, alpha=1.0)), run(given, replace(CHAINS, thinning=1))
    for name in ("influence", "correlation"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        found.losses.influence_standard_error, exact.losses.influence_standard_error, rtol=1e-4, atol=1e-8
    )


@pytest.mark.statistical
def test_the_surrogate_has_the_posteriors_law_from_its_start_on() -> None:
    """Variances 1/(nβ·h + γ), and V − ε/4 with the next step, at the start of the chain and after steps."""
    chains = Chains(num_chains=1200, num_draws=2, thinning=1, batch_size=16, seed=5)
    found, variances, step = paths(WHOLE, chains)
    x = found[:, :, 1]
    error = np.sqrt(2 / len(x))
    for draw in range(3):
        z = ((x[:, draw] ** 2).mean(0) / variances - 1) / error
        assert np.abs(z).max() < 5, draw
    following = (x[:, 1:] * x[:, :-1]).mean((0, 1))
    bound = 5 * variances * np.sqrt(2 / len(x))
    assert (np.abs(following - (variances - step / 4)) < bound).all()
    off = np.corrcoef(x[:, 0].T) - np.eye(5)
    assert np.abs(off).max() < 5 / np.sqrt(len(x))


class Bent(nn.Module):
    """Two weights; the training loss is curved by more than a square, the measured losses are linear."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


def bent(module: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """½z² + z⁴ of z = w·x on rows of kind 1, and w·x itself on rows of kind 0."""
    x, kind = batch
    z = module(x)
    return torch.where(kind > 0, 0.5 * z.square() + z.square().square(), z)


THREE = torch.tensor([[1.0, 0.3], [-0.4, 1.0], [0.8, -0.7]], dtype=torch.float64)
# Eight times, so that all groups of examples have one curvature, and errors are those of the chains.
BENT = TensorDataset(THREE.repeat(8, 1), torch.ones(24, dtype=torch.float64))
AXES = TensorDataset(
    torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
)


def of_bent(sampler: ControlledSGLD, chains: Chains) -> Estimate:
    # w = 0 is a minimum, where a difference of losses is rounding.
    return estimate(Bent(), bent, AXES, AXES, training_data=BENT, sampler=sampler, chains=chains, check_gradient=False)


def covariance_of_bent(nb: float, pull: float) -> np.ndarray:
    """Cov(w) under exp(−nβ·L − γ/2·|w|²), on a grid."""
    axis = np.linspace(-2.5, 2.5, 601)
    w = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    z = w @ THREE.numpy().T
    energy = nb * (0.5 * z**2 + z**4).mean(1) + 0.5 * pull * (w**2).sum(1)
    density = np.exp(energy.min() - energy)
    density /= density.sum()
    return (w * density[:, None]).T @ w


@pytest.mark.statistical
def test_where_the_loss_is_bent_the_correction_is_that_of_the_posterior() -> None:
    nb, pull = 4.0, 1.0
    sampler = ControlledSGLD(
        num_directions=2, inverse_temperature=nb, localization=pull, metric="euclidean", alpha=1.0, step_size=0.1
    )
    found = of_bent(sampler, Chains(num_chains=8, num_draws=250, thinning=2, batch_size=24, seed=1))
    rows, x = AXES.tensors[0].numpy(), THREE.numpy()
    exact = -rows @ covariance_of_bent(nb, pull) @ rows.T
    error = found.losses.influence_standard_error
    assert (np.abs(found.influence - exact) < 5 * error).all()
    closed = -rows @ np.linalg.inv(nb * x.T @ x / 3 + pull * np.eye(2)) @ rows.T
    assert (np.abs(closed - exact).max(0) > 6 * error.max(0)).all()
    few = Chains(num_chains=4, num_draws=50, thinning=2, batch_size=24)
    agreed = of_bent(replace(sampler, alpha="agreement"), few)
    assert agreed.alpha == 0  # chain and surrogate part by more than a fifth
    assert (agreed.residual_share or 0) > 0.2
    assert any("the influence is that of the approximation (alpha = 0)" in note for note in agreed.notes)
    np.testing.assert_allclose(agreed.influence, closed, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.statistical
def test_chains_that_part_a_little_agree_on_their_correction() -> None:
    sampler = ControlledSGLD(
        num_directions=2, inverse_temperature=60.0, localization=15.0, metric="euclidean", step_size=0.005
    )
    found = of_bent(sampler, Chains(num_chains=8, num_draws=300, thinning=2, batch_size=24, seed=1))
    rows = AXES.tensors[0].numpy()
    exact = -rows @ covariance_of_bent(60.0, 15.0) @ rows.T
    assert (found.residual_share or 1) < 0.2
    assert (found.alpha or 0) > 0.5
    x = THREE.numpy()
    closed = -rows @ np.linalg.inv(60.0 * x.T @ x / 3 + 15.0 * np.eye(2)) @ rows.T
    assert np.linalg.norm(found.influence - exact) < 0.5 * np.linalg.norm(closed - exact)


@pytest.mark.exact
def test_a_single_chain_has_nothing_to_agree_with() -> None:
    found = run(chains=replace(CHAINS, num_chains=1))
    assert found.alpha == 0


@pytest.mark.exact
def test_where_no_chain_is_left_the_influence_is_the_closed_form() -> None:
    """The loss has no value away from w*, as far as chains go."""

    def edge(module: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        moved = (module.weight.detach() - TRAIN.model().weight.detach()).norm()  # type: ignore[operator, union-attr]
        return squares(module, batch) + torch.where(moved > 0.05, torch.nan, 0.0)

    found, exact = run(loss=edge), run(replace(WHOLE, alpha=0.0))
    assert len(found.divergences) == CHAINS.num_chains
    assert found.alpha == 0
    assert np.isnan(found.residual_share)  # type: ignore[arg-type]
    assert found.influence_draws is None
    assert found.verdict is not None
    assert found.verdict.word == "diverged"
    assert "2 of 2 chains" in found.verdict.sentence
    np.testing.assert_array_equal(found.influence, exact.influence)
    with pytest.raises(ChainsDivergedError):
        run(SGLD(step_size=1e-3, inverse_temperature=30.0, localization=2.0), loss=edge)  # type: ignore[arg-type]


@pytest.mark.exact
def test_a_loss_that_curves_down_is_not_local() -> None:
    """Of the Hessian −1 along one weight the approximation keeps 0, and the pull is too weak to hold the chains."""

    def saddle(module: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        return squares(module, batch) - 0.5 * (module.weight[0] - batch[0][:, 0]).square()  # type: ignore[index]

    found = run(replace(WHOLE, inverse_temperature=1e4, localization=100.0, alpha="agreement"), loss=saddle)
    assert found.verdict is not None
    assert found.verdict.word in ("not local", "diverged")
    assert found.alpha == 0
    assert found.verdict.word == "diverged" or any("times its variance, as where" in note for note in found.notes)
    assert run().verdict.word != "not local"  # type: ignore[union-attr]


@pytest.mark.exact
def test_a_loss_without_a_gauss_newton_matrix_says_so() -> None:
    def absolute(module: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        return (module(batch[0]) - batch[1]).abs() + 0.1 * module(batch[0]).exp()

    data = TRAIN.data()
    colder = replace(WHOLE, inverse_temperature=3000.0, localization=200.0)
    found = estimate(TRAIN.model(), absolute, data, data, sampler=colder, chains=CHAINS)
    assert any("products with the Hessian, since of the loss it is not shown" in note for note in found.notes)


@pytest.mark.exact
@pytest.mark.parametrize("loss", [squares, lambda m, b: (m(b[0]) - b[1]).cosh().log()])
def test_progress_goes_on_to_its_end_and_never_back(loss: object) -> None:
    seen = list[tuple[int, int]]()
    run(chains=replace(CHAINS, num_chains=1), progress=lambda done, total: seen.append((done, total)), loss=loss)
    done, totals = zip(*seen, strict=True)
    assert list(done) == sorted(done)
    assert len(set(totals)) == 1
    assert done[-1] == totals[0]


@pytest.mark.exact
@pytest.mark.parametrize(
    ("sampler", "chains", "match"),
    [
        (replace(WHOLE, step_size=10.0), CHAINS, r"step_size 10 makes every chain diverge .* below .* or leave it out"),
        (WHOLE, Chains(num_draws=1, centring="pooled"), "record at least 2 draws a chain"),
    ],
)
def test_what_cannot_run_is_refused_with_the_remedy(sampler: ControlledSGLD, chains: Chains, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        run(sampler, chains)
    run(replace(sampler, step_size=None), replace(chains, num_draws=2))


@pytest.mark.exact
def test_the_longest_steps_are_just_below_the_limit() -> None:
    _, variances, _ = paths(WHOLE, CHAINS)
    assert np.isfinite(run(replace(WHOLE, step_size=3.9 * variances.min())).influence).all()
    with pytest.raises(ValueError, match="makes every chain diverge"):
        run(replace(WHOLE, step_size=4.1 * variances.min()))
