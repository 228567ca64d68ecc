"""All train examples by their effect on many queries, against the matrices that were written."""

import dataclasses

import numpy as np
import pytest
import torch

from archive_examples import make_samples
from bif_lightning.archive.read import integrated, open_run, ranking, top
from bif_lightning.archive.write import write_dump, write_integrated, write_samples
from bif_lightning.config import SGLD, Chains, Subspace
from bif_lightning.estimation.estimate import estimate
from training_dumps import QUERIES, STEPS, N, make_estimates, write_training

pytestmark = pytest.mark.exact


@pytest.fixture
def estimates(rng):
    return make_estimates(rng)


@pytest.fixture
def run(tmp_path, estimates):
    return open_run(write_training(tmp_path / "bif", estimates))


def test_a_step_is_ranked_by_the_mean_over_queries(run, estimates):
    table = ranking(run, step=20).set_index("train").sort_index()
    losses = estimates[20].losses
    np.testing.assert_allclose(table.effect, -losses.influence.astype(float).mean(1), rtol=1e-6)
    np.testing.assert_allclose(table.standard_error, losses.influence_standard_error.astype(float).mean(1), rtol=1e-6)
    np.testing.assert_allclose(table.share_hurt, (losses.influence > 0).mean(1))
    np.testing.assert_allclose(table.loss, estimates[20].train_loss)
    np.testing.assert_allclose(
        np.array(table.over_steps.tolist()),
        np.stack([-each.losses.influence.mean(1) for each in estimates.values()], 1),
        rtol=1e-4,
        atol=1e-5,
    )
    assert list(table["rank"].sort_values()) == list(range(1, N + 1))
    assert table.attrs["all_steps"] == list(STEPS)
    assert table.attrs["steps"] == [20]
    assert table.attrs["queries"] == list(range(QUERIES))
    assert table.attrs["units"] == "nat^2"
    assert "bound" in table.attrs["error"]
    assert set(table.quantity) == {"influence"}


def test_the_most_harmful_comes_first_and_helping_is_above_zero(run, estimates):
    table = ranking(run, step=20)
    assert table.effect.is_monotonic_increasing
    worst = estimates[20].losses.influence.mean(1).argmax()
    assert table.train[0] == worst
    by_correlation = ranking(run, step=20, by="correlation")
    assert by_correlation.train[0] == np.nanmean(estimates[20].losses.correlation, 1).argmin()


def test_the_whole_training_is_the_mean_of_the_integrated_influence(run):
    table = ranking(run).set_index("train").sort_index()
    whole = integrated(run)
    np.testing.assert_allclose(table.effect, -whole.integrated.mean("query"), atol=1e-9)
    np.testing.assert_allclose(table.standard_error, whole.standard_error.mean("query"), atol=1e-9)
    np.testing.assert_allclose(table.share_hurt, (whole.integrated > 0).mean("query"))
    over = np.array(table.over_steps.tolist())
    np.testing.assert_allclose(over.sum(1), table.effect, atol=1e-8)
    np.testing.assert_allclose(table.moment_standard_error, np.sqrt(len(STEPS)) * over.std(1, ddof=1), atol=1e-9)
    assert set(table.quantity) == {"integrated"}
    assert table.attrs["steps"] == list(STEPS)
    assert table.attrs["units"] == "standard deviations"


def test_of_one_query_it_is_what_top_ranks_by(run):
    table, best = ranking(run, 2).set_index("train"), top(run, 2, k=N)
    np.testing.assert_allclose(table.effect[best.train], -best.value, atol=1e-9)
    np.testing.assert_allclose(table.standard_error[best.train], best.standard_error, atol=1e-9)


def test_integrated_file_changes_nothing(run, tmp_path):
    before = ranking(run)
    write_integrated(tmp_path / "bif")
    after = ranking(open_run(tmp_path / "bif"))
    assert before.equals(after)


@pytest.mark.parametrize(
    ("queries", "rows"),
    [
        (None, [0, 1, 2]),
        (1, [1]),
        ("query-é2", [2]),
        ([2, 0, 2], [2, 0]),
        (np.array([0, 2]), [0, 2]),
        (["query-é1", 0], [1, 0]),
        (slice(1, 3), [1, 2]),
        (np.array([True, False, True]), [0, 2]),
        ([False, False, True], [2]),
    ],
)
def test_which_queries(run, estimates, queries, rows):
    table = ranking(run, queries, step=10).set_index("train").sort_index()
    np.testing.assert_allclose(table.effect, -estimates[10].losses.influence[:, rows].mean(1), rtol=1e-4, atol=1e-6)
    assert table.attrs["queries"] == rows


