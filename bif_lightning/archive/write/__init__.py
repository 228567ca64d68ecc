"""Writes samples.h5 and dumps, each whole or not at all. SPEC.md says what they hold."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from bif_lightning.archive.examples_file import SIDES, digest, samples_content
from bif_lightning.archive.read.examples import read_samples, stored_digest
from bif_lightning.archive.schema import (
    PURE_DIMENSION,
    SAMPLES_FILE,
    Content,
    Variable,
    chunk_shape,
    dump_name,
    round_to_10_bits,
)
from bif_lightning.archive.write.dump import dump_content
from bif_lightning.archive.write.validate import check_estimate
from bif_lightning.results.estimate import Estimate
from bif_lightning.results.examples import Samples
from bif_lightning.storage.atomic import atomic_write
from bif_lightning.storage.atomic import sweep_temporaries as sweep_temporaries


def write_samples(directory: str | os.PathLike[str], train: Samples, query: Samples) -> Path:
    """Write `samples.h5`, once a run: a file that describes the same examples is kept as it is.

    Args:
        directory: folder of the run's dumps; made where it is missing.
        train, query: who the rows and columns of every dump in it are.

    Returns:
        the path of the file.

    Raises:
        ValueError: the folder holds the samples of another run, or the samples do not belong together.
        OSError: the file cannot be written; nothing is left of it.

    >>> from bif_lightning import write_samples
    >>> write_samples(new_folder, train, query).name  # Samples of both axes
    'samples.h5'
    """
    path = Path(directory) / SAMPLES_FILE
    content = samples_content(train, query, _stamp())
    if path.exists():
        if stored_digest(path) != digest(train, query):
            raise ValueError(
                f"{path} belongs to another run: {_difference(path, train, query)}. Dumps of different examples do "
                "not mix; choose another dirpath"
            )
        return path
    _write(path, content)
    return path


def write_dump(
    directory: str | os.PathLike[str],
    estimate: Estimate,
    *,
    step: int,
    epoch: int,
    train: Samples,
    query: Samples,
    metrics: Mapping[str, float] = {},
    hyperparameters: Mapping[str, Any] = {},
    provenance: Mapping[str, Any] = {},
    precision: Literal["full", "10bit"] = "full",
) -> Path:
    """Write `step=000006000.h5`. A dump of the same step is replaced as a whole.

    Args:
        directory: folder of the run's dumps; made where it is missing.
        estimate: what was estimated at this snapshot.
        step, epoch: where training stood, counted from 0 as the Trainer counts.
        train, query: who the rows and columns are.
        metrics: numbers of the training run at this step, such as the validation loss.
        hyperparameters, provenance: JSON-able records; other values are stored as their `str`.
        precision: "10bit" rounds matrices and traces to 10 mantissa bits (relative error at most 2⁻¹¹, far below
            their Monte Carlo error), which saves about 40 % of the file; it stays float32 for every reader.

    Returns:
        the path of the file.

    Raises:
        ValueError: the samples do not match the estimate, a matrix is NaN throughout or of a wrong shape, an
            observable has an impossible name, or a setting is out of range.
        OSError: the file cannot be written (disk full, no permission). Nothing is left of it, and a dump of the
            same step stays as it was.

    >>> from bif_lightning import open_run, write_dump
    >>> path = write_dump(new_folder, snapshot, step=300, epoch=0, train=train, query=query, metrics={"val/loss": 0.5})
    >>> path.name, open_run(path).metrics.sel(metric="val/loss").item()
    ('step=000000300.h5', 0.5)
    """
    if precision not in ("full", "10bit"):
        raise ValueError(f"precision is {precision!r}; it must be 'full' or '10bit'")
    check_estimate(estimate, train, query)
    content = dump_content(
        estimate,
        train=train,
        query=query,
        attrs={"global_step": step, "epoch": epoch, **_stamp()},
        metrics=metrics,
        records={"hyperparameters": hyperparameters, "provenance": provenance},
        precision=precision,
    )
    path = Path(directory) / dump_name(step)
    _write(path, content)
    return path


def _stamp() -> dict[str, str]:
    try:
        own = version("bif-lightning")
    except PackageNotFoundError:
        own = "unknown"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"creator": f"bif_lightning {own}", "created_utc": now}


def _difference(path: Path, train: Samples, query: Samples) -> str:
    stored = read_samples(path, thumbnails=False)
    for side, there, here in zip(SIDES, stored, (train, query), strict=True):
        if len(there) != len(here):
            return f"it has {len(there)} {side} examples, this run has {len(here)}"
        for row, (old, new) in enumerate(zip(there.ids, here.ids, strict=True)):
            if old != new:
                return f"{side} example {row} is {old!r} there and {new!r} here"
    return "the ids are the same, but an index, label, label name or text differs"


def _write(path: Path, content: Content) -> None:
    # v110 is the oldest format with chunk indices that scale; HDF5 1.10 and later read it.
    with atomic_write(path, content.nbytes) as sink, h5py.File(sink, "w", libver=("v110", "v114")) as file:
        for name, size in content.pure_dims.items():
            scale = file.create_dataset(name, (size,), ">f4", chunks=chunk_shape((size,)))
            scale.make_scale(f"{PURE_DIMENSION} {size:10d}")
        for variable in sorted(content.variables, key=lambda each: not each.is_scale):
            _write_variable(file, variable)
        for link, target in content.links.items():
            file[link] = file[target]
        for group, attrs in content.attrs.items():
            file.require_group(group or "/").attrs.update(attrs)


def _write_variable(file: h5py.File, variable: Variable) -> None:
    values = variable.values
    if values.dtype.kind == "O":
        dataset = file.create_dataset(variable.path, data=values, dtype=h5py.string_dtype())
    elif values.ndim and values.size:
        # Without a checksum a flipped bit is read back as a number; fletcher32 makes it an error.
        chunks = chunk_shape(values.shape)
        options: dict[str, Any] = {"chunks": chunks, "shuffle": True, "fletcher32": True}
        options |= {"compression": "gzip", "compression_opts": 1}
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
