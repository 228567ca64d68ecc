"""Influence over the whole training of a run: from its dumps, from parts of it, and as what `top` ranks by."""

import numpy as np
import pytest

from bif_lightning.archive.read import SkippedDumpWarning, integrated, open_run, over_training, top
from bif_lightning.archive.write import write_integrated
from training_dumps import QUERIES, STEPS, N, make_estimates, write_training

pytestmark = pytest.mark.exact


@pytest.fixture
def estimates(rng):
    return make_estimates(rng)


def write(folder, estimates):
    return open_run(write_training(folder, estimates))


@pytest.fixture
def run(tmp_path, estimates):
    return write(tmp_path / "bif", estimates)


def test_it_is_the_sum_of_scaled_snapshots(run, estimates):
    found = integrated(run)
    expected = np.zeros((N, QUERIES))
    errors = np.zeros((N, QUERIES))
    for step, estimate in estimates.items():
        for query in range(QUERIES):
            if (step, query) != (30, 1):
                column = estimate.losses.influence[:, query].astype(np.float64)
                expected[:, query] += column / column.std()
                errors[:, query] += estimate.losses.influence_standard_error[:, query].astype(np.float64) / column.std()
    np.testing.assert_allclose(found.integrated, expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.standard_error, errors, rtol=0, atol=1e-9)
    assert found.integrated.dims == ("train", "query")
    assert found.train_id.values.tolist() == run.train_id.values.tolist()
    assert found.snapshots.values.tolist() == [5, 4, 5]
    assert found.attrs["steps"] == list(STEPS)
    (note,) = found.attrs["notes"]
    assert note.startswith("step 30 is left out of query 1: ")
    assert "negative = the train example helps" in found.integrated.attrs["sign"]


def test_parts_of_a_training_add_up(run):
    whole, early, late = integrated(run), integrated(run, before=30), integrated(run, since=30)
    np.testing.assert_array_equal(early.integrated + late.integrated, whole.integrated)
    assert (early.attrs["steps"], late.attrs["steps"]) == ([10, 20], [30, 300, 500])


@pytest.mark.parametrize(
    ("part", "steps"),
    [
        ({"steps": [300, 10]}, [10, 300]),
        ({"steps": slice(20, 300)}, [20, 30, 300]),
        ({"epochs": 0}, [10, 20, 30]),
        ({"epochs": slice(1, 4)}, [300]),
        ({"epochs": [3, 5], "since": 301}, [500]),
    ],
)
def test_which_snapshots_a_part_holds(run, part, steps):
    assert integrated(run, **part).attrs["steps"] == steps


def test_stability_compares_every_second_snapshot_with_the_others(run):
    one, other = (integrated(run, steps=steps).integrated for steps in ([10, 30, 500], [20, 300]))
    found = integrated(run).rank_agreement
    for query in (0, 2):
        ranks = [each[:, query].values.argsort().argsort() for each in (one, other)]
        assert float(found[query]) == pytest.approx(np.corrcoef(ranks)[0, 1])


def test_neither_the_order_of_the_dumps_nor_the_blocks_of_columns_change_a_bit(run, tmp_path, estimates, monkeypatch):
    whole = integrated(run)
    backwards = write(tmp_path / "backwards", dict(reversed(estimates.items())))
    monkeypatch.setattr(over_training, "_CELLS", N)  # a column at a time
    for name, values in integrated(backwards).data_vars.items():
        np.testing.assert_array_equal(values, whole[name])


def test_weights_that_stood_still_count_once(tmp_path, estimates):
    once = {step: estimates[step] for step in (10, 20)}
    still = dict.fromkeys((10, 11, 12), estimates[10]) | {20: estimates[20]}
    found, expected = (integrated(write(tmp_path / name, of)) for name, of in (("still", still), ("once", once)))
    np.testing.assert_array_equal(found.integrated, expected.integrated)
    assert found.snapshots.values.tolist() == [2, 2, 2]


PARTS = {
    "all": lambda run: run,
    "some queries": lambda run: run.isel(query=[2, 0]),
    "one query": lambda run: run.isel(query=[1]),
    "train examples": lambda run: run.isel(train=slice(3, None)),
    "train examples in another order": lambda run: run.isel(train=slice(None, None, -1)),
    "later steps": lambda run: run.isel(step=slice(1, None)),
    "steps from the last on": lambda run: run.isel(step=slice(None, None, -1)),
    "other numbers of queries": lambda run: run.isel(query=[2]).assign_coords(query=[0]),
    "loaded": lambda run: run.load(),
    "other values": lambda run: run.assign(influence=run.influence**3),
}


