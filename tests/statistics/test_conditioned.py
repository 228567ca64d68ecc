"""The conditioned influence against a Kalman update that is done in the weights themselves."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import small_models as models
from bif_lightning.archive.read import open_traces
from bif_lightning.archive.write import write_dump
from bif_lightning.config import SGLD, Chains
from bif_lightning.estimation.estimate import estimate
from bif_lightning.results.examples import Samples
from bif_lightning.statistics import conditioned
from bif_lightning.statistics.conditioned import KalmanUpdate, conditioned_influence, conditioning_ridge, increments

pytestmark = pytest.mark.exact

QUERY, WEIGHTS, DRAWS = 4, 5, 24
FEW, MANY = 7, 60
"""Train examples, fewer than the increments of two chains (46, or 24 of pairs), and more."""


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def world(seed: int = 0, size: int = FEW, num_draws: int = DRAWS) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of linear losses of both sides, and weights at the draws of two chains."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(size, WEIGHTS, generator=generator),
        torch.randn(QUERY, WEIGHTS, generator=generator),
        torch.randn(2, num_draws, WEIGHTS, generator=generator),
    )


def ensemble(draws: Tensor, *, paired: bool) -> Tensor:
    """Increments of the weights, all chains one after the other: written out, not by the package."""
    rows = list[Tensor]()
    for chain in draws:
        for t in range(0, DRAWS - 1, 2 if paired else 1):
            rows.append((chain[t] - chain[t + 1]) / 2 if paired else (chain[t + 1] - chain[t]) / 2**0.5)
    return torch.stack(rows)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("ridge", [0.01, 1.0, 300.0])
@pytest.mark.parametrize("size", [FEW, MANY])
def test_it_is_minus_the_covariance_after_a_kalman_update(size: int, ridge: float, *, paired: bool) -> None:
    """P' = P − P·Gᵀ(G·P·Gᵀ + r·I)⁻¹G·P in the weights; −G·P'·G_qᵀ, and the same from P'⁻¹ = P⁻¹ + GᵀG/r."""
    train, query, draws = world(size=size)
    rows = ensemble(draws, paired=paired)
    prior = rows.mT @ rows / len(rows)
    gain = prior @ train.mT @ torch.linalg.inv(train @ prior @ train.mT + ridge * torch.eye(size))
    after = prior - gain @ train @ prior
    found = conditioned_influence((draws @ train.mT).numpy(), (draws @ query.mT).numpy(), ridge, paired=paired)
    assert found.ridge == pytest.approx(ridge, rel=1e-12)
    atol = rounding(train @ prior @ train.mT, ridge)
    np.testing.assert_allclose(found.value, -train @ after @ query.mT, rtol=1e-9, atol=atol)
    sharper = torch.linalg.inv(torch.linalg.inv(prior) + train.mT @ train / ridge)
    np.testing.assert_allclose(found.value, -train @ sharper @ query.mT, rtol=1e-8, atol=atol)


def rounding(covariance: Tensor, ridge: float) -> float:
    """What solving C + r·I may lose: size x machine epsilon x condition number x the largest covariance."""
    condition = float(torch.linalg.cond(covariance + ridge * torch.eye(len(covariance))))
    return len(covariance) * torch.finfo(torch.float64).eps * condition * float(covariance.abs().max())


