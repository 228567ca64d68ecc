"""Any cells are read as they were written, from files of any layout; damage is noticed."""

import zlib

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bif_lightning.archive.read import cells
from bif_lightning.archive.read.cells import read_cells
from bif_lightning.exceptions import UnreadableFileError

pytestmark = pytest.mark.law

SHAPE = (90, 37)
USUAL = {"chunks": (32, 16), "shuffle": True, "compression": "gzip"}
LAYOUTS = {
    "usual": USUAL | {"fletcher32": True},
    "without checksum": USUAL,
    "without shuffle": {"chunks": (32, 16), "compression": "gzip"},
    "chunks alone": {"chunks": (32, 16)},
    "in one piece": {},
    "doubles": USUAL | {"dtype": "f8"},
    "big endian": USUAL | {"dtype": ">f4"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    values[3, 4] = np.nan
    for name, options in LAYOUTS.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file.attrs.update({"schema": "bif-lightning-dump", "schema_version": "1.2"})
            file.create_dataset("x", data=values, **options)
    return folder, values


def rows_of(size):
    return st.none() | st.lists(st.integers(0, size - 1), max_size=60).map(lambda each: np.array(each, np.int64))


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=25)
@given(rows=rows_of(SHAPE[0]), columns=rows_of(SHAPE[1]))
def test_any_rows_and_columns_are_read(folder, layout, rows, columns):
    where, values = folder
    (found,) = read_cells(where / f"{layout}.h5", ["x"], rows, columns)
    expected = values if rows is None else values[rows]
    np.testing.assert_array_equal(found, expected if columns is None else expected[:, columns])
    assert found.dtype == np.float32


def test_a_position_outside_of_the_matrix_is_refused(folder):
    with pytest.raises(ValueError, match="positions 0 to 90 do not fit an axis of 90"):
        read_cells(folder[0] / "usual.h5", ["x"], np.array([0, 90]))


def test_too_many_cells_at_once_are_refused(folder, monkeypatch):
    monkeypatch.setattr(cells, "MOST_CELLS", 32 * 16 * 2)
    read_cells(folder[0] / "usual.h5", ["x"], np.array([5]), np.array([0, 20]))
    with pytest.raises(ValueError, match="1,536 cells of /x would have to be read at once"):
        read_cells(folder[0] / "usual.h5", ["x"], np.array([5]), np.array([0, 20, 36]))


@pytest.mark.parametrize("layout", ["usual", "without checksum"])
def test_a_flipped_bit_is_an_error(folder, tmp_path, layout):
    where, values = folder
    whole = bytearray((where / f"{layout}.h5").read_bytes())
    with h5py.File(where / f"{layout}.h5") as file:
        chunk = file["x"].id.get_chunk_info(0)
    rng = np.random.default_rng(1)
    for _ in range(40):
        at = chunk.byte_offset + int(rng.integers(chunk.size - 4 * (layout == "usual")))
        damaged = whole.copy()
        damaged[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "damaged.h5").write_bytes(damaged)
        try:
            (found,) = read_cells(tmp_path / "damaged.h5", ["x"])
        except UnreadableFileError:
            continue
        # A bit that inflating ignores changes no number.
        np.testing.assert_array_equal(found, values)


def test_what_is_no_matrix_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs.update({"schema": "bif-lightning-dump", "schema_version": "1.2"})
        file["integers"], file["line"] = np.zeros((3, 3), int), np.zeros(3)
    for name, words in (("integers", "not a matrix"), ("line", "not a matrix"), ("absent", "has no absent")):
        with pytest.raises(UnreadableFileError, match=words):
            read_cells(tmp_path / "a.h5", [name])


def test_a_chunk_whose_end_is_missing_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs.update({"schema": "bif-lightning-dump", "schema_version": "1.2"})
        x = file.create_dataset("x", (16, 8), "<f4", chunks=(16, 8), shuffle=True, compression="gzip")
        x.id.write_direct_chunk((0, 0), zlib.compress(np.random.default_rng(1).bytes(512))[:-3])
    with pytest.raises(UnreadableFileError, match="damaged"):
        read_cells(tmp_path / "x.h5", ["x"])
