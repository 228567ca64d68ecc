"""Arrays to fill a block of rows at a time, in memory or, beyond a budget, in an unlinked temporary file."""

import errno
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MATRIX_BYTES = 1 << 30
"""Matrices larger than this together lie in a temporary file, unless a caller sets another budget."""

_ALIGNMENT = 4096  # where an array starts in the file, so that any dtype may be viewed there
_REMEDY = "Free some space, or give another folder on a disk (TMPDIR names the default); fewer examples need less."


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of an array with rows along its first axis."""

    shape: tuple[int, ...]
    dtype: type[np.generic]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class ScratchArrays:
    """Arrays in memory where they take at most `budget` bytes together, else in one unlinked file.

    The file has no name, so that a crash leaves nothing behind, and its space is freed with the last view of its
    arrays. It is written by system calls, since a store to a mapped page of a full disk would kill the process, and
    read through a mapping, whose pages the system may drop at any time.

    Args:
        specs: shapes and dtypes.
        budget: bytes allowed in memory.
        directory: of the file, made if missing; None for the default of `tempfile`. It should be on a disk.
        what: description of the arrays, for messages.

    Raises:
        OSError: the disk has no room for the file (see `check_room`), or the folder cannot be written.
    """

    def __init__(
        self, specs: Sequence[Spec], budget: int, directory: Path | None = None, what: str = "the matrices"
    ) -> None:
        self._descriptor: int | None = None
        self.directory, self._what = directory, what
        self._offsets = _offsets(specs)
        if sum(spec.nbytes for spec in specs) <= budget:
            self.arrays: tuple[np.ndarray, ...] = tuple(np.empty(spec.shape, spec.dtype) for spec in specs)
            return
        check_room(self._offsets[-1], directory, what)
        try:
            whole = self._open()
        except OSError as error:
            raise _failed(error, self._offsets[-1], directory, what) from error
        self.arrays = tuple(
            whole[offset : offset + spec.nbytes].view(spec.dtype).reshape(spec.shape)
            for spec, offset in zip(specs, self._offsets, strict=False)
        )

    def write(self, index: int, rows: slice, block: np.ndarray) -> None:
        """Set these rows of one array.

        Raises:
            OSError: the disk is full or fails.
        """
        array = self.arrays[index]
        if self._descriptor is None:
            array[rows] = block
            return
        data = np.ascontiguousarray(block, array.dtype).data.cast("B")
        try:
            _write_all(self._descriptor, data, self._offsets[index] + rows.start * array.strides[0])
        except OSError as error:
            raise _failed(error, self._offsets[-1], self.directory, self._what) from error

    def close(self) -> None:
        """End writing. The arrays stay usable; the space of the file is freed with the last of them."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.close()

    def _open(self) -> np.ndarray:
        """The whole file as a mapped array."""
        size, folder = self._offsets[-1], _folder(self.directory)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix="bif_lightning-") as file:
            os.ftruncate(file.fileno(), size)
            self._descriptor = os.dup(file.fileno())
            return np.memmap(file, np.uint8, "r+", shape=(size,)).view(np.ndarray)


def check_room(nbytes: int, directory: Path | None = None, what: str = "the matrices") -> None:
    """Check that the disk has room for a temporary file.

    Raises:
        OSError: it does not; the message has the bytes needed and free, the folder, and what to do.
    """
    folder = _folder(directory)
    # The folder may not exist yet: take the disk of its nearest parent.
    free = shutil.disk_usage(next(each for each in (folder, *folder.parents) if each.exists())).free
    if nbytes > free:
        raise OSError(
            errno.ENOSPC,
            f"{what} need {_gigabytes(nbytes)} in a temporary file in {folder}, which has {_gigabytes(free)} "
            f"free. {_REMEDY}",
        )


def _offsets(specs: Sequence[Spec]) -> list[int]:
    """Where each array starts, and the size of the file."""
    offsets = [0]
    for spec in specs:
        offsets.append(offsets[-1] + -(-spec.nbytes // _ALIGNMENT) * _ALIGNMENT)
    return offsets


def _write_all(descriptor: int, data: memoryview, position: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], position + done)


def _failed(error: OSError, nbytes: int, directory: Path | None, what: str) -> OSError:
    reason = error.strerror or str(error)
    return OSError(
        error.errno or errno.EIO,
        f"writing {what} ({_gigabytes(nbytes)}) to a temporary file in {_folder(directory)} failed: {reason}. "
        f"{_REMEDY}",
    )


def _folder(directory: Path | None) -> Path:
    return Path(tempfile.gettempdir() if directory is None else directory).absolute()


def _gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:.3g} GB"
