"""Influence over the whole training of a run, or over any part of it, from its dumps."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool

from bif_lightning.archive.read.integrated_file import IntegratedFile, open_integrated, read_stamp, read_sum
from bif_lightning.archive.read.lazy import origin
from bif_lightning.archive.read.quantities import Quantity, variable
from bif_lightning.archive.schema import LOSS
from bif_lightning.exceptions import UnreadableFileError
from bif_lightning.results.estimate import CORRELATION_SIGN
from bif_lightning.results.integrated import INTEGRATED_SIGN, WITHOUT_SCALE, IntegratedInfluence

_CELLS = 1 << 24  # most entries of a matrix in memory: eight float64 arrays of them take 1 GiB
_NAMED = 10  # most columns that a note names


def integrated(
    run: xr.Dataset,
    steps: Sequence[int] | slice | None = None,
    *,
    since: int | None = None,
    before: int | None = None,
    epochs: Sequence[int] | slice | int | None = None,
    by: Quantity = "influence",
    observable: str = LOSS,
) -> xr.Dataset:
    """Sum the influence of each train example on each query over the snapshots of a training.

        I[i, j] = Σ_t B_t[i, j] / sd_i(B_t[i, j]),

    where B_t is the influence at step t, and each query is standardized at each snapshot. Whether the sum predicts
    retraining better than the last snapshot depends on the choice of snapshots (docs/concepts/whole_training.md):
    spread them over the training, as `num_snapshots` of the callback does. Sums over parts of a training show *when* an
    example had influence. The parts `before` and `since` a step add up to the whole, unless a column of one part
    repeats a column of the other. Divide by `snapshots` to compare parts of different length.

    A column that is bitwise the same at several steps is counted once, at the first one; this occurs if weights do not
    change and snapshots use common random numbers. A column without variance over train examples has no scale: its
    snapshot is left out for that query, and `notes` says so. An entry that is NaN at one snapshot is NaN in the sum.
    One snapshot is in memory at a time, and a few columns at a time of large matrices. If
    `integrated.h5` holds the first of the snapshots, as is usual, only the others are read; this changes no bit.

    Args:
        run: a run from `open_run`; select queries with a list, as in `run.isel(query=[3])`.
        steps: steps of the snapshots, or a slice of steps that includes both ends; None for all.
        since, before: use snapshots with since <= step < before.
        epochs: epochs of the snapshots, or a slice of epochs that includes both ends.
        by: the matrix of the snapshots to sum.
        observable: name of an observable; the query losses by default.

    Returns:
        A dataset, in units of a column's standard deviation at a snapshot, with

        - `integrated` (train, query), the sum; its attribute `sign` gives the meaning of its sign, which is that of
          `by`;
        - `standard_error`: Monte Carlo error, Σ_t e_t/sd(B_t), a bound for any dependence between snapshots;
        - `moment_standard_error`: error from the choice of snapshots, √K times the standard deviation over the K
          snapshots; NaN with fewer than two;
        - `rank_agreement` (query): Spearman correlation of the sums over every second snapshot and over the others;
        - `top_overlap` (query): share of the 10 most helpful and 10 most harmful examples that both of these sums have;
        - `snapshots` (query): number of snapshots in the sum;
        - attributes `steps` (a list), `by`, `observable` and `notes`.

        The last axis is `<observable>_column` for an observable with columns of its own.

    Raises:
        ValueError: no snapshot is selected, the quantity or observable is unknown, or the run lacks its step or query
            axis.

    >>> from bif_lightning import integrated, open_run
    >>> whole = integrated(open_run(folder))  # two snapshots of the same weights
    >>> whole.attrs["steps"], whole.integrated.shape, set(whole.snapshots.values.tolist())
    ([100, 200], (24, 6), {1})
    """
    name = variable(run, by, observable)
    dims = run[name].dims
    if len(dims) != 3:
        raise ValueError(f"{name} of the run has the axes {', '.join(map(str, dims))}; select with lists: query=[3]")
    chosen = _chosen(run, steps, since, before, epochs)
    axis = str(dims[2])
    parts = [part for _, part in summed(run, name, chosen)]
    attrs = {
        "steps": run["step"].values[chosen].tolist(),
        "by": by,
        "observable": observable,
        "notes": list(_notes(run, chosen, axis, _joined(each.status == WITHOUT_SCALE for each in parts))),
        "directory": run.attrs.get("directory", ""),
    }
    sign = CORRELATION_SIGN if by == "correlation" else INTEGRATED_SIGN
    axes = {dim: run[dim] for dim in dims[1:]} | {n: c for n, c in run.coords.items() if set(c.dims) <= set(dims[1:])}
    return xr.Dataset(_variables(parts, dims[1:], sign), axes, attrs)


def summed(
    run: xr.Dataset, name: str, chosen: Sequence[int] | None = None
) -> Iterator[tuple[xr.Dataset, IntegratedInfluence]]:
    """The sum over snapshots, a few columns of large matrices at a time, each beside the part of the run it is of.

    Args:
        run: the run.
        name: of the matrix.
        chosen: positions of the snapshots, in the order of their steps; None for all.
    """
    chosen = _chosen(run, None, None, None, None) if chosen is None else chosen
    axis, (train, query) = str(run[name].dims[2]), run[name].shape[1:]
    width = max(_CELLS // max(train, 1), 1)
    known = _beginning(run, name, chosen)
    for start in range(0, max(query, 1), width):
        part = run.isel({axis: slice(start, start + width)})
        yield part, _sum(part, name, chosen, known)


def _chosen(
    run: xr.Dataset,
    steps: Sequence[int] | slice | None,
    since: int | None,
    before: int | None,
    epochs: Sequence[int] | slice | int | None,
) -> list[int]:
    """Positions of the selected snapshots, sorted by step."""
    known: list[int] = run["step"].values.tolist()
    if steps is not None and not isinstance(steps, slice) and (missing := sorted(set(steps) - set(known))):
        raise ValueError(f"the run has no step {', '.join(map(str, missing))}; it has {', '.join(map(str, known))}")
    at_epochs: list[int] = run["epoch"].values.tolist() if epochs is not None else known
    found = [
        at
        for at, (step, epoch) in enumerate(zip(known, at_epochs, strict=True))
        if _within(step, steps)
        and (since is None or step >= since)
        and (before is None or step < before)
        and _within(epoch, epochs)
    ]
    if not found:
        asked = {"steps": steps, "since": since, "before": before, "epochs": epochs}
        words = ", ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
        raise ValueError(f"no snapshot of the run has {words}; its steps are {', '.join(map(str, known))}")
    return sorted(found, key=lambda at: known[at])


def _within(value: int, wanted: Sequence[int] | slice | int | None) -> bool:
    if wanted is None or isinstance(wanted, int):
        return wanted is None or value == wanted
    if not isinstance(wanted, slice):
        return value in wanted
    if wanted.step is not None:
        raise ValueError(f"{wanted} has a stride; give a slice of first and last, or a list")
    return (wanted.start is None or value >= wanted.start) and (wanted.stop is None or value <= wanted.stop)


def _beginning(run: xr.Dataset, name: str, chosen: Sequence[int]) -> IntegratedFile | None:
    """The file of the run, if it holds the first of these snapshots, whole and as they are on disk."""
    at = origin(run[name].variable) if name == "influence" else None
    if at is None:
        return None
    files = [path for each in chosen if (path := at.paths[each]) is not None]
    known = open_integrated(files[0].parent) if len(files) == len(chosen) else None
    # Of some of the train examples, columns have another scale.
    if known is None or known.shape != at.shape or not np.array_equal(at.positions[0], np.arange(at.shape[0])):
        return None
    try:
        return known if known.begins([read_stamp(path) for path in files[: len(known.steps)]]) else None
    except (OSError, UnreadableFileError):
        return None


def _sum(run: xr.Dataset, name: str, chosen: Sequence[int], known: IntegratedFile | None) -> IntegratedInfluence:
    found = _known_sum(run, name, known) or IntegratedInfluence.zeros(*run[name].shape[1:])
    for at in chosen[len(found.steps) :]:
        snapshot = run[[name, f"{name}_standard_error"]].isel(step=at)
        found.push(int(run["step"][at]), snapshot[name].values, snapshot[f"{name}_standard_error"].values)
    return found


def _known_sum(run: xr.Dataset, name: str, known: IntegratedFile | None) -> IntegratedInfluence | None:
    at = None if known is None else origin(run[name].variable)
    if known is None or at is None:
        return None
    try:
        return read_sum(known, at.positions[1])
    except (OSError, UnreadableFileError):  # replaced by a training that goes on: its dumps are there
        return None


def _variables(parts: Sequence[IntegratedInfluence], dims: Sequence[Any], sign: str) -> dict[str, Any]:
    units = {"units": "1"}
    return {
        "integrated": (
            dims, _joined(each.influence for each in parts),
            units | {"sign": sign, "long_name": "influence summed over snapshots, in standard deviations of a column"},
        ),
        "standard_error": (
            dims, _joined(each.standard_error for each in parts),
            units | {"long_name": "Monte Carlo standard error of the sum, for any dependence between snapshots"},
        ),
        "moment_standard_error": (
            dims, _joined(each.moment_standard_error for each in parts),
            units | {"long_name": "standard error from the choice of snapshots, from their standard deviation"},
        ),
        "rank_agreement": (
            dims[1:], _joined(each.rank_agreement for each in parts),
            units | {"long_name": "rank correlation of the sums over every second snapshot and over the others"},
        ),
        "top_overlap": (
            dims[1:], _joined(each.top_overlap for each in parts),
            units | {"long_name": "share of most helpful and most harmful examples that both halves have"},
        ),
        "snapshots": (dims[1:], _joined(each.counts for each in parts), units | {"long_name": "number in the sum"}),
    }  # fmt: skip


def _joined(blocks: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(blocks), -1)


def _notes(
    run: xr.Dataset, chosen: Sequence[int], axis: str, left: Bool[np.ndarray, "snapshot query"]
) -> Iterator[str]:
    for at, row in zip(chosen, left, strict=True):
        columns = run[axis].values[row].tolist()
        if columns:
            more = f" and {len(columns) - _NAMED} more" * (len(columns) > _NAMED)
            yield (
                f"step {int(run['step'][at])} is left out of {axis} {', '.join(map(str, columns[:_NAMED]))}{more}: "
                "these columns do not vary over train examples, or are not finite"
            )