@pytest.mark.parametrize("part", PARTS)
def test_the_file_of_the_sum_changes_no_bit(tmp_path, estimates, part, monkeypatch):
    """Where it is used, whether all dumps or the first of them are in it; and where it must not be."""
    folder = write_training(tmp_path / "bif", estimates)
    expected = integrated(PARTS[part](open_run(folder)))
    monkeypatch.setattr(over_training, "_CELLS", N)  # a column at a time
    write_integrated(folder)
    for _ in range(2):
        found = integrated(PARTS[part](open_run(folder)))
        for name, values in found.variables.items():
            np.testing.assert_array_equal(values, expected[name])
        assert found.attrs == expected.attrs
        for step in STEPS[3:]:  # now the file is of the first three
            (folder / f"step={step:09d}.h5").unlink(missing_ok=True)
        (folder / "integrated.h5").unlink(missing_ok=True)
        write_integrated(folder)
        write_training(folder, {step: estimates[step] for step in STEPS[3:]})


def test_what_the_file_holds_is_not_read_from_the_dumps(tmp_path, estimates, monkeypatch):
    folder = write_training(tmp_path / "bif", {step: estimates[step] for step in STEPS[:4]})
    write_integrated(folder)
    run, read = write(folder, {500: estimates[500]}), list[int]()
    pushed = over_training.IntegratedInfluence.push

    def push(self, step, *matrices):
        read.append(step)
        return pushed(self, step, *matrices)

    monkeypatch.setattr(over_training.IntegratedInfluence, "push", push)
    integrated(run)
    assert read == [500]
    integrated(run, before=30)
    assert read == [500, 10, 20]


def test_of_an_observable_and_of_the_correlation(run):
    assert integrated(run, observable="accuracy").integrated.dims == ("train", "accuracy_column")
    found = integrated(run, by="correlation")
    assert "positive" in found.integrated.attrs["sign"]
    assert np.isnan(found.integrated[-1, -1]), "one snapshot does not know this entry"
    assert np.isfinite(found.integrated[:-1]).all()


def test_top_ranks_by_all_snapshots_and_shows_the_last_beside(run, estimates):
    table = top(run, 2, k=2)
    whole = integrated(run).integrated[:, 2].values
    assert table.train.tolist() == [*whole.argsort()[:2], *whole.argsort()[::-1][:2]]
    assert list(table)[-4:] == ["standard_error", "quantity", "snapshot", "snapshot_standard_error"]
    assert set(table.quantity) == {"integrated"}
    np.testing.assert_array_equal(table.snapshot, estimates[500].losses.influence[table.train, 2])
    assert table.attrs["steps"] == list(STEPS)


def test_top_of_fewer_than_five_snapshots_or_of_a_step_ranks_by_one(run):
    for table, step in (
        (top(run.isel(step=[0, 1, 2, 3]), 0), 300),
        (top(run, 0, step=30), 30),
        (top(run, 0, by="influence"), 500),
    ):
        assert set(table.quantity) == {"influence"}
        assert table.attrs["steps"] == [step]
        assert "snapshot" not in table
    assert set(top(run.isel(step=[0, 1]), 0, by="integrated").quantity) == {"integrated"}


def test_a_dump_that_broke_is_left_out(run, tmp_path):
    (tmp_path / "bif" / "step=000000300.h5").write_bytes(b"not HDF5")
    with pytest.warns(SkippedDumpWarning):
        found = integrated(run)
    assert found.snapshots.values.tolist() == [4, 3, 4]
    assert "step 300 is left out of query 0, 1, 2: " in found.attrs["notes"][1]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda run: integrated(run, before=10), "no snapshot of the run has before 10; its steps are 10, 20"),
        (lambda run: integrated(run, steps=[10, 11]), "the run has no step 11; it has 10, 20, 30"),
        (lambda run: integrated(run, steps=slice(0, 300, 2)), "has a stride"),
        (lambda run: integrated(run.isel(query=1)), r"select with lists: query=\[3\]"),
        (lambda run: integrated(run, by="integrated"), "by is 'integrated'; it must be"),
        (lambda run: top(run, 0, by="integrated", step=10), "leave one of them out"),
    ],
)
def test_what_cannot_be_answered_says_what_to_ask(run, ask, message):
    with pytest.raises(ValueError, match=message):
        ask(run)
