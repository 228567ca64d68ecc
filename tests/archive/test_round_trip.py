"""What was written is read back: every number, every name."""

import dataclasses
import json
import subprocess
import sys
import tempfile
import warnings

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from archive_examples import make_estimate, make_full, make_influence, make_samples
from bif_lightning.archive.read import open_run, open_samples
from bif_lightning.archive.schema import round_to_10_bits
from bif_lightning.archive.write import write_dump, write_samples
from bif_lightning.archive.write.provenance import provenance, without_secrets
from bif_lightning.config import ControlledSGLD, Pairs, Sampler, Subspace
from bif_lightning.results.examples import Samples
from bif_lightning.sampling.choice import judge

pytestmark = pytest.mark.exact


def same_samples(a: Samples, b: Samples) -> bool:
    def same(x: object, y: object) -> bool:
        if isinstance(x, dict) and isinstance(y, dict):
            return x.keys() == y.keys() and all(same(x[name], y[name]) for name in x)
        if isinstance(x, tuple) and isinstance(y, tuple):
            return len(x) == len(y) and all(same(*pair) for pair in zip(x, y, strict=True))
        if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
            return x.dtype == y.dtype and np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        return x == y

    return all(same(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def test_every_part_comes_back(tmp_path, rng):
    train, query, estimate = make_full(rng)
    write_samples(tmp_path, train, query)
    path = write_dump(
        tmp_path,
        estimate,
        step=6000,
        epoch=3,
        train=train,
        query=query,
        metrics={"val/loss": 0.5, "train_loss": 1},
        hyperparameters={"lr": 0.1, "nested": {"path": tmp_path, "nan": float("nan")}},
        provenance=provenance(),
    )
    assert path.name == "step=000006000.h5"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["samples.h5", path.name]
    run = open_run(tmp_path)
    for prefix, influence in {"": estimate.losses, "accuracy_": estimate.observables["accuracy"]}.items():
        for name in ("influence", "correlation", "conditioned", "influence_draws"):
            for part in (name, f"{name}_standard_error"):
                np.testing.assert_array_equal(run[prefix + part].sel(step=6000), getattr(influence, part))
    assert (run.ridge.item(), run.effective_dimension.item()) == (estimate.ridge, estimate.effective_dimension)
    np.testing.assert_array_equal(run.top_stability[0], estimate.top_stability)
    assert run.verdict.item() == "diverged"
    assert run.verdict_reason.item() == str(judge(estimate))
    assert run.conditioned.attrs["sign"].startswith("conditioned influence = ")
    assert run.influence_draws.attrs["sign"].startswith("influence = -Cov")
    assert run.margin_influence_draws.attrs["units"] == "nat m"
    assert run.margin_influence.dims == ("step", "train", "query")
    assert run.accuracy_influence.sel(accuracy_column="dog").dims == ("step", "train")
    np.testing.assert_array_equal(run.accuracy_mean[0], estimate.observables["accuracy"].mean)
    np.testing.assert_array_equal(run.train_loss[0], estimate.train_loss)
    np.testing.assert_array_equal(run.query_std[0], estimate.losses.std)
    np.testing.assert_array_equal(run.label_influence[0], estimate.label_means.influence)
    np.testing.assert_array_equal(run.loss_trace[0], estimate.loss_trace)
    np.testing.assert_array_equal(run.distance_trace[0], estimate.distance_trace)
    assert run.chain.values.tolist() == [0, 2]
    for name, value in (vars(estimate.diagnostics) | vars(estimate.cost)).items():
        np.testing.assert_equal(run[name].values.tolist(), [value])
    assert run.metrics.sel(metric="val/loss", step=6000) == 0.5
    assert run.metrics.sel(metric="train_loss", step=6000) == 1
    assert (run.num_chains.item(), run.num_divergences.item()) == (2, 1)
    assert (run.divergences.item(), run.notes.item()) == ("chain 1 left", "a note")
    assert run.train_id.values.tolist() == list(train.ids)
    assert run.query_index.values.tolist() == query.index.tolist()
    assert run.train_label.values.tolist() == train.labels.tolist()
    assert json.loads(run.settings_json.item())["sampler"]["step_size"] == 1e-4
    assert run.epoch.item() == 3
    assert run.correlation.attrs["sign"].startswith("correlation = +Corr")
    for written, read in zip((train, query), open_samples(tmp_path), strict=True):
        assert same_samples(written, read)


@pytest.mark.parametrize(
    "sampler",
    [Pairs(), Subspace(localization=2.0), ControlledSGLD(alpha=0.5)],
    ids=lambda sampler: type(sampler).__name__,
)
def test_the_kind_of_the_sampler_is_told(tmp_path, rng, sampler: Sampler):
    train, query = make_samples("train", 5), make_samples("query", 3)
    estimate = dataclasses.replace(make_estimate(rng, 5, 3), sampler=sampler)
    write_dump(tmp_path, estimate, step=0, epoch=0, train=train, query=query)
    told = json.loads(open_run(tmp_path).settings_json.item())["sampler"]
    assert told == {"kind": type(sampler).__name__} | dataclasses.asdict(sampler)


def test_steps_without_a_matrix_that_others_have_are_nan(tmp_path, rng):
    train, query = make_samples("train", 5), make_samples("query", 3)
    for step, there in enumerate((True, False)):
        estimate = make_estimate(rng, 5, 3, conditioned=there, drawn=there)
        write_dump(tmp_path, estimate, step=step, epoch=0, train=train, query=query)
    run = open_run(tmp_path)
    for name in ("conditioned", "influence_draws", "influence_draws_standard_error"):
        assert np.isfinite(run[name].values).all(axis=(1, 2)).tolist() == [True, False]
    assert "influence_draws" not in open_run(tmp_path / "step=000000001.h5")
    np.testing.assert_array_equal(run.ridge, [0.125, np.nan])
    assert "effective_dimension" not in run


def test_records_and_traces_are_plain_hdf5(tmp_path, rng):
    train, query, estimate = make_full(rng)
    path = write_dump(tmp_path, estimate, step=1, epoch=0, train=train, query=query, hyperparameters={"lr": 0.1})
    with h5py.File(path) as file:
        assert json.loads(file["hyperparameters_json"].asstr()[()]) == {"lr": 0.1}
        assert json.loads(file["notes_json"].asstr()[()]) == ["a note"]
        assert "provenance_json" not in file
        np.testing.assert_array_equal(file["traces/train_loss"], estimate.traces.train)
        np.testing.assert_array_equal(file["traces/loss"], estimate.traces.columns["loss"])
        np.testing.assert_array_equal(file["traces/accuracy"], estimate.traces.columns["accuracy"])
        expected = 10.0 * (estimate.loss_trace.mean(axis=1) - 0.25)
        np.testing.assert_allclose(file["chains/chain_llc"], expected)
        assert file["divergences/loss"][0] == np.inf
        assert file["plot/correlation"] == file["correlation"]
        assert file[file.attrs["default"]].attrs["signal"] == "correlation"
        for name in ("influence", "correlation", "traces/loss", "train_loss"):
            assert file[name].fletcher32, name


def test_opens_in_xarray_without_this_package_or_a_warning(tmp_path, rng):
    train, query, estimate = make_full(rng)
    write_samples(tmp_path, train, query)
    path = write_dump(tmp_path, estimate, step=1, epoch=0, train=train, query=query)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xr.open_dataset(path) as dump:
            assert dump.correlation.dims == ("train", "query")
            assert dump.correlation.sel(train=2).train_id == train.ids[2]
            np.testing.assert_array_equal(dump.influence, estimate.influence)
        with xr.open_datatree(path) as tree:
            groups = ("plot", "chains", "labels", "overview", "traces", "divergences", "cost", "metrics", "tokens")
            assert set(tree.children) == set(groups) - {"metrics"}
            assert tree["traces/train_loss"].dims == ("chain", "draw", "train")
            np.testing.assert_array_equal(tree["plot/correlation"], estimate.correlation)
        for side in ("train", "query"):
            with xr.open_dataset(tmp_path / "samples.h5", group=side) as samples:
                assert samples.text.dims == (side,)


@hypothesis_settings(max_examples=8, deadline=None)
@given(
    data=st.data(),
    n=st.integers(1, 9),
    q=st.integers(1, 9),
)
def test_any_names_and_numbers(data, n, q):
    rng = np.random.default_rng(0)
    plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
    numbers = hnp.arrays(np.float32, (n, q), elements=st.floats(width=32, allow_nan=True, allow_infinity=True))
    estimate = make_estimate(rng, n, q)
    matrix = data.draw(numbers)
    matrix[0, 0] = 1
    losses = dataclasses.replace(estimate.losses, influence=matrix, correlation=-matrix)
    estimate = dataclasses.replace(estimate, losses=losses)
    train, query = (
        Samples(
            ids=tuple(data.draw(st.lists(plain, min_size=size, max_size=size, unique=True))),
            index=np.array(data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=size, max_size=size))),
            texts=tuple(data.draw(st.lists(plain, min_size=size, max_size=size))),
            thumbnails=(b"x", *data.draw(st.lists(st.binary(max_size=9), min_size=size - 1, max_size=size - 1))),
        )
        for size in (n, q)
    )
    with tempfile.TemporaryDirectory() as folder:
        write_samples(folder, train, query)
        write_dump(folder, estimate, step=0, epoch=0, train=train, query=query)
        run = open_run(folder)
        np.testing.assert_array_equal(run.influence[0], matrix)
        np.testing.assert_array_equal(run.correlation[0], -matrix)
        assert run.train_id.values.tolist() == list(train.ids)
        for written, read in zip((train, query), open_samples(folder), strict=True):
            assert same_samples(written, read)


