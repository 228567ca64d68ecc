"""A run is read lazily, dump by dump, and a bad dump hides no other."""

import dataclasses
import os
import pickle
import shutil
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from archive_examples import make_estimate, make_full, make_influence, make_samples
from bif_lightning.archive.read import SkippedDumpWarning, UnreadableFileError, open_run, open_samples
from bif_lightning.archive.write import write_dump, write_samples

pytestmark = pytest.mark.exact

N, Q = 6, 4


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("run")
    train, query = make_samples("train", N), make_samples("query", Q)
    write_samples(path, train, query)
    for step in (0, 10, 20):
        write_dump(path, make_estimate(rng, N, Q), step=step, epoch=step // 10, train=train, query=query)
    return path


@pytest.fixture
def folder(tmp_path, original):
    """Three dumps at steps 0, 10 and 20."""
    return shutil.copytree(original, tmp_path / "run")


def dump(folder: Path, step: int) -> Path:
    return folder / f"step={step:09d}.h5"


@pytest.fixture
def opened(monkeypatch):
    """Names of the files that h5py opens."""
    names: list[str] = []
    original = h5py.File.__init__

    def counting(self, name, *arguments, **settings):
        if isinstance(name, Path):
            names.append(name.name)
        original(self, name, *arguments, **settings)

    monkeypatch.setattr(h5py.File, "__init__", counting)
    return names


def test_one_step_of_24_reads_one_file(tmp_path, rng, opened):
    train, query = make_samples("train", N), make_samples("query", Q)
    estimates = [make_estimate(rng, N, Q) for _ in range(24)]
    for step, estimate in enumerate(estimates):
        write_dump(tmp_path, estimate, step=step, epoch=0, train=train, query=query)
    run = open_run(tmp_path)
    opened.clear()
    chosen = run.correlation.sel(step=17, query=2)
    repr(run), repr(chosen)
    assert opened == []
    np.testing.assert_array_equal(chosen.values, estimates[17].correlation[:, 2])
    assert opened == ["step=000000017.h5"]
    opened.clear()
    pair = run.influence.isel(train=3, query=1).values
    assert sorted(opened) == [f"step={step:09d}.h5" for step in range(24)]
    np.testing.assert_array_equal(pair, [estimate.influence[3, 1] for estimate in estimates])


def test_every_way_of_indexing_agrees_with_numpy(folder):
    run = open_run(folder)
    lazy, whole = run.influence, run.influence.values
    for key in (
        (1,),
        (-1, 2),
        (slice(None, None, -1), 0),
        ([2, 0], slice(1, 5, 2)),
        (slice(None), [5, 0, 0], slice(None, None, -2)),
        (0, 3, 2),
        (slice(0, 0),),
        (slice(None), []),
        (slice(None), slice(None), whole[0, 0] > 0),
    ):
        np.testing.assert_array_equal(lazy[key].values, whole[key], err_msg=str(key))
    np.testing.assert_array_equal(lazy[[2, 0], [1, 3], [0, 1]], whole[np.ix_([2, 0], [1, 3], [0, 1])])
    pairs = lazy.isel(train=xr.Variable("pair", [1, 4]), query=xr.Variable("pair", [3, 0]))
    np.testing.assert_array_equal(pairs, whole[:, [1, 4], [3, 0]])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(run)).influence, whole)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_no_file_stays_open(folder):
    run = open_run(folder)
    run.isel(step=0).load()
    targets = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert not [target for target in targets if target.endswith(".h5")]


def test_what_one_dump_lacks_is_nan_there(folder, rng):
    train, query = make_samples("train", N), make_samples("query", Q)
    extra = make_influence(rng, N, 2, name="accuracy", unit="1", columns=("a", "b"))
    other = make_influence(rng, N, 2, name="accuracy", unit="1", columns=("b", "a"))
    with_chains = make_estimate(rng, N, Q, chain_ids=(1, 3), draws=7, observables=(extra,))
    write_dump(folder, with_chains, step=30, epoch=3, train=train, query=query, metrics={"val": 2.0})
    swapped = make_estimate(rng, N, Q, observables=(other,))
    write_dump(folder, swapped, step=15, epoch=1, train=train, query=query)
    run = open_run(folder)
    assert run.step.values.tolist() == [0, 10, 15, 20, 30]
    np.testing.assert_array_equal(run.accuracy_influence.sel(step=30), extra.influence)
    # At step 15 the columns of that name were others, so its numbers are not taken for these.
    assert np.isnan(run.accuracy_influence.sel(step=[0, 10, 15, 20])).all()
    assert run.accuracy_column.values.tolist() == ["a", "b"]
    np.testing.assert_array_equal(run.metrics.sel(metric="val"), [np.nan] * 4 + [2.0])
    assert run.chain.values.tolist() == [0, 1, 3]
    np.testing.assert_array_equal(run.loss_trace.sel(step=30, chain=[1, 3]), with_chains.loss_trace)
    assert np.isnan(run.loss_trace.sel(step=30, chain=0)).all()
    assert np.isnan(run.loss_trace.sel(step=0, draw=slice(5, None))).all()
    assert np.isfinite(run.loss_trace.sel(step=0, chain=[0, 1], draw=slice(0, 4))).all()


