"""Open files of unknown origin safely: complete, of a known version, without links to other files or endless loops.

HDF5 stores strings of variable length in heaps, blocks of the file with consecutive objects. libhdf5 walks a heap by
the sizes stored in it, and loops forever if one of them is 0 through damage (seen with HDF5 2.0). `WalkableFile` checks
each heap as libhdf5 reads it, and refuses a damaged one. The tab's reader processes could be killed instead, but a
user's process that calls `open_run` could not.
"""

import os
import stat
import struct
from collections.abc import Generator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bif_lightning.archive.schema import VERSION
from bif_lightning.exceptions import UnreadableFileError

_SIGNATURE = b"GCOL"
_HEAD = struct.Struct("<4sB3xQ")  # signature, version, bytes of the heap
_OBJECT = struct.Struct("<HHIQ")  # index, references, reserved, bytes
_REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])  # of a text in a heap


class HeapError(OSError):
    """A heap of a file is damaged."""


class WalkableFile(FileIO):
    """A file for h5py that checks every heap as it is read.

    Args:
        path: path of the file.

    Raises:
        HeapError: a heap is damaged.
        OSError: the system does not let it be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, "rb")

    def readinto(self, buffer: Any, /) -> int | None:
        """Fill a buffer with the next bytes, and return their number."""
        size = super().readinto(buffer)
        # A heap is read with its head at least: what is shorter is something else.
        if size and size >= _HEAD.size and bytes(buffer[: len(_SIGNATURE)]) == _SIGNATURE:
            _check_heap(bytes(buffer[:size]), self.name)
        return size


def _check_heap(heap: bytes, path: object) -> None:
    """Check that the objects of a heap fill it consecutively."""
    _, _, end = _HEAD.unpack_from(heap)
    # HDF5 reads the beginning of a longer heap first, and then all of it.
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


# gzip reaches 1032:1 at most; a dataset that declares far more than it stores is made of fill values.
_MOST_EXPANSION = 1200
_MOST_CHUNK_BYTES = 1 << 26
_MOST_RANK = 4
_MOST_ATTRIBUTE_BYTES = 1 << 16
# Deflate, shuffle and Fletcher-32, which SPEC.md allows: every further decoder is one more that a file can attack.
_FILTERS = {1, 2, 3}


@contextmanager
def open_file(path: str | os.PathLike[str], schema: str) -> Generator[h5py.File]:
    """Open a file for reading, without a lock (files are never changed in place, and some disks cannot lock).

    A damaged heap of strings, in which libhdf5 could loop forever, is refused as soon as it is read.

    Raises:
        UnreadableFileError: it is not a regular file, not a complete HDF5 file, or of another schema or a later major
            version.
        FileNotFoundError: there is none.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise UnreadableFileError(f"{path} is not a regular file")
    try:
        with WalkableFile(path) as source, _open(path, source) as file:
            _check(file, Path(path), schema)
            yield file
    except HeapError as error:
        raise UnreadableFileError(str(error)) from error


def _open(path: str | os.PathLike[str], source: WalkableFile) -> h5py.File:
    try:
        return h5py.File(path, "r", driver="fileobj", fileobj=source)
    except OSError as error:
        raise UnreadableFileError(f"{path} is not a whole HDF5 file ({error})") from error


def attribute(node: h5py.File | h5py.Group | h5py.Dataset, name: str) -> Any:
    """Value of an attribute, or None if absent. Its size is checked before it is read.

    Raises:
        UnreadableFileError: it is larger than 64 KiB.
    """
    key = name.encode()
    if not h5py.h5a.exists(node.id, key):
        return None
    size = h5py.h5a.get_info(node.id, key).data_size
    if size > _MOST_ATTRIBUTE_BYTES:
        raise UnreadableFileError(f"{node.file.filename}: the attribute {name} of {node.name} has {size:,} bytes")
    attrs: Any = node.attrs
    return attrs[name]


def _check(file: h5py.File, path: Path, schema: str) -> None:
    try:
        _check_schema(file, path, schema)
    except (UnreadableFileError, HeapError):
        raise
    # This is what h5py makes of attributes whose storage is damaged.
    except (OSError, RuntimeError, LookupError, TypeError, ValueError) as error:
        raise UnreadableFileError(f"{path} is damaged ({type(error).__name__}: {error})") from error


