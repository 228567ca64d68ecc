"""Metrics against SciPy and numbers worked out by hand, in one update, in several and on several ranks."""

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import metric_ranks
from bif_lightning.config import SGLD
from bif_lightning.metrics import (
    EffectiveSampleSize,
    LinearDatamodelingScore,
    LocalLearningCoefficient,
    ScoreAgreement,
    SplitRHat,
)
from bif_lightning.statistics.diagnostics import effective_sample_size, local_learning_coefficient, split_rhat
from forked import together

pytestmark = pytest.mark.exact


def spearman(one: Tensor, other: Tensor) -> float:
    return float(stats.spearmanr(one.numpy(), other.numpy()).statistic)


def test_lds_is_the_mean_spearman_of_scipy() -> None:
    influence, subsets, losses = metric_ranks.retrained()
    metric = LinearDatamodelingScore(influence, per_query=True)
    metric.update(subsets, losses)
    found = metric.compute()
    predicted = torch.stack([torch.stack([influence[s, j].sum() for s in subsets]) for j in range(5)], 1)
    expected = [spearman(predicted[:, j], losses[:, j]) for j in range(5)]
    torch.testing.assert_close(found["lds_per_query"], torch.tensor(expected, dtype=torch.float64))
    assert float(found["lds"]) == pytest.approx(np.mean(expected))


def test_influences_that_help_score_above_zero() -> None:
    # Query 0 is helped by example 0 and harmed by example 2: without 0, or with 2, its loss is high.
    influence = torch.tensor([[-1.0], [0.0], [2.0]])
    metric = LinearDatamodelingScore(influence)
    subsets = torch.tensor([[True, True, False], [True, False, True], [False, True, True]])
    metric.update(subsets, torch.tensor([[0.1], [0.5], [0.9]]))
    assert float(metric.compute()["lds"]) == pytest.approx(1.0)


def test_ties_have_their_mean_rank() -> None:
    influence = torch.tensor([[1.0], [1.0], [5.0], [0.0]])
    subsets = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 0, 1]]).bool()
    losses = torch.tensor([[0.3], [0.7], [0.7], [0.1], [0.2]])
    metric = LinearDatamodelingScore(influence)
    metric.update(subsets, losses)
    # Predictions 2, 6, 6, 1, 1 have the ranks 3, 4½, 4½, 1½, 1½; losses 3, 4½, 4½, 1, 2.
    ranks = np.corrcoef([3, 4.5, 4.5, 1.5, 1.5], [3, 4.5, 4.5, 1, 2])[0, 1]
    assert float(metric.compute()["lds"]) == pytest.approx(ranks)


@pytest.mark.parametrize("where", ["losses", "influence"])
def test_queries_with_nan_are_left_out(where: str) -> None:
    influence, subsets, losses = metric_ranks.retrained()
    clean = LinearDatamodelingScore(influence[:, 1:], resamples=0)
    clean.update(subsets, losses[:, 1:])
    (losses if where == "losses" else influence)[3, 0] = torch.nan
    metric = LinearDatamodelingScore(influence, per_query=True)
    metric.update(subsets, losses)
    found = metric.compute()
    assert found["lds_per_query"].isnan().tolist() == [True, False, False, False, False]
    assert float(found["lds"]) == pytest.approx(float(clean.compute()["lds"]))
    assert math.isfinite(found["lds_standard_error"])


def test_a_constant_query_has_no_score() -> None:
    influence, subsets, losses = metric_ranks.retrained()
    losses[:, 2] = 0.25
    metric = LinearDatamodelingScore(influence, per_query=True)
    metric.update(subsets, losses)
    assert metric.compute()["lds_per_query"].isnan().tolist() == [False, False, True, False, False]


def test_several_updates_are_one() -> None:
    influence, subsets, losses = metric_ranks.retrained()
    whole, parts = LinearDatamodelingScore(influence), LinearDatamodelingScore(influence)
    whole.update(subsets, losses)
    parts.update(subsets[0], losses[0])
    parts.update(subsets[1:30].view(1, 29, -1), losses[1:30].view(1, 29, -1))
    parts.update(subsets[30:], losses[30:])
    assert parts.compute() == whole.compute()


def test_the_standard_error_is_the_spread_over_new_truths() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    found, errors = list[float](), list[float]()
    for _ in range(150):
        influence = torch.randn(20, 40, generator=generator)
        subsets = torch.rand(30, 20, generator=generator) < 0.5
        losses = subsets.float() @ influence + 3 * torch.randn(30, 40, generator=generator)
        metric = LinearDatamodelingScore(influence, resamples=15)
        metric.update(subsets, losses)
        score = metric.compute()
        found.append(float(score["lds"]))
        errors.append(float(score["lds_standard_error"]))
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.25)


def test_lds_refuses_other_sizes() -> None:
    influence, subsets, losses = metric_ranks.retrained()
    metric = LinearDatamodelingScore(influence)
    with pytest.raises(ValueError, match=r"12 train examples and 5 queries.* 11 "):
        metric.update(subsets[:, 1:], losses)
    with pytest.raises(ValueError, match="losses of 4"):
        metric.update(subsets, losses[:, 1:])


def test_score_agreement_is_the_median_spearman() -> None:
    one, other = torch.randn(2, 30, 7, generator=torch.Generator().manual_seed(0))
    metric = ScoreAgreement()
    metric.update(one[:, :2], other[:, :2])
    metric.update(one[:, 2:], other[:, 2:])
    assert float(metric.compute()) == pytest.approx(np.median([spearman(one[:, j], other[:, j]) for j in range(7)]))


def test_chain_metrics_are_the_diagnostics_of_all_chains() -> None:
    trace, sampler = metric_ranks.traces(), metric_ranks.SAMPLER
    rhat, ess, llc = SplitRHat(), EffectiveSampleSize(), LocalLearningCoefficient(sampler, 0.25)
    for metric in (rhat, ess, llc):
        metric.update(trace[:1])
        metric.update(trace[1:])
    assert float(rhat.compute()) == pytest.approx(split_rhat(trace))
    assert float(ess.compute()) == pytest.approx(effective_sample_size(trace))
    value, error = local_learning_coefficient(trace, 0.25, sampler)
    assert float(llc.compute()["llc"]) == pytest.approx(value)
    assert float(llc.compute()["llc_standard_error"]) == pytest.approx(error)


def test_chains_of_unequal_length_are_refused() -> None:
    metric = SplitRHat()
    metric.update(torch.randn(2, 10))
    with pytest.raises(ValueError, match="9 draws and earlier ones 10"):
        metric.update(torch.randn(2, 9))


@pytest.mark.slow
def test_two_ranks_are_one(tmp_path: Path) -> None:
    together(metric_ranks.work, 2, 2, str(tmp_path))
    alone = metric_ranks.computed(slice(None))
    for rank in range(2):
        found = pickle.loads(Path(tmp_path, f"{rank}.pickle").read_bytes())
        assert found == pytest.approx(alone), f"rank {rank}"


def test_the_sampler_is_only_read_for_its_temperature() -> None:
    trace = metric_ranks.traces()
    metric = LocalLearningCoefficient(SGLD(step_size=1e-3, inverse_temperature=3.0, localization=9.0), 0.0)
    metric.update(trace)
    assert float(metric.compute()["llc"]) == pytest.approx(3 * float(trace.mean()))
