"""The questions people ask of a run are answered with the right sign, the right names and helpful errors."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from archive_examples import make_estimate, make_influence, make_label_means, make_samples
from bif_lightning.archive.read import SkippedDumpWarning, by_label, open_run, top, trajectory
from bif_lightning.archive.write import write_dump, write_samples

pytestmark = pytest.mark.exact

INFLUENCE = np.array([[-3.0, 0], [2, 0], [np.nan, 0], [-1, 0], [5, 0], [0, 0]], np.float32)


@pytest.fixture
def parts(rng):
    train = make_samples("train", 6, classes=("cat", "dog", "ünit"), texts=True)
    query = make_samples("query", 2, classes=("cat", "dog"))
    estimate = make_estimate(
        rng,
        6,
        2,
        observables=(make_influence(rng, 6, 2, name="accuracy", unit="1", columns=("cat", "dog")),),
        label_means=make_label_means(rng, train, query),
    )
    losses = dataclasses.replace(estimate.losses, influence=INFLUENCE, correlation=-INFLUENCE / 10)
    return train, query, dataclasses.replace(estimate, losses=losses)


@pytest.fixture
def folder(tmp_path, parts):
    train, query, estimate = parts
    write_samples(tmp_path, train, query)
    half = dataclasses.replace(estimate, losses=dataclasses.replace(estimate.losses, influence=INFLUENCE / 2))
    for step, each in {100: half, 200: estimate}.items():
        write_dump(tmp_path, each, step=step, epoch=0, train=train, query=query)
    return tmp_path


def test_top_puts_helpers_first_and_leaves_out_zero_and_nan(folder, parts):
    table = top(open_run(folder), 0)
    assert list(table) == ["rank", "effect", "train", "id", "label", "text", "value", "standard_error", "quantity"]
    assert table.train.tolist() == [0, 3, 4, 1]
    assert table.effect.tolist() == ["helps", "helps", "hurts", "hurts"]
    assert table["rank"].tolist() == [1, 2, 1, 2]
    assert table.value.tolist() == [-3, -1, 5, 2]
    assert table.id.tolist() == ["train-é0", "train-é3", "train-é4", "train-é1"]
    assert table.label.tolist() == ["cat", "cat", "dog", "dog"]
    assert table.text[0] == "text 0 日本"
    error = parts[2].losses.influence_standard_error[[0, 3, 4, 1], 0]
    np.testing.assert_array_equal(table.standard_error, error)


def test_top_by_correlation_agrees_on_who_helps(folder):
    run = open_run(folder)
    by_influence, by_correlation = (top(run, "query-é0", k=1, by=by) for by in ("influence", "correlation"))
    assert by_correlation.train.tolist() == by_influence.train.tolist() == [0, 4]
    assert by_correlation.effect.tolist() == ["helps", "hurts"]
    np.testing.assert_allclose(by_correlation.value, [0.3, -0.5], rtol=1e-6)
    assert top(run, 0, k=1, step=100).value.tolist() == [-1.5, 2.5]


def test_top_by_the_conditioned_influence_reads_its_sign_as_that_of_influence(tmp_path, parts, rng):
    train, query, estimate = parts
    further = make_influence(rng, 6, 2, name="accuracy", unit="1", columns=("cat", "dog"), conditioned=True)
    error = np.full_like(INFLUENCE, 0.5)
    # Influence and correlation stay those of the fixture, which rank otherwise.
    losses = dataclasses.replace(estimate.losses, conditioned=INFLUENCE[::-1], conditioned_standard_error=error)
    estimate = dataclasses.replace(estimate, losses=losses, observables={"accuracy": further}, ridge=0.1)
    write_dump(tmp_path, estimate, step=1, epoch=0, train=train, query=query)
    run = open_run(tmp_path)
    table = top(run, 0, by="conditioned")
    assert table.train.tolist() == [5, 2, 1, 4]
    assert table.effect.tolist() == ["helps", "helps", "hurts", "hurts"]
    assert table.value.tolist() == [-3, -1, 5, 2]
    assert table.standard_error.tolist() == [0.5] * 4
    assert top(run, "dog", k=1, by="conditioned", observable="accuracy").train[0] == further.conditioned[:, 1].argmin()
    assert trajectory(run, 5, 0, by="conditioned").value.tolist() == [-3]
    with pytest.raises(ValueError, match="no observable 'margin'; it has 'loss', 'accuracy'"):
        top(run, 0, by="conditioned", observable="margin")


def test_top_by_the_draws_alone_reads_its_sign_as_that_of_influence(tmp_path, parts, rng):
    train, query, estimate = parts
    error = np.full_like(INFLUENCE, 0.5)
    losses = dataclasses.replace(estimate.losses, influence_draws=INFLUENCE[::-1], influence_draws_standard_error=error)
    further = make_influence(rng, 6, 2, name="accuracy", unit="1", columns=("cat", "dog"), drawn=True)
    estimate = dataclasses.replace(estimate, losses=losses, observables={"accuracy": further})
    write_dump(tmp_path, estimate, step=1, epoch=0, train=train, query=query)
    run = open_run(tmp_path)
    table = top(run, 0, by="influence_draws")
    assert table.train.tolist() == [5, 2, 1, 4]
    assert table.effect.tolist() == ["helps", "helps", "hurts", "hurts"]
    assert table.standard_error.tolist() == [0.5] * 4
    assert trajectory(run, 5, 0, by="influence_draws").value.tolist() == [-3]
    least = further.influence_draws[:, 1].argmin()
    assert top(run, "dog", k=1, by="influence_draws", observable="accuracy").train[0] == least
    with pytest.raises(ValueError, match="no observable 'margin'; it has 'loss', 'accuracy'"):
        top(run, 0, by="influence_draws", observable="margin")


def test_top_of_an_observable_says_lowers_and_raises(folder, parts):
    matrix = parts[2].observables["accuracy"].influence
    table = top(open_run(folder), "dog", k=1, observable="accuracy")
    assert table.effect.tolist() == ["lowers", "raises"]
    assert table.train.tolist() == [matrix[:, 1].argmin(), matrix[:, 1].argmax()]
    pd.testing.assert_frame_equal(table, top(open_run(folder), 1, k=1, observable="accuracy"))


def test_top_after_rows_were_selected_keeps_their_numbers_and_texts(folder):
    table = top(open_run(folder).isel(train=[4, 3]), 0)
    assert table.train.tolist() == [3, 4]
    assert table.text.tolist() == ["text 3 日本", "text 4 日本"]


def test_top_without_samples_file(folder):
    (folder / "samples.h5").unlink()
    table = top(open_run(folder), 0, k=1)
    assert "text" not in table
    assert table.label.tolist() == ["0", "1"]


def test_top_with_damaged_samples_file(folder):
    run = open_run(folder)
    (folder / "samples.h5").write_bytes(b"x")
    with pytest.warns(SkippedDumpWarning, match="texts and label names are missing"):
        assert "text" not in top(run, 0, k=1)


def test_errors_list_what_is_near(folder):
    run = open_run(folder)
    wrong = {
        "no query is called 'query-e1'; the nearest are 'query-é1'": {"query": "query-e1"},
        "no query has the number 7: there are 2, with the numbers 0 to 1": {"query": 7},
        "no query has the number -1": {"query": -1},
        "no step 120; the nearest are 100, 200": {"step": 120},
        "by is 'bif'; it must be 'influence', 'correlation', 'conditioned' or 'influence_draws'": {"by": "bif"},
        "the run has no conditioned influence.*rank by influence": {"by": "conditioned"},
        "the run has no influence_draws.*rank by influence": {"by": "influence_draws"},
        "no observable 'margin'; it has 'loss', 'accuracy', 'constant'": {"observable": "margin"},
        "k is 0": {"k": 0},
        "NaN for every train example at step 200": {"observable": "constant"},
    }
    run["constant_influence"] = run.accuracy_influence * np.nan
    run["constant_influence_standard_error"] = run.accuracy_influence
    for message, change in wrong.items():
        with pytest.raises(ValueError, match=message):
            top(run, **({"query": 0} | change))
    with pytest.raises(ValueError, match="no train is called"):
        trajectory(run, "nobody", 0)


def test_a_run_without_errors_says_what_is_missing(folder):
    run = open_run(folder).drop_vars("influence_standard_error")
    for ask in (lambda: top(run, 0, by="influence"), lambda: trajectory(run, 0, 0, by="influence")):
        with pytest.raises(ValueError, match=r"influence and no influence_standard_error.*as they were written"):
            ask()


def test_trajectory_has_its_band(folder, parts):
    table = trajectory(open_run(folder), "train-é4", 0, by="influence")
    assert table.step.tolist() == [100, 200]
    assert table.value.tolist() == [2.5, 5]
    error = parts[2].losses.influence_standard_error[4, 0]
    np.testing.assert_allclose(table.high - table.value, [1.96 * error] * 2, rtol=1e-3)
    np.testing.assert_allclose(table.value - table.low, table.high - table.value, rtol=1e-4)


def test_by_label(folder, parts):
    means = by_label(open_run(folder))
    assert dict(means.sizes) == {"step": 2, "train_label": 3, "query_label": 2}
    assert means.train_label_name.values.tolist() == ["cat", "dog", "ünit"]
    np.testing.assert_array_equal(means["mean"].sel(step=200), parts[2].label_means.correlation)
    np.testing.assert_array_equal(
        by_label(open_run(folder), by="influence").standard_error[0], parts[2].label_means.influence_standard_error
    )
    for by in ("conditioned", "influence_draws"):
        with pytest.raises(ValueError, match="exist for influence and correlation"):
            by_label(open_run(folder), by=by)
    chosen = means["mean"].sel(train_label=1, query_label=0, step=100)
    assert chosen.item() == parts[2].label_means.correlation[1, 0]


def test_by_label_without_labels(tmp_path, rng):
    train, query = make_samples("train", 3), make_samples("query", 2)
    write_dump(tmp_path, make_estimate(rng, 3, 2), step=0, epoch=0, train=train, query=query)
    with pytest.raises(ValueError, match=r"no label means.*labels"):
        by_label(open_run(tmp_path))
    assert top(open_run(tmp_path), 0, k=1).label.tolist() == [None, None]