def _check_schema(file: h5py.File, path: Path, schema: str) -> None:
    found = attribute(file, "schema")
    if found != schema:
        raise UnreadableFileError(f"{path} is not a {schema} file (its schema is {found!r})")
    version = str(attribute(file, "schema_version"))
    major = version.partition(".")[0]
    known = VERSION.partition(".")[0]
    if not major.isdecimal():
        raise UnreadableFileError(f"{path} has the schema version {version!r}, which is not a number")
    if int(major) > int(known):
        raise UnreadableFileError(
            f"{path} was written by {attribute(file, 'creator') or 'an unknown program'} (schema {version}); "
            f"this reader knows {known}.x: upgrade bif_lightning"
        )


def find(file: h5py.File, path: str) -> h5py.Dataset | None:
    """The dataset at a path, or None if absent.

    Raises:
        UnreadableFileError: a step of the path is a soft or external link, the data lies in another file, it declares
            more values than it can hold, or its texts refer to what lies beyond the file.
    """
    node = _node(file, path)
    if node is None:
        return None
    if not isinstance(node, h5py.Dataset):
        raise UnreadableFileError(f"{file.filename}: {path} is not a dataset")
    _check_storage(file, path, node)
    _check_texts(file, path, node)
    return node


def present(file: h5py.File, path: str) -> bool:
    """Whether there is a dataset or group at a path.

    Raises:
        UnreadableFileError: a step of the path is a soft or external link.
    """
    return _node(file, path) is not None


def _node(file: h5py.File, path: str) -> Any:
    node: Any = file
    for part in path.split("/"):
        if not isinstance(node, h5py.Group):
            raise UnreadableFileError(f"{file.filename}: {node.name} is not a group, so {path} does not exist")
        link = node.get(part, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise UnreadableFileError(f"{file.filename}: {path} is a link to elsewhere, which is not followed")
        node = node[part]
    return node


def members(file: h5py.File, path: str) -> tuple[str, ...]:
    """Names in a group of this file; empty if the group is absent."""
    link = file.get(path, getlink=True)
    if not isinstance(link, h5py.HardLink):
        return ()
    group = file[path]
    return tuple(group) if isinstance(group, h5py.Group) else ()


def require(file: h5py.File, path: str) -> h5py.Dataset:
    """The dataset at a path that every file must have.

    Raises:
        UnreadableFileError: see `find`, or the dataset is absent.
    """
    dataset = find(file, path)
    if dataset is None:
        raise UnreadableFileError(f"{file.filename} has no {path}")
    return dataset


def _check_storage(file: h5py.File, path: str, dataset: h5py.Dataset) -> None:
    if dataset.is_virtual or dataset.external:
        raise UnreadableFileError(f"{file.filename}: the data of {path} lies in another file, which is not read")
    if dataset.ndim > _MOST_RANK:
        raise UnreadableFileError(f"{file.filename}: {path} has {dataset.ndim} axes; {_MOST_RANK} is the most")
    plan = dataset.id.get_create_plist()
    filters = {plan.get_filter(each)[0] for each in range(plan.get_nfilters())}
    if not filters <= _FILTERS:
        raise UnreadableFileError(
            f"{file.filename}: {path} is stored with filter {min(filters - _FILTERS)}; only gzip, shuffle and "
            "Fletcher-32 are read"
        )
    item = dataset.dtype.itemsize
    chunk = item
    for size in dataset.chunks or ():
        chunk *= size
    stored = dataset.id.get_storage_size()
    if chunk > _MOST_CHUNK_BYTES or dataset.nbytes > _MOST_EXPANSION * stored + _MOST_CHUNK_BYTES:
        raise UnreadableFileError(f"{file.filename}: {path} declares {dataset.nbytes:,} bytes but stores {stored:,}")


def _check_texts(file: h5py.File, path: str, dataset: h5py.Dataset) -> None:
    """Check that no text is longer than the file, or lies beyond it: libhdf5 takes minutes to find that out."""
    text = h5py.check_string_dtype(dataset.dtype)
    at, size = dataset.id.get_offset(), dataset.id.get_storage_size()
    # Of chunked texts, which this package does not write, the references are not at one place.
    if text is None or text.length is not None or at is None or size != (dataset.size or 0) * _REFERENCE.itemsize:
        return
    with open(file.filename, "rb") as source:
        end = os.fstat(source.fileno()).st_size
        source.seek(at)
        references = np.frombuffer(source.read(size), _REFERENCE)
    far = (references["length"] > end) | (references["address"] >= end)
    if far.any():
        raise UnreadableFileError(
            f"{file.filename}: text {int(far.argmax())} of {path} lies beyond the end of the file, which is damaged"
        )
