"""A damaged heap of texts, in which libhdf5 would go round in circles, is refused; whole ones are read."""

import struct
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import bif_lightning as bl
from archive_examples import make_estimate, make_samples
from bif_lightning.archive.read.untrusted import HeapError, WalkableFile, find, open_file
from bif_lightning.archive.schema import DUMP
from bif_lightning.archive.write import write_dump
from bif_lightning.exceptions import UnreadableFileError

pytestmark = pytest.mark.crash

SIGNATURE = b"GCOL\x01"
FREE = struct.pack("<HHIQ", 0, 0, 0, 0)


@pytest.fixture
def dump(tmp_path, rng) -> Path:
    train, query = make_samples("train", 12), make_samples("query", 5)
    return write_dump(tmp_path, make_estimate(rng, 12, 5), step=3, epoch=0, train=train, query=query)


def heaps(data: bytes) -> list[int]:
    """Where each heap begins."""
    found = [data.find(SIGNATURE)]
    while found[-1] >= 0:
        found.append(data.find(SIGNATURE, found[-1] + 1))
    return found[:-1]


def damage(path: Path, object_: bytes, heap: int | None = None) -> None:
    """Replace the first object of a heap, or of every heap."""
    data = bytearray(path.read_bytes())
    found = heaps(bytes(data))
    assert found
    for at in found if heap is None else [found[heap]]:
        data[at + 16 : at + 32] = object_
    path.write_bytes(data)


READ = """
import sys, warnings
import bif_lightning as bl
warnings.simplefilter("ignore")
try:
    print(len(bl.open_run(sys.argv[1]).step))
except ValueError as error:
    print(error)
"""


def in_a_process(folder: Path) -> str:
    """What `open_run` makes of a folder, in a process that is ended where it goes round in circles."""
    done = subprocess.run([sys.executable, "-c", READ, folder], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


@pytest.mark.parametrize(
    "size", [0, 15, 2**64 - 16, 2**63], ids=["stands", "within its head", "back to itself", "beyond the end"]
)
def test_a_heap_that_cannot_be_walked_is_refused(dump, size):
    damage(dump, struct.pack("<HHIQ", int(size > 15), 0, 0, size))
    # Not by h5py, which would not come back if this failed.
    with WalkableFile(dump) as source:
        source.seek(heaps(dump.read_bytes())[0])
        with pytest.raises(HeapError, match="texts of the file are damaged"):
            source.readinto(bytearray(4096))


def test_it_is_an_unreadable_file(dump):
    damage(dump, struct.pack("<HHIQ", 1, 0, 0, 2**63))
    with pytest.raises(UnreadableFileError, match="texts of the file are damaged"), open_file(dump, DUMP):
        pass


@pytest.mark.slow
def test_open_run_comes_to_an_end(dump):
    for heap in range(len(heaps(dump.read_bytes()))):
        whole = dump.read_bytes()
        damage(dump, FREE, heap)
        assert in_a_process(dump.parent)
        dump.write_bytes(whole)
    assert in_a_process(dump.parent).strip() == "1"


def test_the_other_steps_of_a_run_are_read(dump, rng):
    train, query = make_samples("train", 12), make_samples("query", 5)
    write_dump(dump.parent, make_estimate(rng, 12, 5), step=4, epoch=0, train=train, query=query)
    damage(dump, FREE)
    with pytest.warns(UserWarning, match="step=000000003"):
        run = bl.open_run(dump.parent)
    assert run.step.values.tolist() == [4]


@pytest.mark.parametrize("count", [1, 200, 5000])
def test_whole_heaps_are_read(tmp_path, count):
    texts = [f"text {row} " * (row % 300) for row in range(count)]
    with h5py.File(tmp_path / "texts.h5", "w") as file:
        file["texts"] = texts
        file["texts"].attrs["note"] = "é" * 3000
    size = (tmp_path / "texts.h5").stat().st_size
    with WalkableFile(tmp_path / "texts.h5") as source, h5py.File(source, "r") as file:
        assert file["texts"].asstr()[...].tolist() == texts
        assert file["texts"].attrs["note"] == "é" * 3000
        assert file.id.get_filesize() == size


@pytest.mark.parametrize("size", [4, 8, 15, 16, 64])
def test_numbers_that_look_like_a_heap_are_no_heap(tmp_path, size):
    values = np.frombuffer((b"GCOL\x01\0\0\0" + struct.pack("<Q", 2**40) + bytes(48))[:size], np.uint8)
    with h5py.File(tmp_path / "numbers.h5", "w") as file:
        file["values"] = values
    with WalkableFile(tmp_path / "numbers.h5") as source, h5py.File(source, "r") as file:
        np.testing.assert_array_equal(file["values"][...], values)


@pytest.mark.parametrize(
    ("length", "address"), [(2**32 - 1, 2**64 - 1), (5, 2**63), (2**31, None)], ids=["nowhere", "far", "long"]
)
def test_a_text_beyond_the_file_is_refused_at_once(dump, length, address):
    with h5py.File(dump) as file:
        at = file["train_id"].id.get_offset()
    data = bytearray(dump.read_bytes())
    _, whole, index = struct.unpack_from("<IQI", data, at + 3 * 16)
    struct.pack_into("<IQI", data, at + 3 * 16, length, whole if address is None else address, index)
    dump.write_bytes(data)
    with open_file(dump, DUMP) as file, pytest.raises(UnreadableFileError, match="text 3 of train_id lies beyond"):
        find(file, "train_id")
    assert "damaged" in in_a_process(dump.parent) or "none of the 1 dumps" in in_a_process(dump.parent)