def test_single_dump(folder):
    run = open_run(dump(folder, 10))
    assert run.step.values.tolist() == [10]
    assert run.attrs["directory"] == str(folder)


def test_nothing_to_open(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "version_0" / "bif")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"version_0 has no dumps.*version_0/bif: open one of these"):
        open_run(tmp_path / "version_0")
    with pytest.raises(FileNotFoundError, match="has a snapshot been taken"):
        open_run(empty)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"samples\.h5 does not exist"):
        open_samples(empty)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace_by_text(path: Path) -> None:
    path.write_text("not HDF5")


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def change(action):
    def apply(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            action(file)

    return apply


def relink(name: str, link):
    def apply(path: Path) -> None:
        with h5py.File(path.with_name("outside.h5"), "w") as outside:
            outside["secret"] = np.full((N, Q), 42.0, np.float32)
            (path.with_name("raw")).write_bytes(bytes(4 * N * Q))
        with h5py.File(path, "r+") as file:
            del file[name]
            link(file, name)

    return apply


def external_storage(file, name):
    external = [(str(Path(file.filename).with_name("raw")), 0, 4 * N * Q)]
    file.create_dataset(name, (N, Q), "f4", external=external)


def virtual(file, name):
    layout = h5py.VirtualLayout((N, Q), "f4")
    layout[...] = h5py.VirtualSource(str(Path(file.filename).with_name("outside.h5")), "secret", (N, Q))
    file.create_virtual_dataset(name, layout)


def huge(file, name):
    for side in ("train", "query"):
        del file[side]
        file.create_dataset(side, (10**7,), "i8", chunks=(1000,))
    file.create_dataset(name, (10**7, 10**7), "f4", chunks=(256, 256))


def misshapen(file, name):
    file[name] = np.zeros((N, Q + 1), np.float32)


BROKEN = {
    "truncated": (truncate, "not a whole HDF5 file"),
    "foreign": (replace_by_text, "not a whole HDF5 file"),
    "pipe": (replace_by_pipe, "not a regular file"),
    "other schema": (change(lambda file: file.attrs.modify("schema", "x")), "not a bif-lightning-dump file"),
    "no schema": (change(lambda file: file.attrs.pop("schema")), "its schema is None"),
    "later version": (
        change(lambda file: file.attrs.update({"schema_version": "2.0", "creator": "bif_lightning 9.1"})),
        r"written by bif_lightning 9\.1 \(schema 2\.0\); this reader knows 1\.x: upgrade",
    ),
    "no version": (change(lambda file: file.attrs.modify("schema_version", "x")), "is not a number"),
    "no step": (change(lambda file: file.attrs.pop("global_step")), "lacks the attribute global_step"),
    "no matrix": (change(lambda file: file.pop("correlation")), "its correlation has shape None"),
    "no ids": (change(lambda file: file.pop("train")), "has no train"),
    "bad json": (change(lambda file: file["settings_json"].parent.__setitem__("notes_json", "[")), "damaged"),
    "external link": (
        relink("chains/loss", lambda file, name: file.__setitem__(name, h5py.ExternalLink("outside.h5", "/secret"))),
        "link to elsewhere",
    ),
    "soft link": (
        relink("chains/loss", lambda file, name: file.__setitem__(name, h5py.SoftLink("/influence"))),
        "link to elsewhere",
    ),
    "huge": (relink("correlation", huge), "declares"),
    "shape": (relink("influence", misshapen), "its influence has shape"),
    "other samples": (change(lambda file: file.attrs.modify("samples_sha256", "0" * 64)), "it has other examples"),
    "other step": (change(lambda file: file.attrs.modify("global_step", 0)), "it holds step 0"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_bad_dump_is_named_and_hides_no_other(folder, kind):
    spoil, message = BROKEN[kind]
    whole = open_run(folder).influence.values
    spoil(dump(folder, 10))
    with pytest.warns(SkippedDumpWarning, match=message) as caught:
        run = open_run(folder)
    assert len(caught) == 1
    assert dump(folder, 10).name in str(caught[0].message)
    assert run.step.values.tolist() == [0, 20]
    np.testing.assert_array_equal(run.influence, whole[[0, 2]])


@pytest.mark.parametrize("name", ["influence", "correlation"])
@pytest.mark.parametrize("link", [external_storage, virtual])
def test_data_of_other_files_is_never_read(folder, name, link):
    relink(name, link)(dump(folder, 10))
    run = open_run(folder)
    with pytest.warns(SkippedDumpWarning, match="lies in another file"):
        values = run[name].values
    assert np.isnan(values[1]).all()
    assert np.isfinite(values[0, 0, 0])


def test_none_readable(folder):
    for step in (0, 10, 20):
        truncate(dump(folder, step))
    with (
        pytest.warns(SkippedDumpWarning),
        pytest.raises(UnreadableFileError, match="none of the 3 dumps"),
    ):
        open_run(folder)


def test_a_flipped_bit_is_seen_and_hides_no_other_step(folder):
    path = dump(folder, 10)
    whole = open_run(folder).influence.values
    with h5py.File(path) as file:
        offset = file["influence"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[offset + 20] ^= 4
    path.write_bytes(data)
    run = open_run(folder)
    with pytest.warns(SkippedDumpWarning, match="its influence is NaN here"):
        values = run.influence.values
    assert np.isnan(values[1]).all()
    np.testing.assert_array_equal(values[[0, 2]], whole[[0, 2]])


def test_damaged_samples_are_refused_and_leave_the_run_readable(folder):
    path = folder / "samples.h5"
    with h5py.File(path, "r+") as file:
        file["train/index"][0] = 99
    with pytest.raises(UnreadableFileError, match="does not match its digest"):
        open_samples(folder)
    truncate(path)
    with pytest.warns(SkippedDumpWarning, match=r"samples\.h5"):
        assert open_run(folder).sizes["step"] == 3


def test_unfinished_and_unknown_names_are_not_seen(folder):
    whole = dump(folder, 0).read_bytes()
    for name in (".step=000000005.h5.host.1.00000000.00000000.tmp", "step=5.h5", "step=000000005.h5.bak", "notes.txt"):
        (folder / name).write_bytes(whole[:100])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_run(folder).step.values.tolist() == [0, 10, 20]


def test_unknown_names_of_a_later_minor_version_are_ignored(folder):
    def extend(file):
        file.attrs["schema_version"] = "1.7"
        file.attrs["new"] = 1
        file["new_matrix"] = np.ones((3, 3))
        file.create_group("new_group")["x"] = 1
        file["labels/new"] = np.ones(2)

    change(extend)(dump(folder, 20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = open_run(folder)
    assert run.sizes["step"] == 3
    assert "new_matrix" not in run


def test_a_dump_written_later_is_seen_on_reopening_and_a_lost_one_is_nan(folder, rng):
    run = open_run(folder)
    train, query = make_samples("train", N), make_samples("query", Q)
    estimate = make_estimate(rng, N, Q)
    write_dump(folder, estimate, step=30, epoch=3, train=train, query=query)
    assert open_run(folder).sizes["step"] == 4
    dump(folder, 0).unlink()
    with pytest.warns(SkippedDumpWarning, match=r"step=000000000\.h5 cannot be read"):
        assert np.isnan(run.influence.sel(step=0)).all()
    replaced = dataclasses.replace(estimate)
    write_dump(folder, replaced, step=10, epoch=3, train=train, query=query)
    np.testing.assert_array_equal(run.influence.sel(step=10), replaced.influence)


def test_traces_and_overview_stay_out_of_the_run(tmp_path, rng):
    train, query, estimate = make_full(rng)
    write_dump(tmp_path, estimate, step=0, epoch=0, train=train, query=query)
    run = open_run(tmp_path)
    assert not {"block", "train_loss_trace"} & set(run.variables)


def test_a_dump_that_xarray_holds_open_is_read_all_the_same(tmp_path):
    train, query = make_samples("a", 4), make_samples("b", 3)
    path = write_dump(
        tmp_path, make_estimate(np.random.default_rng(0), 4, 3), step=1, epoch=0, train=train, query=query
    )
    with xr.open_dataset(path, engine="h5netcdf") as held, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_run(tmp_path).influence.values.shape == (1, *held.influence.shape)
