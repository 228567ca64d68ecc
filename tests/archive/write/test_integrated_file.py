"""integrated.h5 grows by each dump, and has the bits of one that is made of all dumps at once."""

import shutil

import h5py
import numpy as np
import pytest

from archive_examples import make_estimate, make_samples
from bif_lightning.archive.read import integrated, open_run
from bif_lightning.archive.write import integrated_file, write_dump, write_integrated
from bif_lightning.storage import scratch
from training_dumps import QUERIES, STEPS, N, make_estimates, write_training

pytestmark = [pytest.mark.exact, pytest.mark.bitwise]


@pytest.fixture
def estimates(rng):
    return make_estimates(rng)


def content(folder):
    """Every number in the file: all but the times of writing."""
    with h5py.File(folder / "integrated.h5") as file:
        return {name: file[name][...] for name in file if name != "created_utc"}


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.fixture
def whole(tmp_path, estimates):
    """What a file holds that is made of all dumps at once."""
    folder = write_training(tmp_path / "whole", estimates)
    assert write_integrated(folder) == folder / "integrated.h5"
    return content(folder)


@pytest.fixture
def pushed(monkeypatch):
    """The steps that are read from dumps, a number each."""
    found: list[int] = []
    matrices = integrated_file._matrices

    def read(dump, part):
        found.append(dump.step)
        return matrices(dump, part)

    monkeypatch.setattr(integrated_file, "_matrices", read)
    return found


def test_it_holds_what_integrated_gives(tmp_path, estimates, whole):
    found = integrated(open_run(write_training(tmp_path / "other", estimates)))
    np.testing.assert_array_equal(whole["integrated"].T, found.integrated)
    np.testing.assert_array_equal(whole["integrated_standard_error"].T, found.standard_error)
    assert whole["status"].sum(0).tolist() == [5, 6, 5], "query 1 has no scale at one step"
    run = open_run(tmp_path / "whole")
    np.testing.assert_array_equal(run.integrated, found.integrated)
    np.testing.assert_array_equal(run.integrated.isel(query=1, train=[5, 2]), found.integrated[[5, 2], 1])
    assert run.integrated[3, 2].item() == found.integrated[3, 2].item()
    np.testing.assert_array_equal(run.integrated_standard_error, found.standard_error)
    assert run.integrated.dims == ("train", "query")
    assert "negative = the train example helps" in run.integrated.attrs["sign"]


def test_growing_by_each_dump_reads_each_once_and_changes_no_bit(tmp_path, estimates, whole, pushed):
    for count, step in enumerate(STEPS):
        folder = write_training(tmp_path / "bif", {step: estimates[step]})
        assert (write_integrated(folder) is None) == (count == 0)
    assert pushed == list(STEPS)
    check_equal(content(folder), whole)
    assert write_integrated(folder) == folder / "integrated.h5"
    assert pushed == list(STEPS), "nothing was to be done"


def test_blocks_of_columns_and_sums_on_disk_change_no_bit(tmp_path, estimates, whole, monkeypatch):
    monkeypatch.setattr(integrated_file, "_CELLS", N)
    monkeypatch.setattr(integrated_file, "MATRIX_BYTES", 0)
    folder = write_training(tmp_path / "bif", {step: estimates[step] for step in STEPS[:3]})
    write_integrated(folder)
    write_training(folder, estimates)
    write_integrated(folder)
    check_equal(content(folder), whole)
    assert not [path.name for path in folder.iterdir() if path.name.startswith(("bif_lightning", "."))]


def test_a_dump_that_is_replaced_or_comes_in_between_is_seen(tmp_path, estimates, whole, pushed):
    folder = write_training(
        tmp_path / "bif", {step: estimates[step] for step in STEPS if step != 20} | {30: estimates[10]}
    )
    write_integrated(folder)
    write_training(folder, {20: estimates[20]})
    assert "integrated" not in open_run(folder)
    write_integrated(folder)
    write_training(folder, {30: estimates[30]})
    assert "integrated" not in open_run(folder)
    write_integrated(folder)
    assert pushed == [10, 30, 300, 500, *STEPS, *STEPS]
    check_equal(content(folder), whole)


def test_weights_that_stood_still_count_once(tmp_path, estimates):
    still = write_training(tmp_path / "still", dict.fromkeys((10, 11, 12), estimates[10]) | {20: estimates[20]})
    once = write_training(tmp_path / "once", {step: estimates[step] for step in (10, 20)})
    for folder in (still, once):
        write_integrated(folder)
    found, expected = content(still), content(once)
    np.testing.assert_array_equal(found["integrated"], expected["integrated"])
    assert found["status"].tolist() == [[1] * QUERIES, [0] * QUERIES, [0] * QUERIES, [1] * QUERIES]


def test_a_column_that_has_no_scale_yet_grows_later(tmp_path, estimates):
    folder = write_training(tmp_path / "bif", dict.fromkeys((30, 31), estimates[30]))
    write_integrated(folder)
    assert np.isnan(content(folder)["integrated"][1]).all()
    write_training(folder, {300: estimates[300]})
    write_integrated(folder)
    expected = integrated(open_run(write_training(tmp_path / "one", {300: estimates[300]}))).integrated
    np.testing.assert_array_equal(content(folder)["integrated"][1], expected[:, 1])


def test_a_dump_that_cannot_be_read_is_left_out(tmp_path, estimates, whole):
    folder = write_training(tmp_path / "bif", estimates | {40: estimates[10], 50: estimates[10]})
    (folder / "step=000000040.h5").write_bytes(b"not HDF5")
    path = folder / "step=000000050.h5"
    with h5py.File(path, "r+") as file:
        del file["influence_standard_error"]
    write_integrated(folder)
    check_equal(content(folder), whole)


def test_dumps_of_other_examples_are_left_out(tmp_path, estimates, whole, rng):
    folder = write_training(tmp_path / "bif", estimates)
    others = {side: make_samples(side, size) for side, size in (("train", N), ("query", QUERIES))}
    write_dump(folder, make_estimate(rng, N, QUERIES), step=40, epoch=0, **others)
    write_integrated(folder)
    check_equal(content(folder), whole)


def test_a_full_disk_leaves_the_older_file(tmp_path, estimates, monkeypatch):
    folder = write_training(tmp_path / "bif", {step: estimates[step] for step in STEPS[:3]})
    before = write_integrated(folder).read_bytes()
    write_training(folder, estimates)
    monkeypatch.setattr(integrated_file, "MATRIX_BYTES", 0)
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(OSError, match="the sums over the whole training need"):
        write_integrated(folder)
    assert (folder / "integrated.h5").read_bytes() == before


def test_a_place_that_is_no_local_folder_is_refused():
    with pytest.raises(ValueError, match="s3://bucket/run, which is no place of this machine"):
        write_integrated("s3://bucket/run")
