"""Files whose texts HDF5 can read without going round in circles.

HDF5 keeps texts of any length in heaps: blocks of the file that hold one object after the other. libhdf5 walks a heap
by the sizes that stand in it; where damage made one of them 0, it walks on the spot for ever (seen with HDF5 2.0). It
reads each heap by itself, so a file that looks at what is read can refuse such a heap before libhdf5 walks it.
"""

import os
import struct
from io import FileIO
from typing import Any

_SIGNATURE = b"GCOL"
_HEAD = struct.Struct("<4sB3xQ")  # signature, version, bytes of the heap
_OBJECT = struct.Struct("<HHIQ")  # index, references, reserved, bytes


class HeapError(OSError):
    """A heap of a file is damaged."""


class WalkableFile(FileIO):
    """A file for h5py to read, in which every heap can be walked.

    Args:
        path: of the file.

    Raises:
        HeapError: on reading a heap that cannot be.
        OSError: the system does not let it be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, "rb")

    def readinto(self, buffer: Any, /) -> int | None:
        """Fill a buffer with what comes next; the bytes that were read."""
        size = super().readinto(buffer)
        # A heap is read with its head at least: what is shorter is something else.
        if size and size >= _HEAD.size and bytes(buffer[: len(_SIGNATURE)]) == _SIGNATURE:
            _check_heap(bytes(buffer[:size]), self.name)
        return size


def _check_heap(heap: bytes, path: object) -> None:
    """Refuse a heap whose objects do not fill it one after the other."""
    _, _, end = _HEAD.unpack_from(heap)
    # HDF5 reads the beginning of a longer one first, and then all of it.
    if end > len(heap):
        return
    at = _HEAD.size
    # At the end there can be less room than an object needs.
    while at + _OBJECT.size <= end:
        index, _, _, size = _OBJECT.unpack_from(heap, at)
        # What is free counts its own head; what is held does not, and ends at a multiple of 8 bytes.
        step = size if index == 0 else _OBJECT.size + -(-size // 8) * 8
        if step < _OBJECT.size or at + step > end:
            raise HeapError(f"{path}: the texts of the file are damaged, in object {index} of a heap")
        at += step
