"""A chain that runs away is named, left out and recorded; it is never averaged in."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bif_lightning.config import SGLD, Chains
from bif_lightning.data.dataset import Examples
from bif_lightning.estimation.estimator import estimate_problem
from bif_lightning.exceptions import ChainsDivergedError
from bif_lightning.losses.problem import Problem
from targets import Regression

pytestmark = pytest.mark.exact

WORLD = Regression.random(8, 3, 0)
SAMPLER = SGLD(step_size=0.02, inverse_temperature=7.0, localization=11.0)
CHAINS = Chains(num_chains=4, num_draws=12, burn_in=2, thinning=2, batch_size=8)


class Cliff(nn.Module):
    """Linear until the weights are further than `radius` from the snapshot; from there on the loss is `beyond`."""

    def __init__(self, radius: float, beyond: float, *, raises: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(WORLD.snapshot.copy()))
        self.center, self.radius, self.beyond, self.raises = self.weight.detach().clone(), radius, beyond, raises

    def forward(self, x: Tensor) -> Tensor:
        if float((self.weight.detach() - self.center).norm()) <= self.radius:
            return x @ self.weight
        if self.raises:
            raise RuntimeError("the model refuses these weights")
        return x @ self.weight * self.beyond


def problem_of(module: nn.Module) -> Problem:
    def loss(module: nn.Module, batch: list[Tensor]) -> Tensor:
        return 0.5 * (module(batch[0]) - batch[1]).square()

    examples = Examples(WORLD.data())
    return Problem(
        module=module, loss=loss, objective=lambda m, b: loss(m, b).mean(),
        train=examples, query=examples, training=examples, prepare=lambda batch: batch,
    )  # fmt: skip


def far_enough() -> tuple[float, int]:
    """A radius that exactly one of the chains passes, and that chain."""
    every_step = replace(CHAINS, burn_in=0, thinning=1, num_draws=CHAINS.num_steps)
    reach = estimate_problem(problem_of(Cliff(math.inf, 1.0)), SAMPLER, every_step).distance_trace.max(1)
    first, second = sorted(reach)[-1], sorted(reach)[-2]
    return (first + second) / 2, int(reach.argmax())


@pytest.mark.parametrize(("beyond", "why"), [(math.nan, "no longer finite"), (1e6, "nats above the snapshot's")])
def test_a_diverged_chain_is_named_and_left_out(beyond: float, why: str) -> None:
    radius, chain = far_enough()
    whole = estimate_problem(problem_of(Cliff(math.inf, 1.0)), SAMPLER, CHAINS, store_traces=True)
    found = estimate_problem(problem_of(Cliff(radius, beyond)), SAMPLER, CHAINS, store_traces=True)
    others = [c for c in range(4) if c != chain]
    assert found.chain_ids == tuple(others)
    (record,) = found.divergences
    assert record.chain == chain
    assert why in record.message
    assert f"chain {chain} diverged at draw {record.draw} of 12 (step {record.step})" in record.message
    assert "halve step_size (now 0.02)" in record.message
    assert record.message in found.notes
    assert whole.traces is not None
    assert found.traces is not None
    # The rest of the result is that of the other chains alone.
    np.testing.assert_array_equal(found.traces.train, whole.traces.train[others])
    covariances = [np.cov(found.traces.train[c].T.astype(float)) for c in range(3)]
    np.testing.assert_allclose(found.influence, -np.mean(covariances, axis=0), rtol=1e-4, atol=1e-6)
    assert found.loss_trace.shape == (3, 12)
    assert np.isfinite(found.correlation).all()
    assert record.step == 2 + 2 * (record.draw + 1)
    assert record.loss_before == pytest.approx(whole.loss_trace[chain][record.draw - 1])


def test_where_every_chain_diverges_there_is_no_result() -> None:
    wild = SGLD(step_size=3.9, inverse_temperature=1e9, localization=1.0)
    with pytest.raises(ChainsDivergedError, match=r"4 chains diverged.*chain 0 diverged at draw 0 .*lower|halve"):
        estimate_problem(problem_of(Cliff(math.inf, 1.0)), wild, CHAINS)


def test_a_model_that_refuses_infinite_weights_is_a_divergence_and_any_other_error_is_not() -> None:
    class Picky(Cliff):
        def forward(self, x: Tensor) -> Tensor:
            if not bool(self.weight.isfinite().all()):
                raise RuntimeError("the model refuses these weights")
            return x @ self.weight

    wild = SGLD(step_size=3.9, inverse_temperature=1e200, localization=1.0)
    with pytest.raises(ChainsDivergedError, match=r"draw 0 of 12 \(step 4\).*the model refused them"):
        estimate_problem(problem_of(Picky(math.inf, 1.0)), wild, CHAINS)
    with pytest.raises(ChainsDivergedError, match=r"draw -1 of 12 \(step 4\).*the model refused them"):
        estimate_problem(problem_of(Picky(math.inf, 1.0)), wild, replace(CHAINS, burn_in=9))
    with pytest.raises(RuntimeError, match="the model refuses these weights"):
        estimate_problem(problem_of(Cliff(far_enough()[0], 1.0, raises=True)), SAMPLER, CHAINS)


def test_one_draw_that_is_left_makes_no_matrix() -> None:
    chains = Chains(num_chains=4, num_draws=1, burn_in=40, batch_size=8, centring="pooled")
    reach = estimate_problem(problem_of(Cliff(math.inf, 1.0)), SAMPLER, chains).distance_trace[:, 0]
    found = estimate_problem(problem_of(Recorded(sorted(reach)[1] * 1.0001)), SAMPLER, chains)
    assert len(found.chain_ids) == 2
    with pytest.raises(ChainsDivergedError, match="3 chains diverged, and too few draws are left"):
        estimate_problem(problem_of(Recorded(sorted(reach)[0] * 1.0001)), SAMPLER, chains)


class Recorded(Cliff):
    """NaN beyond the radius, but only where draws are measured."""

    def __init__(self, radius: float) -> None:
        super().__init__(radius, math.nan)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight if torch.is_grad_enabled() else super().forward(x)