def test_a_large_ridge_leaves_the_influence_of_the_increments() -> None:
    train, query, draws = world()
    rows = ensemble(draws, paired=False)
    found = conditioned_influence((draws @ train.mT).numpy(), (draws @ query.mT).numpy(), 1e9)
    np.testing.assert_allclose(found.value, -train @ (rows.mT @ rows / len(rows)) @ query.mT, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("size", [FEW, MANY])
def test_its_error_is_that_of_reweighting_the_batches(size: int) -> None:
    """By finite differences in the weight of each batch: the infinitesimal jackknife in its own words."""
    train, query, draws = world(1, size)
    ridge, a, b = 0.5, *(ensemble(draws, paired=False) @ side.mT for side in (train, query))
    conditioner = KalmanUpdate.of(list(draws @ train.mT), list(draws @ query.mT), ridge)
    assert conditioner is not None

    def value(weight: Tensor) -> Tensor:
        c, across = a.mT @ (weight[:, None] * a), a.mT @ (weight[:, None] * b)
        total = weight.sum()
        return -ridge * torch.linalg.solve(c / total + ridge * torch.eye(size), across / total)

    slopes, start = list[Tensor](), 0
    for length in conditioner.lengths:
        move = torch.zeros(len(a))
        move[start : start + length] = 1e-5
        slopes.append((value(1 + move) - value(1 - move)) / 2e-5)
        start += length
    count = len(slopes)
    assert count == 10
    t_quantile = 2.2622  # of 9 degrees of freedom
    expected = (torch.stack(slopes).square().sum(0) * count / (count - 1)).sqrt() * t_quantile / 1.95996
    np.testing.assert_allclose(conditioner.rows(slice(None)).standard_error, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("size", [FEW, MANY])
def test_rows_are_those_of_the_whole(size: int) -> None:
    train, query, draws = world(size=size)
    conditioner = KalmanUpdate.of(list(draws @ train.mT), list(draws @ query.mT))
    assert conditioner is not None
    whole, part = conditioner.rows(slice(None)), conditioner.rows(slice(2, 5))
    np.testing.assert_allclose(part.value, whole.value[2:5], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(part.standard_error, whole.standard_error[2:5], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("ridge", ["auto", 1e-3, 10.0])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("size", [FEW, MANY])
def test_both_forms_agree(
    size: int, ridge: float | Literal["auto"], monkeypatch: pytest.MonkeyPatch, *, paired: bool
) -> None:
    """Increments x increments and train x train: ridge, influence and error, also in pieces of three increments."""
    train, query, draws = world(2, size)
    # Some noise: losses of full rank, so that the ridge of the rule is that of the sizes.
    noise = 0.1 * torch.randn(2, DRAWS, size, generator=torch.Generator().manual_seed(5))
    ensemble = conditioned._Ensemble.of(
        list(draws @ train.mT + noise), list(draws @ query.mT), paired=paired, batches=24
    )
    one, other = (form.solve(ensemble, ridge) for form in (conditioned._ByIncrements, conditioned._ByExamples))
    monkeypatch.setattr(conditioned, "_ENTRIES", 3 * (size + QUERY))
    in_pieces = conditioned._ByExamples.solve(ensemble, ridge)
    assert one is not None
    for found in (other, in_pieces):
        assert found is not None
        assert found.s == pytest.approx(one.s, rel=1e-9)
        expected, error = (KalmanUpdate(form).rows(slice(1, 6)) for form in (one, found))
        np.testing.assert_allclose(error.value, expected.value, rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(error.standard_error, expected.standard_error, rtol=1e-7, atol=1e-10)


def test_products_grow_linearly_with_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiplications of twice as many draws, and the largest block of increments that is ever made."""
    blocks, made = list[int](), conditioned.increments

    def counted(trace: Tensor, *, paired: bool) -> Tensor:
        blocks.append(made(trace, paired=paired).numel())
        return made(trace, paired=paired)

    monkeypatch.setattr(conditioned, "increments", counted)
    monkeypatch.setattr(conditioned, "_ENTRIES", 1024)

    def multiplications(num_draws: int) -> int:
        train, query, draws = world(num_draws=num_draws)
        with FlopCounterMode(display=False) as counter:
            update = KalmanUpdate.of(list(draws @ train.mT), list(draws @ query.mT))
            assert update is not None
            update.rows(slice(None))
        return counter.get_total_flops()

    assert multiplications(600) < 2.01 * multiplications(300)
    assert max(blocks) <= 1024


@pytest.mark.parametrize(("train", "increments"), [(50, 40), (500, 40)])
def test_the_rule_for_the_ridge_solves_its_equation(train: int, increments: int) -> None:
    """Σ w/(w + s) = min(n/25, K/4)."""
    rows = torch.randn(increments, train, generator=torch.Generator().manual_seed(3))
    s = conditioning_ridge(rows @ rows.mT, train, increments)
    assert conditioning_ridge(rows.mT @ rows, train, increments) == pytest.approx(s, rel=1e-9)
    w = torch.linalg.eigvalsh(rows @ rows.mT)
    assert float((w / (w + s)).sum()) == pytest.approx(min(train / 25, increments / 4), rel=1e-9)


def test_increments_forget_a_drift_and_keep_the_covariance() -> None:
    draws = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    drifting = draws + torch.arange(4000.0)[:, None] * 1e-3
    for trace, paired in ((drifting, False), (torch.stack([draws, -draws], 1).flatten(0, 1), True)):
        moved = increments(trace, paired=paired)
        # 4000 draws: a variance is known to √(3/4000) for overlapping differences.
        assert float((moved.square().mean(0) - 1).abs().max()) < 5 * np.sqrt(3 / 4000)


def test_what_cannot_be_conditioned_on_is_refused() -> None:
    constant = np.ones((2, 10, 3))
    with pytest.raises(ValueError, match="traces of at least 5 draws that vary"):
        conditioned_influence(constant, constant, "auto")
    assert KalmanUpdate.of([torch.randn(9, 3)], [torch.randn(9, 2)], None) is None


def test_a_dump_with_traces_gives_it_again_for_any_ridge(tmp_path: Path) -> None:
    """What the engine wrote beside the influence, and with another ridge what the engine writes when asked for it."""
    samples = [Samples(ids=tuple(f"{side}{i}" for i in range(size)), index=np.arange(size)) for side, size in
               (("train", 12), ("query", 4))]  # fmt: skip
    torch.set_default_dtype(torch.float32)
    chains = Chains(num_chains=2, num_draws=20, batch_size=5)
    found, other = (
        estimate(
            models.seeded(models.mlp), models.cross_entropy, models.data(), models.data(1, 4),
            sampler=SGLD(step_size=1e-3, inverse_temperature=20.0, localization=10.0), store_traces=True,
            chains=replace(chains, ridge=ridge),
        )
        for ridge in ("auto", 1e-3)
    )  # fmt: skip
    assert found.ridge is not None
    path = write_dump(tmp_path, found, step=7, epoch=0, train=samples[0], query=samples[1])
    traces = open_traces(path)
    again = conditioned_influence(traces.train, traces.columns["loss"], found.ridge)
    with xr.open_dataset(path) as dump:
        np.testing.assert_allclose(dump.conditioned, again.value, rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(dump.conditioned_standard_error, again.standard_error, rtol=1e-4, atol=1e-9)
    anew = conditioned_influence(traces.train, traces.columns["loss"], 1e-3)
    assert other.conditioned is not None
    np.testing.assert_allclose(other.conditioned, anew.value, rtol=1e-4, atol=1e-9)
    assert not np.allclose(other.conditioned, found.conditioned, rtol=1e-2)
    with pytest.raises(ValueError, match="has no traces"):
        open_traces(
            write_dump(tmp_path, replace(found, traces=None), step=8, epoch=0, train=samples[0], query=samples[1])
        )


def test_the_rule_leaves_a_ridge_where_the_draws_span_few_directions() -> None:
    """5 weights, 1000 train examples, 47 increments: min(n/25, K/4) = 11.75 directions are not there to be met."""
    generator = torch.Generator().manual_seed(4)
    draws = torch.randn(1, 48, WEIGHTS, generator=generator)
    gradients = torch.randn(1000, WEIGHTS, generator=generator)
    rows = ensemble_of(draws) @ gradients.mT
    s = conditioning_ridge(rows @ rows.mT, 1000, len(rows))
    w = torch.linalg.eigvalsh(rows @ rows.mT)[-WEIGHTS:]
    assert float((w / (w + s)).sum()) == pytest.approx(WEIGHTS / 2, rel=1e-6)


def ensemble_of(draws: Tensor) -> Tensor:
    return torch.cat([chain.diff(dim=0) / 2**0.5 for chain in draws])