def test_texts_that_hdf5_cannot_hold_are_marked(tmp_path):
    odd = Samples(ids=("a",), index=np.array([0]), texts=("nul \0, surrogate \ud800",))
    write_samples(tmp_path, odd, odd)
    assert open_samples(tmp_path)[0].texts == ("nul \u2400, surrogate ?",)
    bad = Samples(ids=("a\0",), index=np.array([0]))
    with pytest.raises(ValueError, match="NUL or a lone surrogate"):
        write_samples(tmp_path / "other", bad, odd)


def test_samples_are_kept_or_refused(tmp_path):
    train, query = make_samples("train", 5, classes=("a", "b")), make_samples("query", 3)
    path = write_samples(tmp_path, train, query)
    before = path.stat()
    assert write_samples(tmp_path, train, query) == path
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino
    other_ids = dataclasses.replace(train, ids=("new", *train.ids[1:]))
    relabelled = dataclasses.replace(train, labels=1 - train.labels)
    with pytest.raises(ValueError, match=r"5 train examples, this run has 6.*choose another dirpath"):
        write_samples(tmp_path, make_samples("train", 6), query)
    with pytest.raises(ValueError, match=r"train example 0 is 'train-é0' there and 'new' here"):
        write_samples(tmp_path, other_ids, query)
    with pytest.raises(ValueError, match="an index, label, label name or text differs"):
        write_samples(tmp_path, relabelled, query)
    assert same_samples(open_samples(tmp_path)[0], train)


