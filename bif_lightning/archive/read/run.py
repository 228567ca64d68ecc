"""Assembles the dumps of a run into one lazy dataset."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from xarray.core import indexing

from bif_lightning.archive.examples_file import SIDES
from bif_lightning.archive.integrated_file import LONG_NAMES
from bif_lightning.archive.read.index import Axes, Field, Index, read_fields, skip
from bif_lightning.archive.read.integrated_file import Stamp, open_integrated
from bif_lightning.archive.read.lazy import IntegratedArray, StepArray
from bif_lightning.archive.schema import COSTS, DIAGNOSTICS, PARTICULARS
from bif_lightning.exceptions import UnreadableFileError
from bif_lightning.results.integrated import INTEGRATED_SIGN

Variables = dict[str, xr.Variable]


def assemble(indices: Sequence[Index], directory: Path) -> xr.Dataset:
    """One dataset with a `step` axis from dumps of the same examples, in the order of their steps."""
    axes: Axes = {}
    for index in indices:
        axes |= index.axes
    coords: Variables = {
        "step": xr.Variable("step", [index.step for index in indices], {"long_name": "global training step"}),
        "epoch": xr.Variable("step", [index.epoch for index in indices], {"long_name": "training epoch"}),
    }
    coords |= {_run_name(path): xr.Variable(_run_name(dim), values) for path, (dim, values) in axes.items()}
    variables = _fields(indices, axes) | _scalars(indices) | _traces(indices) | _metrics(indices) | _texts(indices)
    variables |= _integrated(indices, axes, directory)
    attrs = {
        "directory": str(directory.absolute()),
        "schema_version": indices[-1].version,
        "samples_sha256": indices[-1].samples,
    }
    return xr.Dataset(variables, coords, attrs)


def _integrated(indices: Sequence[Index], axes: Axes, directory: Path) -> Variables:
    """The sums over the whole training, where the file that holds them is of these dumps, and of no other."""
    known = open_integrated(directory)
    dumps = [Stamp(index.path, index.step, index.created, index.samples) for index in indices]
    shape = tuple(len(axes[side][1]) for side in SIDES)
    if known is None or known.shape != shape or len(known.steps) != len(dumps) or not known.begins(dumps):
        return {}
    variables: Variables = {}
    for name in ("integrated", "integrated_standard_error"):
        attrs = {"units": "1", "long_name": LONG_NAMES[name]}
        attrs |= {"sign": INTEGRATED_SIGN} if name == "integrated" else {}
        array = indexing.LazilyIndexedArray(IntegratedArray(known, name))
        variables[name] = xr.Variable(("train", "query"), array, attrs)
    return variables


def _run_name(path: str) -> str:
    # In a run, `train_label` already names the label of each example, so axes of label means need another name.
    group, _, name = path.rpartition("/")
    if group != "labels":
        return name
    return name.replace("_label", "_group") if name.startswith(("train", "query")) else f"label_{name}"


def _fields(indices: Sequence[Index], axes: Axes) -> Variables:
    variables: Variables = {}
    for path, field in _latest_fields(indices).items():
        if any(dim not in axes or len(axes[dim][1]) != size for dim, size in zip(field.dims, field.shape, strict=True)):
            continue
        # Where the columns of an observable were others, or it was not there, the step is NaN.
        paths = [index.path if _same(index, path, field, axes) else None for index in indices]
        array = indexing.LazilyIndexedArray(StepArray(paths, path, field.shape, field.dtype))
        dims = ("step", *map(_run_name, field.dims))
        variables[_run_name(path)] = xr.Variable(dims, array, field.attrs)
    return variables


def _latest_fields(indices: Sequence[Index]) -> dict[str, Field]:
    """Each array as the last dump that has it describes it."""
    fields: dict[str, Field] = {}
    asked: set[str] = set()
    for index in reversed(indices):
        wanted = [path for path in index.shapes if path not in asked]
        try:
            fields |= read_fields(index.path, wanted) if wanted else {}
        except (OSError, UnreadableFileError) as error:
            skip(index.path, error)
            continue
        asked.update(wanted)
    return fields


def _same(index: Index, path: str, field: Field, axes: Axes) -> bool:
    if index.shapes.get(path) != field.shape:
        return False
    return all(dim in index.axes and np.array_equal(index.axes[dim][1], axes[dim][1]) for dim in field.dims)


def _scalars(indices: Sequence[Index]) -> Variables:
    variables: Variables = {}
    present = {name: words for name, words in PARTICULARS.items() if any(name in index.scalars for index in indices)}
    for name, (units, long_name) in (DIAGNOSTICS | COSTS | present).items():
        values = [index.scalars.get(name, np.nan) for index in indices]
        variables[name] = xr.Variable("step", values, {"units": units, "long_name": long_name})
    counts = {
        "num_chains": ([len(index.chain_ids) for index in indices], "chains that did not diverge"),
        "num_divergences": ([len(index.divergences) for index in indices], "chains that diverged and were left out"),
    }
    for name, (values, long_name) in counts.items():
        variables[name] = xr.Variable("step", values, {"units": "1", "long_name": long_name})
    return variables


def _traces(indices: Sequence[Index]) -> Variables:
    chains = sorted({chain for index in indices for chain in index.chain_ids})
    draws = max(trace.shape[1] for index in indices for trace in index.traces.values())
    rows = {chain: row for row, chain in enumerate(chains)}
    variables: Variables = {}
    words = {"loss": ("nat", "mean train loss at each draw"), "distance": ("1", "distance from the snapshot, |w - w*|")}
    for name, (units, long_name) in words.items():
        values = np.full((len(indices), len(chains), draws), np.nan)
        for position, index in enumerate(indices):
            trace = index.traces[name]
            values[position, [rows[chain] for chain in index.chain_ids], : trace.shape[1]] = trace
        attrs = {"units": units, "long_name": long_name}
        variables[f"{name}_trace"] = xr.Variable(("step", "chain", "draw"), values, attrs)
    return variables | {"chain": xr.Variable("chain", chains), "draw": xr.Variable("draw", np.arange(draws))}


def _metrics(indices: Sequence[Index]) -> Variables:
    names = sorted({name for index in indices for name in index.metrics})
    if not names:
        return {}
    values = [[index.metrics.get(name, np.nan) for name in names] for index in indices]
    words = {"long_name": "numbers of the training run at each step"}
    metric = xr.Variable("metric", np.array(names, dtype=object))
    return {"metrics": xr.Variable(("step", "metric"), values, words), "metric": metric}


def _texts(indices: Sequence[Index]) -> Variables:
    columns = {
        "divergences": ["\n".join(index.divergences) for index in indices],
        "notes": ["\n".join(index.notes) for index in indices],
        "settings_json": [index.settings for index in indices],
        "verdict": [index.verdict for index in indices],
        "verdict_reason": [index.reason for index in indices],
    }
    return {name: xr.Variable("step", np.array(values, dtype=object)) for name, values in columns.items()}
