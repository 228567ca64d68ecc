"""integrated.h5 is used only while its snapshots are those of the dumps, and harms no reader."""

import json
import os

import h5py
import numpy as np
import pytest

from bif_lightning.archive.read import SkippedDumpWarning, integrated, open_run
from bif_lightning.archive.read.integrated_file import dumps_of_run, open_integrated, read_sum
from bif_lightning.archive.write import write_integrated
from bif_lightning.exceptions import UnreadableFileError
from mutated_dumps import mutate
from training_dumps import QUERIES, STEPS, make_estimates, write_training

pytestmark = pytest.mark.crash


@pytest.fixture
def folder(tmp_path, rng):
    made = write_training(tmp_path / "bif", make_estimates(rng))
    write_integrated(made)
    return made


def edit(folder, change):
    with h5py.File(folder / "integrated.h5", "r+") as file:
        change(file)


def of_other_times(file):
    del file["created_utc"]
    file["created_utc"] = ["2026-01-01T00:00:00.000000+00:00"] * len(STEPS)


def of_other_examples(file):
    file.attrs["samples_sha256"] = "0" * 64


def of_another_version(file):
    file.attrs["schema_version"] = "2.0"


def of_other_steps(file):
    file["step"][...] = [10, 20, 30, 300, 501]


def unsorted(file):
    file["step"][...] = [20, 10, 30, 300, 500]


def negative(file):
    file["step"][...] = [-10, 20, 30, 300, 500]


def other_shape(file):
    del file["squares"]
    file["squares"] = np.zeros((QUERIES, 2))


def linked(file):
    del file["integrated"]
    file["integrated"] = h5py.SoftLink("/squares")


def inflated(file):
    for name in ("integrated", "integrated_standard_error", "squares", "every_second"):
        del file[name]
        file.create_dataset(name, (QUERIES, 10**9), "f8", chunks=(1, 65536), compression="gzip")


def texts(file):
    del file["status"]
    file["status"] = [["1"] * QUERIES] * len(STEPS)


CHANGES = (
    of_other_times, of_other_examples, of_another_version, of_other_steps, unsorted, negative, other_shape, linked,
    inflated,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_file_that_is_not_of_these_dumps_is_not_used(folder, change):
    expected = integrated(open_run(folder))
    edit(folder, change)
    run = open_run(folder)
    assert "integrated" not in run
    np.testing.assert_array_equal(integrated(run).integrated, expected.integrated)


def test_texts_in_place_of_numbers_are_refused(folder):
    expected = integrated(open_run(folder))
    edit(folder, texts)
    np.testing.assert_array_equal(integrated(open_run(folder)).integrated, expected.integrated)


def test_what_is_no_file_is_no_file(folder):
    (folder / "integrated.h5").unlink()
    assert open_integrated(folder) is None
    os.mkfifo(folder / "integrated.h5")
    assert open_integrated(folder) is None
    assert "integrated" not in open_run(folder)


def test_a_file_that_is_replaced_after_the_run_was_opened_is_noticed(folder, rng):
    run, known = open_run(folder), open_integrated(folder)
    write_training(folder, {600: make_estimates(rng)[10]})
    write_integrated(folder)
    with pytest.warns(SkippedDumpWarning, match="replaced by one of other snapshots"):
        assert np.isnan(run.integrated).all()
    with pytest.raises(UnreadableFileError, match="replaced by one of other snapshots"):
        read_sum(known, np.arange(2))
    assert integrated(run).attrs["steps"] == list(STEPS)
    assert open_integrated(folder).begins(dumps_of_run(folder))


def test_damaged_files_are_refused_or_read_as_they_were(folder, rng):
    """Flipped bits, missing ends, changed structure: a checksum or the stamps notice, and the dumps are summed."""
    run = open_run(folder)
    expected, whole = integrated(run), (folder / "integrated.h5").read_bytes()
    for _ in range(60):
        checked = mutate(whole, folder / "integrated.h5", rng)
        found = integrated(run)
        if checked:
            np.testing.assert_array_equal(found.integrated, expected.integrated)
    assert json.dumps(found.attrs)
