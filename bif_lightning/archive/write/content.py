"""Writes the content of a file with HDF5."""

from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bif_lightning.archive.schema import PURE_DIMENSION, Content, Variable, chunk_shape, round_to_10_bits
from bif_lightning.storage.atomic import atomic_write


def stamp() -> dict[str, str]:
    """Program and time of a file that is written now. Readers tell by the time whether a dump was replaced."""
    try:
        own = version("bif-lightning")
    except PackageNotFoundError:
        own = "unknown"
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    return {"creator": f"bif_lightning {own}", "created_utc": now}


def write_content(path: Path, content: Content) -> None:
    """Write a file as a whole.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    # v110 is the oldest format with chunk indices that scale; HDF5 1.10 and later read it.
    with atomic_write(path, content.nbytes) as sink, h5py.File(sink, "w", libver=("v110", "v114")) as file:
        for name, size in content.pure_dims.items():
            scale = file.create_dataset(name, (size,), ">f4", chunks=chunk_shape((size,)))
            scale.make_scale(f"{PURE_DIMENSION} {size:10d}")
        for variable in sorted(content.variables, key=lambda each: not each.is_scale):
            _write_variable(file, variable, compressed=content.compressed)
        for link, target in content.links.items():
            file[link] = file[target]
        for group, attrs in content.attrs.items():
            file.require_group(group or "/").attrs.update(attrs)


def _write_variable(file: h5py.File, variable: Variable, *, compressed: bool) -> None:
    values = variable.values
    if values.dtype.kind == "O":
        dataset = file.create_dataset(variable.path, data=values, dtype=h5py.string_dtype())
    elif values.ndim and values.size:
        # Without a checksum a flipped bit is read back as a number; fletcher32 makes it an error.
        chunks = chunk_shape(values.shape)
        options: dict[str, Any] = {"chunks": chunks, "fletcher32": True}
        options |= {"shuffle": True, "compression": "gzip", "compression_opts": 1} if compressed else {}
        dataset = file.create_dataset(variable.path, values.shape, values.dtype, **options)
        _write_bands(dataset, variable, chunks)
    else:
        dataset = file.create_dataset(variable.path, data=values)
    dataset.attrs["long_name"] = variable.long_name
    if variable.units is not None:
        dataset.attrs["units"] = variable.units
    dataset.attrs.update(variable.attrs)
    if variable.is_scale:
        dataset.make_scale(variable.name)
        return
    for axis, dim in enumerate(variable.dims):
        dataset.dims[axis].attach_scale(_scale(file, variable.path, dim))


def _write_bands(dataset: h5py.Dataset, variable: Variable, chunks: tuple[int, ...]) -> None:
    """Write a row of chunks at a time: a large array is never copied, and no chunk compressed twice."""
    axis = max(variable.values.ndim - 2, 0)  # chunks are 1 along all axes before
    for outer in np.ndindex(variable.values.shape[:axis]):
        for start in range(0, variable.values.shape[axis], chunks[axis]):
            here = (*outer, slice(start, start + chunks[axis]))
            band = variable.values[here]
            dataset[here] = round_to_10_bits(band) if variable.rounded else band


def _scale(file: h5py.File, path: str, dim: str) -> h5py.Dataset:
    group = path.rpartition("/")[0]
    nearest = f"{group}/{dim}"
    scale: Any = file[nearest if group and nearest in file else dim]
    return scale
