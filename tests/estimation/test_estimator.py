"""One estimate in all its forms: traces or moments, blocks of rows, label means, observables, train x train."""

import dataclasses

import numpy as np
import pytest
import torch

import bif_lightning.estimation.blocks as blocks
from bif_lightning.config import SGLD, Chains
from bif_lightning.estimation.estimate import estimate
from bif_lightning.losses.observables import GroupMean, PerExample
from bif_lightning.results.estimate import Estimate, Influence
from targets import Regression, half_square

pytestmark = pytest.mark.exact

WORLD, QUERY = Regression.random(13, 3, 0), Regression.random(6, 3, 1)
SAMPLER = SGLD(step_size=0.02, inverse_temperature=7.0, localization=11.0)
CHAINS = Chains(num_chains=3, num_draws=20, batch_size=5)
TRAIN_LABELS = np.array([0, 0, 1, 3, 1, 0, -1, 3, 3, 1, 0, 0, 1])
QUERY_LABELS = np.array([1, 4, 4, 1, 1, -1])


def run(chains: Chains = CHAINS, **more: object) -> Estimate:
    more = {"train_labels": TRAIN_LABELS, "query_labels": QUERY_LABELS, **more}
    return estimate(WORLD.model(), half_square, WORLD.data(), QUERY.data(), sampler=SAMPLER, chains=chains, **more)


def same(one: Estimate, other: Estimate, rtol: float) -> None:
    for name in Influence.__dataclass_fields__:
        if isinstance(value := getattr(one.losses, name), np.ndarray):
            np.testing.assert_allclose(getattr(other.losses, name), value, rtol=rtol, atol=rtol, err_msg=name)
    for name in ("train_loss", "train_std", "loss_trace", "distance_trace"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-9, err_msg=name)
    assert one.label_means is not None
    assert other.label_means is not None
    for name, value in vars(one.label_means).items():
        np.testing.assert_allclose(getattr(other.label_means, name), value, rtol=1e-9, atol=1e-12, err_msg=name)
    for name, value in dataclasses.asdict(one.diagnostics).items():
        assert getattr(other.diagnostics, name) == pytest.approx(value, rel=1e-9, nan_ok=True), name


@pytest.mark.parametrize("centring", ["chain", "pooled"])
def test_moments_give_what_traces_give(centring: str) -> None:
    # Without the conditioned influence, which needs traces.
    chains = dataclasses.replace(CHAINS, centring=centring, storage="traces", ridge=None)
    one, other = run(chains), run(dataclasses.replace(chains, storage="moments"))
    assert other.traces is None
    same(one, other, 1e-6)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run()
    monkeypatch.setattr(blocks, "_TILE_ENTRIES", 1)
    same(whole, run(), 1e-6)


def test_label_means_are_means_of_blocks() -> None:
    got = run()
    means = got.label_means
    assert means is not None
    assert means.train_labels.tolist() == [0, 1, 3]
    assert means.query_labels.tolist() == [1, 4]
    for i, a in enumerate(means.train_labels):
        for j, b in enumerate(means.query_labels):
            block = np.ix_(a == TRAIN_LABELS, b == QUERY_LABELS)
            assert means.influence[i, j] == pytest.approx(got.influence[block].mean(), rel=1e-5)
            assert means.correlation[i, j] == pytest.approx(got.correlation[block].mean(), rel=1e-5, abs=1e-7)
    assert (means.influence_standard_error > 0).all()


def test_a_label_mean_is_the_influence_on_a_group_mean() -> None:
    """Cov is bilinear: the mean of a block over its queries is the influence on the queries' mean loss."""
    groups = ["a", "b", "b", "a", "a", "c"]
    got = run(observables=[GroupMean("group", groups)])
    group = got.observables["group"]
    assert group.columns == ("a", "b", "c")
    for j, name in enumerate(group.columns):
        chosen = [i for i, g in enumerate(groups) if g == name]
        np.testing.assert_allclose(group.influence[:, j], got.influence[:, chosen].mean(1), rtol=1e-4, atol=1e-6)
        assert group.mean[j] == pytest.approx(got.losses.mean[chosen].mean())


def test_the_standard_error_of_a_label_mean_is_that_of_the_group_itself() -> None:
    got = run(
        train_labels=np.zeros(13, int), query_labels=QUERY_LABELS,
        observables=[GroupMean("group", QUERY_LABELS.tolist())], store_traces=True,
    )  # fmt: skip
    means = got.label_means
    assert means is not None
    # Rows and columns of means: the same estimate where one train example's loss is the mean loss.
    group = got.observables["group"]
    assert group.columns == ("-1", "1", "4")
    np.testing.assert_allclose(means.influence[0], group.influence[:, 1:].mean(0), rtol=1e-4)
    one_by_one = got.losses.influence_standard_error[:, QUERY_LABELS == 1].mean()
    assert means.influence_standard_error[0, 0] < one_by_one


def test_pooled_centring_counts_the_difference_between_chains() -> None:
    traces = run(dataclasses.replace(CHAINS, centring="pooled"), store_traces=True).traces
    assert traces is not None
    got = run(dataclasses.replace(CHAINS, centring="pooled"))
    train, query = (a.reshape(-1, a.shape[-1]).astype(np.float64) for a in (traces.train, traces.columns["loss"]))
    np.testing.assert_allclose(got.influence, -np.cov(train.T, query.T)[:13, 13:], rtol=1e-4, atol=1e-6)
    assert not np.allclose(got.influence, run().influence, rtol=1e-3)


def test_train_by_train_is_symmetric() -> None:
    got = estimate(WORLD.model(), half_square, WORLD.data(), sampler=SAMPLER, chains=CHAINS)
    np.testing.assert_allclose(got.influence, got.influence.T, rtol=1e-6)
    np.testing.assert_allclose(np.diag(got.correlation), 1.0, rtol=1e-6)
    assert (np.diag(got.influence) < 0).all()


def test_observables_lie_in_their_own_columns() -> None:
    def prediction(module: torch.nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return module(batch[0])

    def negative_loss(module: torch.nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return -half_square(module, batch)

    got = run(observables=[PerExample("prediction", prediction), PerExample("gain", negative_loss, unit="nat")])
    assert list(got.observables) == ["prediction", "gain"]
    np.testing.assert_allclose(got.observables["gain"].influence, -got.influence, rtol=1e-6)
    np.testing.assert_allclose(got.observables["gain"].correlation, -got.correlation, rtol=1e-6)
    assert got.observables["gain"].unit == "nat"
    assert got.observables["prediction"].columns is None
    assert not np.allclose(got.observables["prediction"].correlation, got.correlation, atol=0.05)
    assert got.observables["prediction"].influence.shape == (13, 6)


def test_training_data_of_its_own_moves_the_chains() -> None:
    """The attribution set is measured; minibatches come from the training data."""
    one = run(training_data=QUERY.data())
    assert not np.allclose(one.loss_trace, run().loss_trace)
    two = estimate(
        WORLD.model(), half_square, QUERY.data(), WORLD.data(), sampler=SAMPLER, chains=CHAINS
    )  # same chains, axes swapped
    np.testing.assert_allclose(one.influence, two.influence.T, rtol=1e-5)


def test_one_batch_of_draws_has_no_score_agreement() -> None:
    found = run(Chains(num_chains=1, num_draws=7, batch_size=5))
    assert np.isnan(found.diagnostics.score_agreement)
    assert np.isnan(found.losses.influence_standard_error).all()
    assert np.isfinite(found.influence).all()
