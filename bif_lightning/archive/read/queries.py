"""Queries of a run: the examples that help or hurt most, trajectories, means by label, and changes."""

import difflib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from bif_lightning.archive.read.examples import read_samples
from bif_lightning.archive.read.over_training import integrated
from bif_lightning.archive.read.quantities import Quantity, check_quantity, variable
from bif_lightning.archive.schema import LOSS, SAMPLES_FILE, class_name
from bif_lightning.exceptions import SkippedDumpWarning, UnreadableFileError
from bif_lightning.results.bands import CLEAR, found_changes, simultaneous
from bif_lightning.results.examples import Samples
from bif_lightning.results.integrated import LEAST_SNAPSHOTS


def top(
    run: xr.Dataset,
    query: int | str,
    k: int = 10,
    *,
    step: int | None = None,
    by: Quantity | Literal["integrated"] | None = None,
    observable: str = LOSS,
) -> pd.DataFrame:
    """Find the k train examples that help a query most, and the k that hurt it most.

    Runs with at least five snapshots are ranked by their influence over the whole training (`integrated`); `step` or
    `by` select a single snapshot. In retraining tests, sums over five or eight spread snapshots were mostly better than
    the last one, and sums over three were not (docs/concepts/whole_training.md).

    An example helps if more weight on it lowers the query's loss: influence below 0, correlation above 0. Fewer than k
    rows are returned if fewer examples have that sign. For observables other than the loss, lower values need not be
    better, so `effect` is "lowers" or "raises".

    Args:
        run: a run from `open_run`.
        query: row number or id of the query, or name or number of a column of the observable.
        k: number of rows of each kind.
        step: a step of the run; None uses all steps, or the last one if `by` is a quantity of one snapshot.
        by: "integrated", or a quantity of one snapshot: "influence" ranks better, "correlation" compares better over
            steps. None uses "integrated" with at least five snapshots and no `step`, otherwise "influence".
        observable: name of an observable; the query losses by default.

    Returns:
        Table with the columns rank (1 = largest effect), effect, train (row number), id, label (class name or None),
        text (if samples.h5 has texts), value, standard_error, and quantity (the `by` in use). "integrated" adds
        snapshot and snapshot_standard_error, the influence at the last step. The attribute `steps` lists the steps in
        use.

    Raises:
        ValueError: the query, step, quantity or observable is unknown (the message lists the nearest ones), or the dump
            of the step cannot be read.

    >>> from bif_lightning import open_run, top
    >>> table = top(open_run(folder), query=3, k=2)
    >>> list(table.effect), list(table.columns)[:4]
    (['helps', 'helps', 'hurts', 'hurts'], ['rank', 'effect', 'train', 'id'])
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    by = by or default_quantity(run, step)
    name = variable(run, "influence" if by == "integrated" else by, observable)
    at, axis = at_step(run, step), str(run[name].dims[-1])
    place = position(run, axis, query)
    last = run.isel(step=at)[[name, f"{name}_standard_error"]].isel({axis: place})
    columns = {"value": last[name].values, "standard_error": last[f"{name}_standard_error"].values}
    where = f"at step {int(run.step[at])}"
    if by == "integrated":
        if step is not None:
            raise ValueError(f"step is {step}, but by='integrated' is over all steps; leave one of them out")
        whole = integrated(run.isel({axis: [place]}), observable=observable).isel({axis: 0})
        beside = {"snapshot": columns["value"], "snapshot_standard_error": columns["standard_error"]}
        columns = {"value": whole["integrated"].values, "standard_error": whole["standard_error"].values, **beside}
        where = "or has no variance, at each step"
    values = columns["value"]
    if np.isnan(values).all():
        raise ValueError(f"{name} of {axis} {query!r} is NaN for every train example {where}")
    rows, ranks, lowers = _ends(-values if by == "correlation" else values, k)
    words = ("helps", "hurts") if observable == LOSS else ("lowers", "raises")
    table = pd.DataFrame(
        {"rank": ranks, "effect": np.where(lowers, *words)}
        | who(run, rows)
        | {each: column[rows] for each, column in columns.items()}
    )
    table.insert(list(table).index("standard_error") + 1, "quantity", by)
    table.attrs["steps"] = run["step"].values.tolist() if by == "integrated" else [int(run["step"][at])]
    return table


def default_quantity(run: xr.Dataset, step: int | None) -> Literal["integrated", "influence"]:
    """The default quantity of `top`: over the whole training if there are enough snapshots."""
    return "integrated" if step is None and run["step"].size >= LEAST_SNAPSHOTS else "influence"


def _ends(direction: np.ndarray, k: int) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Rows of the k most negative and then the k most positive values, their ranks, and which are negative.

    A negative value means that more weight on the example lowers the observable.
    """
    order = np.argsort(direction, kind="stable")
    lowers = [row for row in order if direction[row] < 0][:k]
    raises = [row for row in order[::-1] if direction[row] > 0][:k]
    ranks = [*range(1, len(lowers) + 1), *range(1, len(raises) + 1)]
    rows = np.array([*lowers, *raises], dtype=np.int64)
    return rows, ranks, np.arange(len(rows)) < len(lowers)


