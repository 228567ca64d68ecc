"""What controlled chains say alone: the covariance of their draws, as an estimate by SGLD has it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import small_models as models
from archive_examples import make_samples
from bif_lightning.archive.read import open_run
from bif_lightning.archive.write import write_dump
from bif_lightning.config import SGLD, Chains, ControlledSGLD, Pairs, Sampler, Subspace
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.estimation.blocks import BlockBuilder
from bif_lightning.estimation.estimate import estimate
from bif_lightning.estimation.matrices import Matrices, compute
from bif_lightning.losses.observables import PerExample
from bif_lightning.results.estimate import Estimate, Influence
from bif_lightning.sampling.covariances import DrawnCovariances
from bif_lightning.sampling.trace import ChainTrace, batch_lengths
from targets import Regression, gaussian_influence, half_square

SAMPLER = ControlledSGLD(num_directions=7)
CHAINS = Chains(num_chains=3, num_draws=9, thinning=2, batch_size=8)


def confidence(module: torch.nn.Module, batch: Sequence[torch.Tensor]) -> torch.Tensor:
    return (-models.cross_entropy(module, (batch[0], batch[1]))).exp()


def run(chains: Chains = CHAINS, sampler: Sampler = SAMPLER, *, store_traces: bool = True) -> Estimate:
    return estimate(
        models.seeded(models.mlp), models.cross_entropy, models.data(), models.data(1, 4), sampler=sampler,
        chains=chains, observables=[PerExample("confidence", confidence)], store_traces=store_traces,
    )  # fmt: skip


def both(found: Estimate) -> dict[str, Influence]:
    return {"loss": found.losses, **found.observables}


def by_sgld(found: Estimate, chains: Chains) -> Matrices | None:
    """The matrices that an estimate by SGLD makes of these traces."""
    assert found.traces is not None
    train = torch.from_numpy(found.traces.train)
    columns = torch.from_numpy(np.concatenate([*found.traces.columns.values()], 2))
    traces = [
        ChainTrace(chain, batch_lengths(chains), traces=True, train=[train[chain]], columns=[columns[chain]])
        for chain in range(len(train))
    ]
    shape = train.shape[2], columns.shape[2], 4
    return compute(BlockBuilder.of(DrawnCovariances.of(traces, shape, replace(chains, ridge=None)), shape), 1, Ranks())


@pytest.mark.exact
@pytest.mark.parametrize("centring", ["chain", "pooled"])
def test_it_is_the_covariance_of_the_draws(centring: str) -> None:
    found = run(replace(CHAINS, centring=centring))  # type: ignore[arg-type]
    assert found.traces is not None
    axis = 1 if centring == "chain" else (0, 1)
    train = found.traces.train.astype(np.float64)
    train -= train.mean(axis, keepdims=True)
    lost = CHAINS.num_chains if centring == "chain" else 1
    for name, influence in both(found).items():
        columns = found.traces.columns[name].astype(np.float64)
        columns -= columns.mean(axis, keepdims=True)
        exact = -np.einsum("ctn,ctq->nq", train, columns) / (train.shape[0] * train.shape[1] - lost)
        assert influence.influence_draws is not None
        np.testing.assert_allclose(influence.influence_draws, exact, rtol=1e-6, atol=1e-12 * np.abs(exact).max())
        assert not np.allclose(influence.influence, exact, rtol=0.1)


@pytest.mark.bitwise
@pytest.mark.parametrize("chains", [CHAINS, replace(CHAINS, centring="pooled"), replace(CHAINS, num_chains=1)])
def test_value_and_error_are_those_of_sgld(chains: Chains) -> None:
    found = run(chains)
    expected = by_sgld(found, chains)
    assert expected is not None
    matrices = [influence.influence_draws for influence in both(found).values()]
    errors = [influence.influence_draws_standard_error for influence in both(found).values()]
    np.testing.assert_array_equal(np.concatenate(matrices, 1), expected.influence)  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.concatenate(errors, 1), expected.influence_error)  # type: ignore[arg-type]


@pytest.mark.exact
def test_draws_kept_as_moments_give_the_same() -> None:
    traces, moments = (run(replace(CHAINS, storage=each), store_traces=False) for each in ("traces", "moments"))
    for one, other in zip(both(traces).values(), both(moments).values(), strict=True):
        for name in ("influence_draws", "influence_draws_standard_error"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-12)


@pytest.mark.exact
@pytest.mark.parametrize(
    "sampler",
    [SGLD(step_size=1e-3, inverse_temperature=20.0, localization=10.0), Pairs(scale=0.05), Subspace(num_directions=7)],
    ids=lambda sampler: type(sampler).__name__,
)
def test_others_have_none(sampler: Sampler) -> None:
    found = run(Chains(num_chains=2, num_draws=8, batch_size=8), sampler)
    assert found.influence_draws is None
    for influence in both(found).values():
        assert influence.influence_draws is None
        assert influence.influence_draws_standard_error is None


@pytest.mark.exact
def test_a_dump_holds_it(tmp_path: Path) -> None:
    found = run()
    write_dump(tmp_path, found, step=1, epoch=0, train=make_samples("train", 12), query=make_samples("query", 4))
    snapshot = open_run(tmp_path).sel(step=1)
    for prefix, influence in (("", found.losses), ("confidence_", found.observables["confidence"])):
        for name in ("influence_draws", "influence_draws_standard_error"):
            np.testing.assert_array_equal(snapshot[f"{prefix}{name}"], getattr(influence, name))


@pytest.mark.statistical
def test_of_a_linear_regression_it_agrees_with_the_influence_and_the_posterior() -> None:
    """nβ is large, since the influence leaves out what is of second order in the displacement."""
    train, query = Regression.random(16, 5, 0), Regression.random(6, 5, 1)
    sampler = ControlledSGLD(num_directions=5, inverse_temperature=1e5, localization=1e4, metric="euclidean")
    chains = Chains(num_chains=8, num_draws=500, thinning=4, batch_size=16, seed=3)
    found = estimate(train.model(), half_square, train.data(), query.data(), sampler=sampler, chains=chains).losses
    drawn, error = found.influence_draws, found.influence_draws_standard_error
    assert drawn is not None
    assert error is not None
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(drawn)  # otherwise anything would agree
    assert (np.abs(found.influence - drawn) < 5 * np.hypot(error, found.influence_standard_error)).all()
    here, precision = replace(query, snapshot=train.snapshot), 1e5 * train.hessian + 1e4 * np.eye(5)
    z = (drawn - gaussian_influence(train, here, train.snapshot, np.linalg.inv(precision))) / error
    assert np.abs(z).max() < 5
    assert 0.4 < np.sqrt((z**2).mean()) < 1.8