def test_same_step_is_replaced_whole(tmp_path, rng):
    train, query = make_samples("train", 5), make_samples("query", 3)
    first, second = make_estimate(rng, 5, 3), make_estimate(rng, 5, 3)
    for estimate in (first, second):
        write_dump(tmp_path, estimate, step=7, epoch=0, train=train, query=query)
    run = open_run(tmp_path)
    assert run.step.values.tolist() == [7]
    np.testing.assert_array_equal(run.influence[0], second.influence)


def test_refuses_what_is_no_result(tmp_path, rng):
    train, query = make_samples("train", 5), make_samples("query", 3)
    estimate = make_estimate(rng, 5, 3)
    nan = dataclasses.replace(estimate.losses, correlation=np.full((5, 3), np.nan, np.float32))
    wrong = {
        "NaN in all 5 x 3": {"losses": nan},
        r"loss_trace has shape \(2, 5\)": {"chain_ids": (0,)},
        r"x\.influence has shape \(6, 3\)": {"observables": {"x": make_influence(rng, 6, 3, name="x")}},
    }

    def write(estimate, **changes):
        arguments = {"step": 0, "epoch": 0, "train": train, "query": query} | changes
        write_dump(tmp_path, estimate, **arguments)

    for message, change in wrong.items():
        with pytest.raises(ValueError, match=message):
            write(dataclasses.replace(estimate, **change))
    with pytest.raises(ValueError, match="5 train x 3 query examples, but the samples describe 5 x 4"):
        write(estimate, query=make_samples("query", 4))
    with pytest.raises(ValueError, match="a global step is 0 or above"):
        write(estimate, step=-1)
    with pytest.raises(ValueError, match="'full' or '10bit'"):
        write(estimate, precision="f2")
    for name in ("loss", "a/b", "..", "label"):
        with pytest.raises(ValueError, match="an observable is called"):
            write(make_estimate(rng, 5, 3, observables=(make_influence(rng, 5, 3, name=name),)))
    with pytest.raises(ValueError, match=r"two datasets .*'train_std'"):
        write(make_estimate(rng, 5, 3, observables=(make_influence(rng, 5, 3, name="train"),)))
    assert not list(tmp_path.iterdir())


