"""A module computes with a chain's weights exactly as if they had been written into it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric

import small_models as models
from bif_lightning.config import SGLD, Chains
from bif_lightning.data.dataset import Examples
from bif_lightning.estimation.estimate import estimate
from bif_lightning.estimation.estimator import estimate_problem
from bif_lightning.losses.problem import Minibatch, Problem, eval_mode
from bif_lightning.model.functional import FunctionalBackend
from bif_lightning.results.estimate import Estimate
from small_models import cross_entropy, problem_of

pytestmark = pytest.mark.bitwise

SAMPLER = SGLD(step_size=1e-3, inverse_temperature=20.0, localization=10.0)
CHAINS = Chains(num_chains=2, num_draws=3, batch_size=5)
ODD = {
    "bound method": models.BoundMethod,
    "ScriptModule": models.scripted, "torch.compile": models.compiled,
}  # fmt: skip


def moved(backend: FunctionalBackend) -> torch.Tensor:
    """Weights off the snapshot."""
    flat = backend.center.clone()
    with torch.no_grad():
        for i, piece in enumerate(backend.layout.pieces(flat)):
            piece.add_(torch.randn(piece.shape, generator=torch.Generator().manual_seed(i)), alpha=0.1)
    return flat


def written(
    name: str, module: nn.Module, backend: FunctionalBackend, flat: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Losses and gradients of a copy of the module that holds these weights as its own."""
    twin = models.seeded(lambda: models.PLAIN[name]())
    twin.load_state_dict(module.state_dict())
    for part, own in zip(twin.modules(), module.modules(), strict=True):
        part.training = own.training
    parameters = dict(twin.named_parameters())
    twin.zero_grad()
    with torch.no_grad():
        for name, piece in zip(backend.layout.names, backend.layout.pieces(flat), strict=True):
            parameters[name].copy_(piece)
    batch = Examples(models.data()).batch(torch.arange(models.BATCH))
    losses = cross_entropy(twin, batch)
    losses.mean().backward()
    return losses.detach(), [parameters[name].grad for name in backend.layout.names]


@pytest.mark.parametrize("twins", [True, False], ids=["twin", "borrowed"])
@pytest.mark.parametrize("name", models.PLAIN)
def test_losses_and_gradients_are_those_of_a_module_with_these_weights(name: str, twins: bool) -> None:
    module = models.seeded(models.PLAIN[name])
    with eval_mode(module):
        backend = FunctionalBackend(module, twins=twins)
        flat = moved(backend)
        losses, gradients = written(name, module, backend, flat)
        weights = backend.weights()
        with torch.no_grad():
            weights.flat.copy_(flat)
        problem, bound = problem_of(module), backend.bind(weights)
        batch = problem.training.batch(torch.arange(models.BATCH))
        problem.add_gradient(bound, Minibatch(batch))
        assert torch.equal(bound.call(lambda m: cross_entropy(m, batch).detach()), losses)
        for part, got, expected in zip(
            backend.layout.names, backend.layout.pieces(weights.gradient), gradients, strict=True
        ):
            assert expected is not None
            assert bool(expected.any()), part
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8, msg=part)


def run(module: nn.Module, twins: bool | None, draws_random_numbers: bool = False) -> tuple[Estimate, Problem]:
    problem = problem_of(module)
    problem.twins, problem.stochastic = twins, draws_random_numbers
    return estimate_problem(problem, SAMPLER, CHAINS, store_traces=True), problem


def same_bits(one: Estimate, other: Estimate) -> bool:
    assert one.traces is not None
    assert other.traces is not None
    pairs = [(one.influence, other.influence), (one.correlation, other.correlation),
             (one.losses.influence_standard_error, other.losses.influence_standard_error),
             (one.traces.train, other.traces.train), (one.loss_trace, other.loss_trace)]  # fmt: skip
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


@pytest.mark.parametrize("name", models.PLAIN)
def test_twins_and_the_module_itself_give_the_same_bits(name: str) -> None:
    found, problem = run(models.seeded(models.PLAIN[name]), None)
    assert problem.twins, "a twin reproduces this module, and chains may run side by side"
    assert same_bits(found, run(models.seeded(models.PLAIN[name]), False)[0])


def test_a_module_that_no_weights_reach_is_refused() -> None:
    module = models.seeded(models.Hiding)
    with pytest.raises(ValueError, match=r"computes with its own first\.weight"):
        estimate(module, cross_entropy, models.data(), sampler=SAMPLER, chains=CHAINS)
    assert bool((module.first.weight.grad == 0.5).all())