def trajectory(run: xr.Dataset, train: int | str, query: int | str, by: Quantity = "correlation") -> pd.DataFrame:
    """The influence of one train example on one query's loss over training.

    Args:
        run: a run from `open_run`.
        train, query: row number or id of each.
        by: "correlation" can be compared over steps; "influence" scales with the local curvature.

    Returns:
        Table with one row for each step and the columns step, value, standard_error, low, high, band_low, band_high.
        From low to high is the 95 % interval of the Monte Carlo error at the step alone. The band covers all steps
        simultaneously with 95 % (Šidák); use it to judge changes over training.

    Raises:
        ValueError: the example or quantity is unknown; the message lists the nearest ones.

    >>> from bif_lightning import open_run, trajectory
    >>> curve = trajectory(open_run(folder), train=0, query="query-3")
    >>> curve.step.tolist(), bool((curve.band_low < curve.low).all())
    ([100, 200], True)
    """
    name = variable(run, by, LOSS)
    pair = {"train": position(run, "train", train), "query": position(run, "query", query)}
    chosen = run[[name, f"{name}_standard_error"]].isel(pair)
    value, error = chosen[name].values, chosen[f"{name}_standard_error"].values
    wide = simultaneous(int(np.isfinite(error).sum()))
    return pd.DataFrame(
        {
            "step": run["step"].values,
            "value": value,
            "standard_error": error,
            "low": value - CLEAR * error,
            "high": value + CLEAR * error,
            "band_low": value - wide * error,
            "band_high": value + wide * error,
        }
    )


def by_label(run: xr.Dataset, by: Quantity = "correlation") -> xr.Dataset:
    """Mean influence of the train examples of each label on the queries of each label, over training.

    Args:
        run: a run from `open_run`.
        by: "correlation" can be compared over steps; "influence" scales with the local curvature.

    Returns:
        `mean` and `standard_error`, each (step, train_label, query_label), with the coordinates train_label_name and
        query_label_name if names are known. The standard error is that of the mean, computed from its draws, since the
        entries that it averages are not independent.

    Raises:
        ValueError: the run has no label means, or the quantity is unknown.

    >>> from bif_lightning import by_label, open_run
    >>> means = by_label(open_run(folder))
    >>> means["mean"].dims, means.train_label_name.values.tolist()
    (('step', 'train_label', 'query_label'), ['cat', 'dog'])
    """
    check_quantity(by)
    if by not in ("influence", "correlation"):
        raise ValueError(f"label means exist for influence and correlation, not for {by}")
    name = f"label_{by}"
    if name not in run:
        raise ValueError(
            "the run has no label means: they are written if both train and query examples have labels. Pass describe= "
            "to the callback to give labels"
        )
    means = run[[name, f"{name}_standard_error"]].rename({name: "mean", f"{name}_standard_error": "standard_error"})
    means = means.drop_vars(["train_label", "query_label"], errors="ignore")
    names = {each: str(each).replace("_group", "_label") for each in means.variables if "_group" in str(each)}
    return means.rename(names)


