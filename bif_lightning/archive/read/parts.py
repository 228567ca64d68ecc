"""Read a few small datasets and attributes of a file by name, without building its index."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from bif_lightning.archive.read.untrusted import attribute, find, open_file, present
from bif_lightning.exceptions import UnreadableFileError

_MOST_BYTES = 1 << 27


@dataclass(frozen=True)
class Picked:
    """The requested parts that the file has.

    Attributes:
        attrs: root attributes, by name.
        values: datasets, by path: an array of numbers, an object array of str, or one str or number.
        shapes: shapes of the matrices of floats in the root, by name.
        tables: attributes of groups that contain only attributes, by group and name.
        present: the paths of `asked` that the file has.
    """

    attrs: Mapping[str, Any]
    values: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    tables: Mapping[str, Mapping[str, Any]]
    present: frozenset[str]


def read_parts(
    path: str | os.PathLike[str],
    schema: str,
    *,
    attrs: Iterable[str] = (),
    names: Iterable[str] = (),
    matrices: Sequence[str] = (),
    tables: Iterable[str] = (),
    asked: Iterable[str] = (),
) -> Picked:
    """Read some attributes and datasets of a dump or a samples file; absent ones are left out.

    Args:
        path: the file.
        schema: which kind of file it must be, `schema.DUMP` or `schema.SAMPLES`.
        attrs: names of root attributes.
        names: paths of datasets, of at most 128 MiB each.
        matrices: report the shapes of the matrices with these names, or whose names end with "_" and one of them.
        tables: groups whose attributes to read.
        asked: paths of datasets and groups whose presence to report.

    Raises:
        UnreadableFileError: the file is damaged, of another format, of a later version, or refers to data outside of
            itself.
        OSError: the system does not let it be read.
    """
    with open_file(path, schema) as file:
        try:
            return Picked(
                {name: value for name in attrs if (value := attribute(file, name)) is not None},
                {name: _value(dataset) for name in names if (dataset := find(file, name)) is not None},
                _shapes(file, matrices) if matrices else {},
                {name: _table(file, name) for name in tables},
                frozenset(name for name in asked if present(file, name)),
            )
        except UnreadableFileError:
            raise
        # This is what h5py and NumPy make of damaged structures.
        except (OSError, RuntimeError, LookupError, TypeError, ValueError, OverflowError, MemoryError) as error:
            raise UnreadableFileError(f"{path} is damaged ({type(error).__name__}: {error})") from error


def _value(dataset: h5py.Dataset) -> Any:
    if dataset.nbytes > _MOST_BYTES:
        raise UnreadableFileError(
            f"{dataset.file.filename}: {dataset.name} has {dataset.nbytes:,} bytes, which is too much to show"
        )
    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    if not is_text and dataset.dtype.kind not in "iufb":
        raise UnreadableFileError(
            f"{dataset.file.filename}: {dataset.name} holds {dataset.dtype}, which is neither numbers nor text"
        )
    values: Any = dataset.asstr()[()] if is_text else dataset[()]
    return values.item() if isinstance(values, np.generic) else values


def _table(file: h5py.File, path: str) -> dict[str, Any]:
    group: Any = file[path] if present(file, path) else None
    return {} if group is None else {name: attribute(group, name) for name in group.attrs}


def _shapes(file: h5py.File, wanted: Sequence[str]) -> dict[str, tuple[int, ...]]:
    ends = tuple(f"_{name}" for name in wanted)
    names: list[str] = list(file.keys())
    names = [name for name in names if f"_{name}".endswith(ends) and _is_dataset(file, name)]
    found = {name: find(file, name) for name in names}
    return {
        name: dataset.shape
        for name, dataset in found.items()
        if dataset is not None and dataset.ndim == 2 and dataset.dtype.kind == "f"
    }


def _is_dataset(file: h5py.File, name: str) -> bool:
    return isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Dataset)
