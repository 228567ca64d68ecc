"""Influence over the whole training of a run, or over any part of it, from its dumps."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool

from bif_lightning.archive.read.quantities import Quantity, variable
from bif_lightning.archive.schema import LOSS
from bif_lightning.results.estimate import CORRELATION_SIGN
from bif_lightning.results.integrated import (
    INTEGRATED_SIGN,
    DistinctColumns,
    IntegratedInfluence,
    rank_agreement,
    top_overlap,
)

_CELLS = 1 << 24  # of a matrix that are read at once: eight arrays of them in float64 are 1 GiB
_NAMED = 10  # columns that a note names


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
    """Influence of each train example on each query over a training, from all its snapshots or from some.

        I[i, j] = Σ_t B_t[i, j] / sd_i(B_t[i, j]),

    B_t the influence at step t, each query on its own scale at each snapshot. How far it predicts retraining better
    than the last snapshot depends on which snapshots there are (docs/concepts/whole_training.md): spread them over
    the training, as `num_snapshots` of the callback does. Parts of a training tell *when* an example acted, and add
    up: those `before` a step and `since` it make the whole, unless a column of one part repeats one of the other.
    Divide by `snapshots` to compare parts of different length.

    A snapshot counts once: a column that is bitwise the same at several steps, as of weights that stood still with
    common random numbers, is counted at the first. A column without variance over train examples has no scale: its
    snapshot is left out of that query, and `notes` says so. An entry that is NaN at one snapshot is NaN in the sum. One
    snapshot is in memory at a time, large matrices a few columns at a time.

    Args:
        run: from `open_run`; of some queries alone, `run.isel(query=[3])`.
        steps: the snapshots at these steps, or a slice of steps (both ends belong to it); None takes all.
        since, before: those with since <= step < before.
        epochs: those of these epochs, or of a slice of epochs (both ends belong to it).
        by: which matrix of the snapshots to sum.
        observable: name of an observable; the query losses by default.

    Returns:
        a dataset, in units of a column's standard deviation at a snapshot, with

        - `integrated` (train, query), the sum; its sign, which is that of `by`, is in its attribute `sign`;
        - `standard_error`: of the estimates, Σ_t e_t/sd(B_t), a bound that holds whatever their dependence;
        - `moment_standard_error`: of the choice of moments, √K times the standard deviation over the K snapshots;
          NaN of fewer than two;
        - `rank_agreement` (query): Spearman correlation of the sums over every second snapshot and over the others;
        - `top_overlap` (query): of the 10 most helpful and 10 most harmful by one of these halves, the share by the
          other;
        - `snapshots` (query): how many are in the sum;
        - attributes `steps` (a list), `by`, `observable` and `notes`.

        The last axis is `<observable>_column` where an observable has columns of its own.

    Raises:
        ValueError: no snapshot is chosen; an unknown quantity or observable; a run of one step or query alone.

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
    axis, (train, query) = str(dims[2]), run[name].shape[1:]
    width = max(_CELLS // max(train, 1), 1)
    parts = [
        _sum(run.isel({axis: slice(start, start + width)}), name, chosen) for start in range(0, max(query, 1), width)
    ]
    attrs = {
        "steps": run["step"].values[chosen].tolist(),
        "by": by,
        "observable": observable,
        "notes": list(_notes(run, chosen, axis, np.concatenate([left for _, _, left in parts], 1))),
        "directory": run.attrs.get("directory", ""),
    }
    sign = CORRELATION_SIGN if by == "correlation" else INTEGRATED_SIGN
    axes = {dim: run[dim] for dim in dims[1:]} | {n: c for n, c in run.coords.items() if set(c.dims) <= set(dims[1:])}
    return xr.Dataset(_variables(parts, dims[1:], sign), axes, attrs)


def _chosen(
    run: xr.Dataset,
    steps: Sequence[int] | slice | None,
    since: int | None,
    before: int | None,
    epochs: Sequence[int] | slice | int | None,
) -> list[int]:
    """Positions of the snapshots that are asked for, by step."""
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
        raise ValueError(f"{wanted} has a stride; give the first and the last, or a list")
    return (wanted.start is None or value >= wanted.start) and (wanted.stop is None or value <= wanted.stop)


Halves = tuple[IntegratedInfluence, IntegratedInfluence, Bool[np.ndarray, "snapshot query"]]


def _sum(run: xr.Dataset, name: str, chosen: Sequence[int]) -> Halves:
    """The sums over every second snapshot and over the others, and which columns of each had no scale."""
    shape = run[name].shape[1:]
    halves = IntegratedInfluence.zeros(*shape), IntegratedInfluence.zeros(*shape)
    known, left = DistinctColumns(), np.zeros((len(chosen), shape[1]), bool)
    for turn, at in enumerate(chosen):
        snapshot = run[[name, f"{name}_standard_error"]].isel(step=at)
        influence = snapshot[name].values
        new = known.new(influence)
        added = halves[turn % 2].push(
            int(run["step"][at]), influence, snapshot[f"{name}_standard_error"].values, counted=new
        )
        left[turn] = new & ~added
    return *halves, left


def _variables(parts: Sequence[Halves], dims: Sequence[Any], sign: str) -> dict[str, Any]:
    whole = [one.merge(other) for one, other, _ in parts]
    halves = [(one.influence, other.influence) for one, other, _ in parts]
    units = {"units": "1"}
    return {
        "integrated": (
            dims, _joined(each.influence for each in whole),
            units | {"sign": sign, "long_name": "influence summed over snapshots, in standard deviations of a column"},
        ),
        "standard_error": (
            dims, _joined(each.standard_error for each in whole),
            units | {"long_name": "of the estimates of the snapshots, whatever their dependence"},
        ),
        "moment_standard_error": (
            dims, _joined(each.moment_standard_error for each in whole),
            units | {"long_name": "of the choice of moments, from the spread over snapshots"},
        ),
        "rank_agreement": (
            dims[1:], _joined(rank_agreement(*pair) for pair in halves),
            units | {"long_name": "rank correlation of the sums over every second snapshot and over the others"},
        ),
        "top_overlap": (
            dims[1:], _joined(top_overlap(*pair) for pair in halves),
            units | {"long_name": "share of most helpful and most harmful examples that both halves find"},
        ),
        "snapshots": (dims[1:], _joined(each.counts for each in whole), units | {"long_name": "in the sum"}),
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