def at_step(run: xr.Dataset, step: int | None) -> int:
    """Position of a step of the run; of the last one for None.

    Raises:
        ValueError: the run has no such step; the message lists the nearest ones, the nearest first.
    """
    steps: list[int] = np.atleast_1d(run["step"].values).tolist()
    if step is None:
        return len(steps) - 1
    if step not in steps:
        near = sorted(steps, key=lambda each: abs(each - step))[:5]
        raise ValueError(f"the run has no step {step}; the nearest are {', '.join(map(str, near))}")
    return steps.index(step)


def position(run: xr.Dataset, axis: str, key: int | str) -> int:
    """Position of an example by its row number or id, or of a column by its number or name.

    Raises:
        ValueError: there is none; the message lists the nearest ones.
    """
    if isinstance(key, str):
        names: list[str] = run[f"{axis}_id" if axis in ("train", "query") else axis].values.tolist()
        if key in names:
            return names.index(key)
        near = difflib.get_close_matches(key, names, n=5, cutoff=0) or names[:5]
        raise ValueError(f"no {axis} is called {key!r}; the nearest are {', '.join(map(repr, near))}")
    rows: list[int] = run[axis].values.tolist() if axis in ("train", "query") else list(range(run.sizes[axis]))
    if key in rows:
        return rows.index(key)
    if rows == list(range(len(rows))):
        raise ValueError(
            f"no {axis} has the number {key}: there are {len(rows)}, with the numbers 0 to {len(rows) - 1}"
        )
    near_rows = sorted(rows, key=lambda each: abs(each - key))[:5]
    raise ValueError(f"no {axis} has the number {key}; the nearest are {', '.join(map(str, near_rows))}")


def who(run: xr.Dataset, rows: np.ndarray) -> dict[str, Any]:
    """Columns that say who these train examples are: train, id, label, and text where there are texts."""
    numbers: list[int] = run["train"].values[rows].tolist()
    samples = _train_samples(run)
    names = None if samples is None else samples.label_names
    who: dict[str, Any] = {"train": numbers, "id": run["train_id"].values[rows]}
    labels = run["train_label"].values[rows].tolist() if "train_label" in run.coords else [-1] * len(rows)
    who["label"] = pd.Series(_label_words(labels, names), dtype=object)
    if samples is not None and samples.texts is not None:
        who["text"] = [samples.texts[number] for number in numbers]
    return who


def _label_words(labels: Sequence[int], names: tuple[str, ...] | None) -> list[str | None]:
    return [None if label < 0 else class_name(names, label) for label in labels]


def _train_samples(run: xr.Dataset) -> Samples | None:
    path = Path(run.attrs.get("directory", "")) / SAMPLES_FILE
    if not path.exists():
        return None
    try:
        return read_samples(path, thumbnails=False)[0]
    except (OSError, UnreadableFileError) as error:
        warnings.warn(f"texts and label names are missing: {error}", SkippedDumpWarning, stacklevel=4)
        return None


def changes(run: xr.Dataset, train: int | str, query: int | str, by: Quantity = "correlation") -> pd.DataFrame:
    """Find significant changes of the influence of one train example on one query's loss over training.

    All steps are judged together by the simultaneous band of `trajectory`: a run without changes shows one with a
    probability of at most 5 %, for any number of steps.

    Args:
        run: a run from `open_run`.
        train, query: row number or id of each.
        by: "correlation" can be compared over steps; "influence" scales with the local curvature.

    Returns:
        Table with the columns kind, step, value, before, after, in the order of steps. A "flip" is a step whose band is
        on the other side of 0 than the band at `before`, the last earlier step whose band excludes 0. A "peak" (or
        "trough") is the highest (lowest) step between `before` and `after`, whose bands are below (above) its own.
        `after` of a flip is the step itself.

    Raises:
        ValueError: the example or quantity is unknown; the message lists the nearest ones.

    >>> from bif_lightning import changes, open_run
    >>> found = changes(open_run(folder), train=0, query=3)  # of two equal dumps
    >>> len(found), list(found.columns)
    (0, ['kind', 'step', 'value', 'before', 'after'])
    """
    of = trajectory(run, train, query, by)
    arrays = (of[name].to_numpy(np.float64) for name in ("value", "band_low", "band_high"))
    return pd.DataFrame(
        found_changes(of["step"].tolist(), *arrays), columns=["kind", "step", "value", "before", "after"]
    )