def test_a_mask_of_the_run_chooses_by_label(run, estimates):
    table = ranking(run, run.query_index > 0, step=10)
    assert table.attrs["queries"] == np.flatnonzero(run.query_index.values > 0).tolist()


def test_an_observable_has_columns_of_its_own(run, estimates):
    table = ranking(run, "dog", step=10, observable="accuracy").set_index("train").sort_index()
    found = estimates[10].observables["accuracy"]
    np.testing.assert_allclose(table.effect, -found.influence[:, 1], rtol=1e-6)
    np.testing.assert_allclose(table.standard_error, found.influence_standard_error[:, 1], rtol=1e-6)


def test_some_train_examples_only(run):
    table = ranking(run.isel(train=[3, 1]), step=10)
    assert sorted(table.train) == [1, 3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"queries": []}, "no query is chosen; the run has 3"),
        ({"queries": np.array([True, False])}, "the mask of queries has 2 entries, and the run has 3"),
        ({"queries": "quary-é1"}, "the nearest are 'query-é1'"),
        ({"queries": np.zeros((2, 2), int)}, "queries has 2 axes"),
        ({"step": 20, "by": "integrated"}, "leave one of them out"),
        ({"step": 21}, "the nearest are 20"),
    ],
)
def test_what_is_refused(run, arguments, words):
    with pytest.raises(ValueError, match=words):
        ranking(run, **arguments)


def test_all_unknown_is_refused(tmp_path, estimates):
    one = estimates[10]
    unknown = np.full_like(one.losses.correlation, np.nan)
    accuracy = dataclasses.replace(
        one.observables["accuracy"], correlation=unknown[:, :2], correlation_standard_error=unknown[:, :2]
    )
    run = open_run(write_training(tmp_path / "nan", {10: dataclasses.replace(one, observables={"accuracy": accuracy})}))
    with pytest.raises(ValueError, match="accuracy_correlation is unknown for every train example at step 10"):
        ranking(run, by="correlation", observable="accuracy")


@pytest.fixture(scope="module")
def drawn():
    """An estimate by chains of a small regression, with its draws."""
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 1)
    data = [(torch.randn(3), torch.randn(1)) for _ in range(10)]
    settings = {"sampler": SGLD(step_size=1e-2, inverse_temperature=10.0, localization=1.0), "store_traces": True}
    chains = Chains(num_chains=4, num_draws=80)
    return estimate(module, losses, data, data[:3], chains=chains, **settings)


def losses(module, batch):
    return (module(batch[0]) - batch[1]).square().sum(1)


def written(folder, found):
    train, query = make_samples("train", 10), make_samples("query", 3)
    write_samples(folder, train, query)
    write_dump(folder, found, step=1, epoch=0, train=train, query=query)
    return open_run(folder)


@pytest.mark.parametrize("by", ["influence", "correlation"])
def test_of_one_query_the_draws_give_its_stored_error(tmp_path, drawn, by):
    run = written(tmp_path, drawn)
    table = ranking(run, 1, by=by).set_index("train").sort_index()
    assert table.attrs["error"] == "measured of the mean over the queries, from the stored draws"
    # The factor of all errors comes from this query alone, in place of from all three.
    np.testing.assert_allclose(table.standard_error, run[f"{by}_standard_error"].isel(step=0, query=1), rtol=0.15)


@pytest.mark.parametrize("by", ["influence", "correlation"])
def test_errors_of_some_train_examples_are_theirs(tmp_path, drawn, by):
    run = written(tmp_path, drawn)
    some = ranking(run.isel(train=[7, 2]), [2, 1], by=by).set_index("train")
    whole = ranking(run, [1, 2], by=by).set_index("train")
    np.testing.assert_allclose(some.standard_error, whole.standard_error[[*some.index]], rtol=0.15)


def test_stored_draws_know_that_two_queries_cancel(tmp_path, drawn):
    """Two queries whose losses mirror each other: their mean does not vary, and neither does the effect on it."""
    loss = drawn.traces.columns["loss"]
    mirrored = np.stack([loss[..., 0], -loss[..., 0], loss[..., 2]], 2)
    traces = dataclasses.replace(drawn.traces, columns={"loss": mirrored})
    run = written(tmp_path, dataclasses.replace(drawn, traces=traces))
    assert ranking(run, [0, 1]).standard_error.max() < 1e-5 * ranking(run, 0).standard_error.min()


def test_traces_of_a_closed_form_are_not_its_draws(tmp_path, drawn):
    resolved = dataclasses.replace(drawn, sampler=Subspace())
    assert "bound" in ranking(written(tmp_path, resolved), [0, 1]).attrs["error"]
