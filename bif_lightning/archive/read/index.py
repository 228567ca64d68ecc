"""Read the index of a dump for opening a run: names, shapes and small values, but no matrices."""

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bif_lightning.archive.examples_file import SIDES
from bif_lightning.archive.read.examples import strings
from bif_lightning.archive.read.untrusted import attribute, find, members, open_file, require
from bif_lightning.archive.schema import COSTS, DIAGNOSTICS, DUMP, DUMP_NAME, PARTICULARS
from bif_lightning.exceptions import SkippedDumpWarning, UnreadableFileError

_REQUIRED = ("global_step", "epoch", "samples_sha256")
_PARTS = ("id", "index", "label")

Axes = dict[str, tuple[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Field:
    """A floating-point dataset of a dump that stays on disk: its axes, shape and attributes."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    attrs: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Index:
    """One dump without its matrices.

    Attributes:
        path, step, epoch: which one.
        created: when it was written.
        samples: digest of its examples.
        version: of its schema.
        scalars: diagnostics and costs, by name.
        metrics: of the training run, by name.
        shapes: of the arrays left on disk, by path.
        axes: values of the axes and of what stands along them, by path: (dim, values).
        chain_ids, traces: ids of the chains, and the traces (chain, draw) `loss` and `distance`.
        divergences: what happened to chains that diverged, a sentence each.
        notes: what a reader should know, in sentences.
        settings: of the sampler and chains, as JSON.
        verdict, reason: whether the snapshot can be trusted, and all that is said of it; empty before version 1.1.
    """

    path: Path
    step: int
    epoch: int
    created: str
    samples: str
    version: str
    scalars: dict[str, float]
    metrics: dict[str, float]
    shapes: dict[str, tuple[int, ...]]
    axes: Axes
    chain_ids: tuple[int, ...]
    traces: dict[str, np.ndarray]
    divergences: tuple[str, ...]
    notes: tuple[str, ...]
    settings: str
    verdict: str
    reason: str


def dump_paths(directory: Path) -> list[Path]:
    """The dumps in a folder, by step. Temporary files never match."""
    named = [(match, path) for path in directory.iterdir() if (match := DUMP_NAME.fullmatch(path.name))]
    return [path for _, path in sorted(named, key=lambda each: int(each[0][1]))]


def read_indices(paths: Iterable[Path]) -> list[Index]:
    """Read the index of every dump, sorted by step; unreadable dumps are skipped with a `SkippedDumpWarning`."""
    found: dict[int, Index] = {}
    for path in paths:
        try:
            index = read_index(path, list(found.values())[:1])
        except (OSError, UnreadableFileError) as error:
            skip(path, error)
            continue
        if index.step in found:
            skip(path, f"it holds step {index.step}, as {found[index.step].path.name} does")
            continue
        found[index.step] = index
    return [found[step] for step in sorted(found)]


def skip(path: Path, why: object) -> None:
    """Warn that a dump is skipped."""
    warnings.warn(f"skipped {path}: {why}", SkippedDumpWarning, stacklevel=2)


def read_index(path: Path, known: Sequence[Index] = ()) -> Index:
    """The index of one dump.

    Args:
        path: of the dump.
        known: other dumps. If one is of the same examples, by digest, what it says of them is shared: a hundred dumps
            would hold a hundred copies of all ids.

    Raises:
        UnreadableFileError: it is damaged, of another format, of a later version, or refers to data outside of itself.
        OSError: the system does not let it be read.
    """
    with open_file(path, DUMP) as file:
        try:
            index = _index(file, path, known)
            _check(index)
        except UnreadableFileError:
            raise
        # Errors of h5py, NumPy and json for damaged or foreign structures.
        except (OSError, RuntimeError, LookupError, TypeError, ValueError, OverflowError) as error:
            raise UnreadableFileError(f"it is damaged ({type(error).__name__}: {error})") from error
    return index


def _index(file: h5py.File, path: Path, known: Sequence[Index]) -> Index:
    attrs: Any = {name: attribute(file, name) for name in (*_REQUIRED, "schema_version", "created_utc", "verdict")}
    missing = [name for name in _REQUIRED if attrs[name] is None]
    if missing:
        raise UnreadableFileError(f"it lacks the attribute {', '.join(missing)}")
    samples = str(attrs["samples_sha256"])
    shared = next((index.axes for index in known if index.samples == samples), None)
    return Index(
        path=path,
        step=int(attrs["global_step"]),
        epoch=int(attrs["epoch"]),
        created=str(attrs["created_utc"]),
        samples=samples,
        version=str(attrs["schema_version"]),
        scalars=_scalars(file),
        metrics=_metrics(file),
        shapes=_shapes(file),
        axes=_examples(file) if shared is None else _shared(file, shared),
        chain_ids=tuple(require(file, "chains/chain")[...].tolist()),
        traces={name: require(file, f"chains/{name}")[...] for name in ("loss", "distance")},
        divergences=_texts(file, "divergences/message"),
        notes=tuple(map(str, json.loads(_text(file, "notes_json") or "[]"))),
        settings=_text(file, "settings_json"),
        verdict=str(attrs["verdict"] or ""),
        reason=_text(file, "chains/verdict"),
    )


def _check(index: Index) -> None:
    sizes = {name: len(values) for name, (_, values) in index.axes.items()}
    for name in ("influence", "correlation"):
        expected = (sizes["train"], sizes["query"])
        if index.shapes.get(name) != expected:
            raise UnreadableFileError(f"its {name} has shape {index.shapes.get(name)}, its axes have {expected}")
    for name, (dim, values) in index.axes.items():
        if values.ndim != 1 or len(values) != sizes[dim]:
            raise UnreadableFileError(f"its {name} has shape {values.shape}, its axis {dim} has {sizes[dim]}")
    for name, trace in index.traces.items():
        if trace.ndim != 2 or len(trace) != len(index.chain_ids):
            raise UnreadableFileError(f"its {name} trace has shape {trace.shape} for {len(index.chain_ids)} chains")


def _metrics(file: h5py.File) -> dict[str, float]:
    if not isinstance(file.get("metrics", getlink=True), h5py.HardLink):
        return {}
    group: Any = file["metrics"]
    return {name: float(attribute(group, name)) for name in group.attrs}


def _scalars(file: h5py.File) -> dict[str, float]:
    paths = {name: f"chains/{name}" for name in (*DIAGNOSTICS, *PARTICULARS)} | {name: f"cost/{name}" for name in COSTS}
    found = {name: find(file, path) for name, path in paths.items()}
    return {name: float(dataset[()]) for name, dataset in found.items() if dataset is not None}


def _texts(file: h5py.File, path: str) -> tuple[str, ...]:
    dataset = find(file, path)
    return () if dataset is None else strings(dataset)


def _text(file: h5py.File, path: str) -> str:
    dataset = find(file, path)
    return "" if dataset is None else str(dataset.asstr()[()])


def _shapes(file: h5py.File) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    names: list[str] = list(file.keys())
    for path in (*names, *(f"labels/{name}" for name in members(file, "labels"))):
        if not isinstance(file.get(path, getlink=True), h5py.HardLink):
            continue
        node = file[path]
        if isinstance(node, h5py.Dataset) and node.ndim and node.dtype.kind == "f":
            shapes[path] = node.shape
    return shapes


def _examples(file: h5py.File) -> Axes:
    """Descriptions of the examples, and the other axes."""
    axes: Axes = {}
    for side in SIDES:
        axes[side] = (side, require(file, side)[...])
        for part in _PARTS:
            _add(axes, file, f"{side}_{part}", side)
    return axes | _others(file)


def _shared(file: h5py.File, known: Axes) -> Axes:
    """Like `_examples`, but reuse the examples of another dump if their number is the same."""
    for side in SIDES:
        found, expected = require(file, side).shape, known[side][1].shape
        if found != expected:
            raise UnreadableFileError(f"its {side} axis has shape {found}, that of another dump has {expected}")
    names = [name for side in SIDES for name in (side, *(f"{side}_{part}" for part in _PARTS)) if name in known]
    return {name: known[name] for name in names} | _others(file)


def _others(file: h5py.File) -> Axes:
    """Axes of label means and of observables."""
    axes: Axes = {}
    for side in SIDES:
        _add(axes, file, f"labels/{side}_label", f"labels/{side}_label")
        _add(axes, file, f"labels/{side}_label_name", f"labels/{side}_label")
    names = attribute(file, "observables")
    for name in () if names is None else names:
        _add(axes, file, f"{name}_column", f"{name}_column")
    return axes


def _add(axes: Axes, file: h5py.File, path: str, dim: str) -> None:
    dataset = find(file, path)
    if dataset is not None:
        is_text = h5py.check_string_dtype(dataset.dtype) is not None
        axes[path] = (dim, np.array(strings(dataset), dtype=object) if is_text else dataset[...])


def read_fields(path: Path, names: Iterable[str]) -> dict[str, Field]:
    """Axes, units and descriptions of the arrays of one dump; arrays without scales are left out as unknown.

    Raises:
        UnreadableFileError, OSError: as `read_index`.
    """
    with open_file(path, DUMP) as file:
        try:
            return _described(file, names)
        except (OSError, RuntimeError, LookupError, TypeError) as error:
            raise UnreadableFileError(f"it is damaged ({type(error).__name__}: {error})") from error


def _described(file: h5py.File, names: Iterable[str]) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    for name in names:
        dataset = require(file, name)
        scales = [list(dim.values()) for dim in dataset.dims]
        if not all(scales) or dataset.is_scale:
            continue
        group = f"{name.rpartition('/')[0]}/".lstrip("/")
        dims = tuple(group + str(scale[0].name).rpartition("/")[2] for scale in scales)
        words = ("units", "long_name", "sign")
        attrs = {word: str(value) for word in words if (value := attribute(dataset, word)) is not None}
        fields[name] = Field(dims=dims, shape=dataset.shape, dtype=dataset.dtype, attrs=attrs)
    return fields