@pytest.mark.parametrize("name", ["bound method", "ScriptModule", "torch.compile"])
def test_odd_modules_run_one_chain_at_a_time(name: str) -> None:
    """The answer is that of the plain module with the same weights."""
    make: Callable[[], nn.Module] = ODD[name]
    odd, plain = models.seeded(make), models.seeded(models.mlp)
    with torch.no_grad():
        for theirs, ours in zip(odd.parameters(), plain.parameters(), strict=True):
            ours.copy_(theirs)
    found, problem = run(odd, None)
    assert problem.twins is False
    assert "one after the other" in found.notes[-1]
    np.testing.assert_allclose(found.loss_trace, run(plain, None)[0].loss_trace, rtol=1e-5)


def test_a_module_that_draws_random_numbers_gives_the_same_result_twice() -> None:
    one, problem = run(models.seeded(models.RandomInEvaluation), None)
    assert problem.stochastic
    assert "random" in one.notes[-1]
    torch.rand(7)
    other, _ = run(models.seeded(models.RandomInEvaluation), None)
    assert same_bits(one, other)
    assert one.snapshot_loss == other.snapshot_loss


def test_numbers_drawn_once_make_no_random_model() -> None:
    found, problem = run(models.seeded(models.RandomAtFirst), None)
    assert not problem.stochastic
    assert same_bits(found, run(models.seeded(models.RandomAtFirst), None)[0])


def test_random_numbers_of_the_model_do_not_count_as_covariance() -> None:
    """Chains that cannot move have draws that are all alike, whatever the model draws."""
    problem = problem_of(models.seeded(models.RandomInEvaluation))
    still = SGLD(step_size=1e-30, inverse_temperature=1.0, localization=1.0)
    found = estimate_problem(problem, still, CHAINS)
    assert float(np.abs(found.influence).max()) < 1e-12
    np.testing.assert_allclose(found.loss_trace, found.loss_trace[:, :1] * np.ones((1, 3)), rtol=1e-6)


def test_only_matching_weights_move() -> None:
    module = models.seeded(models.mlp)
    found = estimate(module, cross_entropy, models.data(), sampler=SAMPLER, chains=CHAINS, params="2.*")
    assert found.parameters == ("2.weight", "2.bias")
    assert found.num_weights == 27
    backend = FunctionalBackend(module, ["2.*"])
    weights = backend.weights()
    with torch.no_grad():
        weights.flat.add_(1.0)

    def values(part: nn.Module) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in part.named_parameters()}

    inside, own = backend.bind(weights).call(values), values(module)
    assert [name for name in own if not torch.equal(own[name], inside[name])] == ["2.weight", "2.bias"]
    # With more weights free the draws differ: the restriction is not only a matter of names.
    free = estimate(module, cross_entropy, models.data(), sampler=SAMPLER, chains=CHAINS)
    assert free.num_weights == sum(p.numel() for p in module.parameters())
    assert not np.allclose(free.loss_trace, found.loss_trace)


def test_a_tied_weight_counts_once() -> None:
    backend = FunctionalBackend(models.Tied())
    assert backend.layout.names.count("encode.weight") == 1
    assert "decode.weight" not in backend.layout.names
    assert backend.layout.num_weights == 36 + 6 + 6 + 21


def test_frozen_weights_stay() -> None:
    module = models.seeded(models.mlp)
    module[0].requires_grad_(False)
    assert FunctionalBackend(module).layout.names == ("2.weight", "2.bias")


@pytest.mark.exact
def test_a_metric_that_keeps_the_graph_of_a_loss_is_copied_without_it() -> None:
    """MeanMetric(loss) in a training step does so; its next value would hold the graph of the training too."""
    module = nn.Linear(3, 1)
    module.mean = MeanMetric()
    with torch.enable_grad():
        module.mean.mean_value = module.mean.mean_value + module(torch.ones(2, 3)).sum()
    assert module.mean.mean_value.grad_fn is not None
    kept = module.mean.mean_value
    backend = FunctionalBackend(module)
    value = backend.bind(backend.weights()).call(lambda twin: twin.mean.mean_value)
    assert value.grad_fn is None
    torch.testing.assert_close(value, kept.detach())
    assert module.mean.mean_value is kept
