"""Arrays in memory or in a file without a name: the same values, room checked first, errors that say what to do."""

import gc
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bif_lightning.storage.scratch import ScratchArrays, Spec, check_room

pytestmark = pytest.mark.exact

SPECS = [Spec((1000, 7), np.float32), Spec((1000, 3), np.float64)]
BYTES = 1000 * (7 * 4 + 3 * 8)


def filled(storage: ScratchArrays) -> ScratchArrays:
    for start in range(0, 1000, 300):
        rows = slice(start, min(start + 300, 1000))
        for place, array in enumerate(storage.arrays):
            storage.write(place, rows, place + np.arange(array.size).reshape(array.shape)[rows])
    storage.close()
    return storage


def open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def of_file(array: np.ndarray) -> bool:
    while array.base is not None and isinstance(array.base, np.ndarray):
        array = array.base
    return array.base is not None


@pytest.mark.parametrize(("budget", "mapped"), [(BYTES, False), (BYTES - 1, True)])
def test_arrays_hold_what_was_written(budget: int, mapped: bool, tmp_path: Path) -> None:
    storage = filled(ScratchArrays(SPECS, budget, tmp_path))
    for place, (array, spec) in enumerate(zip(storage.arrays, SPECS, strict=True)):
        assert array.dtype == spec.dtype
        assert of_file(array) == mapped
        np.testing.assert_array_equal(array, place + np.arange(array.size).reshape(spec.shape))
    assert list(tmp_path.iterdir()) == []


def test_a_file_ends_with_the_last_of_its_arrays(tmp_path: Path) -> None:
    before = open_files()
    storage = filled(ScratchArrays(SPECS, 0, tmp_path))
    part = storage.arrays[1][5:]
    del storage
    assert open_files() == before + 1
    assert part[0, 0] == 16
    del part
    assert open_files() == before


def test_storage_that_is_never_closed_leaves_no_file_open(tmp_path: Path) -> None:
    before = open_files()
    storage = ScratchArrays(SPECS, 0, tmp_path)
    assert open_files() > before
    del storage
    assert open_files() == before


def test_no_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    huge = [Spec((1 << 40, 1 << 10), np.float32)]
    with pytest.raises(OSError, match=r"need 4\.5e\+06 GB .* free\. Free some space") as caught:
        ScratchArrays(huge, 0, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match=r"need 1e\+09 GB in a temporary file in .*later"):
        check_room(10**18, tmp_path / "made" / "later")


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    filled(ScratchArrays(SPECS, 0, tmp_path / "made" / "here"))
    assert list((tmp_path / "made" / "here").iterdir()) == []


@pytest.fixture
def small_files() -> Iterator[int]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, hard))
    yield 1 << 14
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_cannot_be_made_is_explained(small_files: int, tmp_path: Path) -> None:
    before = open_files()
    with pytest.raises(OSError, match=r"writing the matrices .* failed: File too large\. Free some space") as caught:
        ScratchArrays(SPECS, 0, tmp_path)
    assert caught.value.errno
    assert open_files() == before


def test_a_write_that_fails_is_explained(tmp_path: Path) -> None:
    storage = ScratchArrays(SPECS, 0, tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, hard))
    try:
        with pytest.raises(OSError, match=r"writing the matrices .* failed: File too large"):
            storage.write(0, slice(0, 1000), np.zeros((1000, 7), np.float32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