def test_an_observable_that_never_varied_is_written(tmp_path, rng):
    train, query = make_samples("train", 5), make_samples("query", 3)
    constant = dataclasses.replace(
        make_influence(rng, 5, 1, name="accuracy", unit="1", columns=("all",)),
        correlation=np.full((5, 1), np.nan, np.float32),
    )
    write_dump(tmp_path, make_estimate(rng, 5, 3, observables=(constant,)), step=0, epoch=0, train=train, query=query)
    assert np.isnan(open_run(tmp_path).accuracy_correlation.values).all()


def test_10bit_shrinks_the_file_and_stays_float32(tmp_path, rng):
    n, q = 300, 200
    train, query, estimate = make_samples("train", n), make_samples("query", q), make_estimate(rng, n, q)
    full = write_dump(tmp_path, estimate, step=0, epoch=0, train=train, query=query)
    short = write_dump(tmp_path, estimate, step=1, epoch=0, train=train, query=query, precision="10bit")
    assert short.stat().st_size < 0.7 * full.stat().st_size
    run = open_run(tmp_path)
    assert run.influence.dtype == np.float32
    assert run.isel(step=1).train_loss.values.tolist() == estimate.train_loss.tolist()
    np.testing.assert_array_equal(run.influence[1], round_to_10_bits(estimate.influence))
    np.testing.assert_allclose(run.influence[1], estimate.influence, rtol=2.0**-11)
    assert not np.array_equal(run.influence[1], estimate.influence)
    assert xr.open_dataset(short).attrs["precision"] == "10bit"


def test_ties_round_to_even():
    kept = np.arange(-8, 8, dtype=np.float32) / 1024 + 1.5
    ties = (kept.view(np.uint32) | np.uint32(0x1000)).view(np.float32)
    units = np.rint(ties.astype(np.float64) * 1024)
    np.testing.assert_array_equal(round_to_10_bits(ties), units / 1024)


@given(hnp.arrays(np.float32, 20, elements=st.floats(width=32)))
def test_rounding_is_to_nearest_even_with_10_bits(values):
    rounded = round_to_10_bits(values)
    finite = np.isfinite(values)
    np.testing.assert_array_equal(rounded[~finite], values[~finite])
    assert np.isfinite(rounded[finite]).all()
    assert not (rounded[finite].view(np.uint32) & 0x1FFF).any()
    # In units of the last kept bit the mantissa is a whole number; NumPy rounds it to even on ties.
    ordinary = finite & (abs(values) > 2.0**-126) & (abs(values) < 2.0**127)
    mantissa, exponent = np.frexp(values[ordinary].astype(np.float64))
    np.testing.assert_array_equal(rounded[ordinary], np.ldexp(np.rint(mantissa * 2.0**11), exponent - 11))


def test_reading_imports_neither_torch_nor_lightning():
    code = (
        "import sys, bif_lightning.archive.read, bif_lightning.archive.write, bif_lightning.archive.write.provenance;"
    )
    code += "found = {'torch', 'lightning', 'matplotlib', 'tensorboard'} & set(sys.modules); sys.exit(found or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_provenance_names_versions_and_hides_secrets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fit.py", "--api-key", "abc", "--lr=1", "AWS_SECRET_ACCESS_KEY=abc"])
    outside = provenance()
    assert outside["git_commit"] is None
    assert outside["versions"]["numpy"] == np.__version__
    assert outside["command"] == ["fit.py", "--api-key", "***", "--lr=1", "AWS_SECRET_ACCESS_KEY=***"]
    assert without_secrets(["--token", "--verbose"]) == ["--token", "--verbose"]
    commands = ["init", "-q"], ["add", "a"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "m"]
    (tmp_path / "a").write_text("1")
    for command in commands:
        subprocess.run(["git", *command], check=True)
    clean = provenance()
    (tmp_path / "a").write_text("2")
    assert len(clean["git_commit"]) == 40
    assert (clean["git_dirty"], provenance()["git_dirty"]) == (False, True)
    monkeypatch.setenv("PATH", "")
    assert provenance()["git_commit"] is None
