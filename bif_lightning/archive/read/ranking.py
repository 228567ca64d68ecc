"""The train examples of a run, ranked by their effect on many queries."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float, Int

from bif_lightning.archive.read.drawn import draws_behind
from bif_lightning.archive.read.lazy import origin
from bif_lightning.archive.read.over_training import summed
from bif_lightning.archive.read.quantities import Quantity, variable
from bif_lightning.archive.read.queries import at_step, default_quantity, position, who
from bif_lightning.archive.schema import LOSS
from bif_lightning.results.integrated import COUNTED, IntegratedInfluence, deviations
from bif_lightning.results.ranking import Aggregate, aggregate, combine, q_values
from bif_lightning.statistics.aggregate import mean_error

EFFECT_SIGN = "effect = what more weight on the train example does. Of a query's loss, positive = it falls = it helps."
BOUND, DRAWN = (
    "mean of the standard errors over the queries, a bound for any dependence between them",
    "measured of the mean over the queries, from the stored draws",
)
"""How the standard error of an effect is known."""

Chosen = int | str | slice | Sequence[int | str] | np.ndarray | xr.DataArray | None


def ranking(
    run: xr.Dataset,
    queries: Chosen = None,
    *,
    step: int | None = None,
    by: Quantity | Literal["integrated"] | None = None,
    observable: str = LOSS,
) -> pd.DataFrame:
    """Rank all train examples by their mean effect on all queries, or on chosen ones: which hurt, and which help?

        E[i] = Σ_j s·B[i, j]/q,

    with B the quantity `by`, q the number of queries, and the sign s that makes what helps positive (−1 of influence,
    +1 of correlation). Of the influence, E[i] is that on the mean loss of the queries.

    Errors of different queries come from the same draws. Where the dump of a step stores its draws
    (`store_traces=True`; SGLD and Pairs), the standard error is that of the mean itself, in batches of draws.
    Otherwise it is Σ_j e[i, j]/q, a bound for any dependence between the queries, which is too large where their errors
    are nearly independent. The attribute `error` says which. Over the whole training it is that bound, summed over
    snapshots; `moment_standard_error` comes from the spread of E over the snapshots, √(K/(K − 1)·Σ_t (E_t − Ē)²), and
    so holds any dependence between queries.

    Args:
        run: a run from `open_run`.
        queries: row numbers or ids, one of them, a slice of positions, or a mask, as `run.query_label == 7`; None for
            all. Of an observable with columns of its own, their numbers or names.
        step: a step of the run; None uses all steps, or the last one if `by` is a quantity of one snapshot.
        by: as in `top`: None uses "integrated" with at least five snapshots and no `step`, otherwise "influence".
        observable: name of an observable; the query losses by default. Above 0 then means that the example lowers it.

    Returns:
        Table with one row for each train example, the most harmful first, and the columns rank (1 = most harmful),
        train (row number), id, label (class name or None), text (if samples.h5 has texts), effect, standard_error,
        q_value (Benjamini & Hochberg over the train examples; q <= 0.05 holds at most 5 % false ones on average),
        share_hurt (share of the queries that it hurts), loss (its mean loss at the step, nat), quantity, and
        over_steps (its effect at each step of the run, a tuple; of "integrated", what each step adds to the sum).
        "integrated" adds moment_standard_error. Attributes: `steps`, `all_steps` (those of over_steps), `queries` (row
        numbers), `units`, `sign`, `error`.

    Raises:
        ValueError: no query is chosen, or a query, step, quantity or observable is unknown (the message lists the
            nearest ones), or the effects are unknown for every train example.

    >>> from bif_lightning import open_run, ranking
    >>> run = open_run(folder)
    >>> table = ranking(run, queries=run.query_label == run.query_label[0])
    >>> len(table), list(table.columns)[:5], table.effect.is_monotonic_increasing
    (24, ['rank', 'train', 'id', 'label', 'effect'], True)
    >>> harmful = table[(table.effect < 0) & (table.q_value <= 0.05)].id.tolist()
    """
    by = by or default_quantity(run, step)
    whole = by == "integrated"
    if whole and step is not None:
        raise ValueError(f"step is {step}, but by='integrated' is over all steps; leave one of them out")
    name = variable(run, "influence" if whole else by, observable)
    at, axis = at_step(run, step), str(run[name].dims[-1])
    places = _places(run, axis, queries)
    chosen = run.isel({axis: places})
    found = _over_training(chosen, name) if whole else _at_step(chosen, name, by, at, observable)
    if np.isnan(found.total.effect).all():
        where = "at each step" if whole else f"at step {int(run['step'][at])}"
        raise ValueError(f"{name} is unknown for every train example {where}: it is NaN, or does not vary")
    order = np.argsort(found.total.effect, kind="stable")
    table = pd.DataFrame(
        {"rank": np.arange(1, len(order) + 1)}
        | who(run, order)
        | {column: values[order] for column, values in _columns(run, found, at).items()}
    )
    table["quantity"] = by
    table["over_steps"] = [tuple(row) for row in found.over_steps[order].tolist()]
    every: list[int] = run["step"].values.tolist()
    table.attrs |= {
        "steps": every if whole else [every[at]],
        "all_steps": every,
        "queries": run[axis].values[places].tolist(),
        "units": "standard deviations" if whole else str(run[name].attrs.get("units", "")),
        "sign": EFFECT_SIGN,
        "error": found.error,
    }
    return table


@dataclass(frozen=True)
class _Found:
    """Attributes:
    total: what ranks.
    over_steps: effect at each step.
    error: how the standard error is known.
    moments: standard error from the choice of snapshots; None of a single one.
    """

    total: Aggregate
    over_steps: Float[np.ndarray, "train step"]
    error: str
    moments: Float[np.ndarray, " train"] | None = None


def _columns(run: xr.Dataset, found: _Found, at: int) -> Mapping[str, np.ndarray]:
    total = found.total
    more = {} if found.moments is None else {"moment_standard_error": found.moments}
    return {
        "effect": total.effect,
        "standard_error": total.standard_error,
        **more,
        "q_value": q_values(total.effect, total.standard_error),
        "share_hurt": total.share_hurt,
        "loss": run["train_loss"].isel(step=at).values,
    }


def _places(run: xr.Dataset, axis: str, queries: Chosen) -> Int[np.ndarray, " query"]:
    """Positions of the chosen queries, each once, in the order in which they were given."""
    size = run.sizes[axis]
    if queries is None or isinstance(queries, slice):
        places = np.arange(size)[queries or slice(None)]
    elif isinstance(queries, int | str | np.integer):
        places = np.array([position(run, axis, queries if isinstance(queries, str) else int(queries))])
    else:
        places = _listed(run, axis, queries, size)
    if not len(places):
        raise ValueError(f"no {axis} is chosen; the run has {size}")
    return places


def _listed(run: xr.Dataset, axis: str, queries: Iterable[Any], size: int) -> Int[np.ndarray, " query"]:
    values = np.asarray(queries) if isinstance(queries, np.ndarray | xr.DataArray) else np.array(list(queries), object)
    if values.ndim != 1:
        raise ValueError(f"queries has {values.ndim} axes; give a list, or a mask with an entry for each query")
    if values.dtype == bool or (len(values) and all(isinstance(each, bool) for each in values.tolist())):
        if len(values) != size:
            raise ValueError(f"the mask of queries has {len(values)} entries, and the run has {size}")
        return np.flatnonzero(values.astype(bool))
    given = [each if isinstance(each, str) else int(each) for each in values.tolist()]
    return np.array([position(run, axis, each) for each in dict.fromkeys(given)], np.int64)


def _at_step(run: xr.Dataset, name: str, by: str, at: int, observable: str) -> _Found:
    sign = 1 if by == "correlation" else -1
    effects = [
        aggregate(sign * run[name].isel(step=each).values, _none(run, name)) for each in range(run.sizes["step"])
    ]
    last = run[[name, f"{name}_standard_error"]].isel(step=at)
    total = aggregate(sign * last[name].values, last[f"{name}_standard_error"].values)
    measured = _drawn(run, name, by, at, observable)
    if measured is not None:
        total = replace(total, standard_error=measured)
    return _Found(total, np.stack([each.effect for each in effects], 1), BOUND if measured is None else DRAWN)


def _none(run: xr.Dataset, name: str) -> np.ndarray:
    return np.broadcast_to(np.float32(0), run[name].shape[1:])


def _drawn(run: xr.Dataset, name: str, by: str, at: int, observable: str) -> Float[np.ndarray, " train"] | None:
    """Measured from the draws of a step, where the run is on disk and its dump keeps them."""
    of = origin(run[name].variable)
    path = None if of is None else of.paths[at]
    if of is None or path is None or by not in ("influence", "correlation"):
        return None
    train, columns = (np.atleast_1d(each) for each in of.positions)
    draws = draws_behind(path, observable, train, columns)
    return None if draws is None else mean_error(draws, by)


def _over_training(run: xr.Dataset, name: str) -> _Found:
    """Means over queries of the sums over snapshots, and what each snapshot adds."""
    parts: list[Aggregate] = []
    over_steps = np.zeros((run.sizes["train"], run.sizes["step"]))
    times = np.zeros(run.sizes["step"], bool)
    columns = 0
    for part, whole in summed(run, name):
        known = whole.counts > 0
        parts.append(aggregate(-whole.influence[:, known], whole.standard_error[:, known]))
        columns += int(known.sum())
        for at, counted in _counted(part, whole):
            times[at] |= bool(counted.any())
            over_steps[:, at] += added(part[name].isel(step=at).values, counted)
    over_steps /= columns or np.nan
    return _Found(combine(parts), over_steps, f"{BOUND}, and between snapshots", scatter(over_steps[:, times]))


def _counted(run: xr.Dataset, whole: IntegratedInfluence) -> Iterable[tuple[int, Bool[np.ndarray, " query"]]]:
    """Of each step of a run, by its position: which of its columns are in the sum."""
    places = {step: at for at, step in enumerate(run["step"].values.tolist())}
    return [(places[step], row == COUNTED) for step, row in zip(whole.steps, whole.status, strict=True)]


def added(
    influence: Float[np.ndarray, "train query"], counted: Bool[np.ndarray, " query"]
) -> Float[np.ndarray, " train"]:
    """What a snapshot adds to the sum over the training, as an effect: −Σ_j B[i, j]/sd_i(B[i, j]) over its columns."""
    values = np.asarray(influence[:, counted], np.float64)
    return -(values / deviations(values)).sum(1)


def scatter(over_steps: Float[np.ndarray, "train step"]) -> Float[np.ndarray, " train"]:
    """Standard error of a sum over K snapshots from their choice, √(K/(K − 1)·Σ_t (E_t − Ē)²); NaN of a single one."""
    count = over_steps.shape[1]
    if count < 2:
        return np.full(len(over_steps), np.nan)
    return np.sqrt(count / (count - 1) * ((over_steps - over_steps.mean(1, keepdims=True)) ** 2).sum(1))
