"""Reports on a run for the command line: as plain data (the JSON of `--json`), and as text made from that."""

import math
from collections.abc import Iterator, Mapping, Sequence
from textwrap import fill
from typing import Any, Literal

import numpy as np
import xarray as xr

from bif_lightning.archive.read import by_label, integrated, top
from bif_lightning.archive.read.quantities import Quantity
from bif_lightning.archive.read.queries import at_step, default_quantity
from bif_lightning.commands.terminal import number, plain, table, with_error
from bif_lightning.results.bands import is_clear
from bif_lightning.results.estimate import CONDITIONED_SIGN, CORRELATION_SIGN, INFLUENCE_SIGN
from bif_lightning.results.integrated import INTEGRATED_SIGN, LEAST_SNAPSHOTS

_SIGNS = {
    "integrated": INTEGRATED_SIGN,
    "influence": INFLUENCE_SIGN,
    "correlation": CORRELATION_SIGN,
    "conditioned": CONDITIONED_SIGN,
    "influence_draws": INFLUENCE_SIGN,
}
_MOST_LABELS = 12  # a wider table wraps on a usual terminal
_MOST_ERRORS = 5  # and so does one of values with their errors
_DIAGNOSTICS = (
    "snapshot_loss", "llc", "llc_standard_error", "rhat", "ess", "drift", "score_agreement", "group_agreement",
    "noise_ratio", "llc_ratio", "control_agreement", "seconds",
)  # fmt: skip
_MOST_STEPS = 20  # of a longer run, these are spread over all
_MOST_DOUBTS = 3  # written out; of others, the steps
_WIDTH = 110
_IN_DOUBT = "?"
_COLUMNS = """loss at w*  mean train loss at the snapshot, nat
LLC         local learning coefficient of the snapshot, nat, ± standard error
R-hat       near 1: the chains agree on the mean loss; this says nothing of the influence
ESS         effective number of draws behind the mean loss
drift       change of the mean loss from first to second half, in standard errors; beyond ±3 chains still move
ranks       rank correlation of the influence between two halves of the chains, or, of Subspace, of the examples
            behind its curvature: 1 = same order, 0 = chance
groups      the same of the plain correlation: how far the halves agree on sums over groups of train examples
noise       minibatch variance over injected-noise variance; above 1 the draws are hotter than the posterior
LLC ratio   LLC over what the curvature at w* explains: 1 = quadratic, below 0 = drift, far above 1 = not local
control     rank agreement of the influence with that of noise alone, without data
chains      behind the numbers / started; those that diverged are left out"""


def summary(data: xr.Dataset, run: str, step: int | None = None) -> dict[str, Any]:
    """What a run holds: sizes, a dict for each step with its diagnostics, label means of the last step.

    Args:
        data: from `open_run`.
        run: what to call it.
        step: of the one snapshot to report; None for all.

    Raises:
        ValueError: the run has no such step.
    """
    steps: list[int] = data["step"].values.tolist()
    ranked_by = default_quantity(data, None)
    data = data if step is None else data.isel(step=[at_step(data, step)])
    columns = {name: data[name].values.tolist() for name in ("step", "epoch", *_DIAGNOSTICS) if name in data}
    for name in ("verdict", "verdict_reason"):
        columns[name] = data[name].values.tolist()
    columns["chains"] = data["num_chains"].values.tolist()
    columns["diverged"] = data["num_divergences"].values.tolist()
    for name in ("divergences", "notes"):
        columns[name] = [text.splitlines() for text in data[name].values.tolist()]
    names = [str(name) for name in data.data_vars]
    observables = [name.removesuffix("_influence") for name in names if name.endswith("_influence")]
    return {
        "run": run,
        "train": data.sizes["train"],
        "query": data.sizes["query"],
        "observables": ["loss", *(name for name in observables if name != "label")],
        "steps": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
        "labels": _label_means(data),
        "all_steps": steps,
        "ranked_by": ranked_by,
        "signs": dict(_SIGNS),
    }


def _label_means(data: xr.Dataset) -> dict[str, Any] | None:
    if "label_correlation" not in data:
        return None
    means = by_label(data).isel(step=-1)
    names: dict[str, list[Any]] = {}
    for side in ("train_label", "query_label"):
        known = f"{side}_name" if f"{side}_name" in means.coords else side
        names[side] = [str(name) for name in means[known].values.tolist()]
    return {
        "step": int(means["step"]),
        **names,
        "mean_correlation": means["mean"].values.tolist(),
        "standard_error": means["standard_error"].values.tolist(),
    }


def summary_text(summary: Mapping[str, Any], *, legend: bool = False) -> str:
    """The answer of `summary` as tables; with a legend of the columns, if asked for."""
    steps: list[dict[str, Any]] = summary["steps"]
    shown = [steps[at] for at in _spread(len(steps), _MOST_STEPS)]
    columns = _COLUMNS if legend else "--legend explains the columns"
    parts = [_heading(summary, len(shown)), _steps_table(shown), columns, _ranked_by(summary)]
    doubtful = [row for row in steps if row["verdict"] not in ("", "good")]
    parts += ["\n".join(_doubts(doubtful))] * bool(doubtful)
    happened = [f"step {row['step']}: {plain(text, 400)}" for row in shown for text in row["divergences"]]
    parts += ["\n".join(happened)] * bool(happened)
    notes = dict.fromkeys(plain(text, 400) for row in steps for text in row["notes"])
    parts += ["\n".join(f"note: {note}" for note in notes)] * bool(notes)
    if summary["labels"] is not None:
        parts.append(_labels_text(summary["labels"]))
    signs = summary["signs"].values() if legend else [CORRELATION_SIGN] * (summary["labels"] is not None)
    parts += ["\n".join(fill(sign, _WIDTH) for sign in signs)] * bool(signs)
    return "\n\n".join(parts)


def _spread(count: int, most: int) -> list[int]:
    """Positions of all, or of `most` that are evenly spread from the first to the last."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def _heading(summary: Mapping[str, Any], shown: int) -> str:
    count, total = len(summary["steps"]), len(summary["all_steps"])
    text = (
        f"{plain(summary['run'], 200)}: {summary['train']} train x {summary['query']} query examples, "
        f"{total} snapshot{'s' * (total != 1)}, influence on {plain(', '.join(summary['observables']), 200)}"
    )
    if count < total:
        return f"{text}\nshown is step {summary['steps'][0]['step']}"
    return text if shown == count else f"{text}\nshown are {shown} of them; --step shows a single one, --json all"


def _steps_table(steps: Sequence[Mapping[str, Any]]) -> str:
    """A row a step; columns that no step has a value for are left out."""
    columns = {
        "step": [str(row["step"]) for row in steps],
        "verdict": [row["verdict"] or "-" for row in steps],
        "loss at w*": [number(row.get("snapshot_loss"), 4) for row in steps],
        "LLC": [with_error(row.get("llc"), row.get("llc_standard_error")) for row in steps],
        "R-hat": [number(row.get("rhat")) for row in steps],
        "ESS": [number(row.get("ess")) for row in steps],
        "drift": [number(row.get("drift"), 2) for row in steps],
        "ranks": [number(row.get("score_agreement"), 2) for row in steps],
        "groups": [number(row.get("group_agreement"), 2) for row in steps],
        "noise": [number(row.get("noise_ratio"), 2) for row in steps],
        "LLC ratio": [number(row.get("llc_ratio"), 2) for row in steps],
        "control": [number(row.get("control_agreement"), 2) for row in steps],
        "chains": [f"{row['chains']}/{row['chains'] + row['diverged']}" for row in steps],
        "seconds": [number(row.get("seconds")) for row in steps],
    }
    known = {head: cells for head, cells in columns.items() if set(cells) != {"-"}}
    return table(list(known), list(zip(*known.values(), strict=True)))


def _doubts(doubtful: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Why snapshots are in doubt: of the last ones in full; of earlier ones, their steps by verdict."""
    for row in doubtful[-_MOST_DOUBTS:]:
        yield fill(f"step {row['step']}: {plain(row['verdict_reason'], 400)}", _WIDTH, subsequent_indent="  ")
    earlier = doubtful[:-_MOST_DOUBTS]
    for word in dict.fromkeys(row["verdict"] for row in earlier):
        steps = [str(row["step"]) for row in earlier if row["verdict"] == word]
        yield fill(f"also {word}: step {', '.join(steps)}; --step says why", _WIDTH, subsequent_indent="  ")


def _ranked_by(summary: Mapping[str, Any]) -> str:
    """What `bif-lightning top` ranks this run by."""
    steps: list[int] = summary["all_steps"]
    if summary["ranked_by"] == "integrated":
        by = f"its influence over the whole training, {len(steps)} snapshots"
    else:
        by = f"the influence at step {steps[-1]}; from {LEAST_SNAPSHOTS} snapshots on by that over the whole training"
    return fill(f"`bif-lightning top` ranks the run by {by}.", _WIDTH)


def _labels_text(labels: dict[str, Any]) -> str:
    rows, columns = labels["train_label"], labels["query_label"]
    title = f"Mean correlation by label at step {labels['step']} (rows train, columns query)"
    if max(len(rows), len(columns)) > _MOST_LABELS:
        return f"{title}: {len(rows)} x {len(columns)} labels are too many to print; --json holds them all"
    short = len(columns) > _MOST_ERRORS
    note = ", . = within 1.96 standard errors of 0; --json holds the errors" if short else ", ± standard error"
    cell, width = (_short_cell, 7) if short else (with_error, 16)
    body = [
        [plain(name, 16), *(cell(value, error) for value, error in zip(values, errors, strict=True))]
        for name, values, errors in zip(rows, labels["mean_correlation"], labels["standard_error"], strict=True)
    ]
    return f"{title}{note}\n{table(['', *(plain(name, width) for name in columns)], body, left=[''])}"


def _short_cell(value: float, error: float) -> str:
    return f"{value:+.2f}" if is_clear(value, error) else "."


def extremes(
    data: xr.Dataset,
    query: str,
    *,
    k: int,
    step: int | None,
    by: Quantity | Literal["integrated"] | None,
    observable: str,
) -> dict[str, Any]:
    """The train examples that act most on a query (see `archive.read.top`), with the question that they answer.

    Args:
        data: from `open_run`.
        query: row number of a query where there is such a row, else its id; of an observable with columns of
            its own, the number or name of one.
        k, step, by, observable: as `top` takes them.

    Raises:
        ValueError: an unknown query, step or observable.
    """
    by = by or default_quantity(data, step)
    matrix = "influence" if by == "integrated" else by
    name = matrix if observable == "loss" else f"{observable}_{matrix}"
    axis = str(data[name].dims[-1]) if name in data else "query"
    names = [str(each) for each in data["query_id" if axis == "query" else axis].values.tolist()]
    digits = query.isascii() and query.isdecimal()
    # Beyond the last row, digits can be an id; if they are none, the number is what is wrong.
    is_row = digits and (int(query) < data.sizes[axis] or query not in names)
    rows = top(data, int(query) if is_row else query, k, step=step, by=by, observable=observable)
    row = int(query) if is_row else names.index(query)
    at = data.isel(step=-1) if step is None else data.sel(step=step)
    whole = integrated(data.isel({axis: [row]}), observable=observable) if by == "integrated" else None
    return {
        "run": str(data.attrs["directory"]),
        "step": int(at["step"]),
        "steps": rows.attrs["steps"],
        "axis": axis,
        "query": row,
        "id": names[row],
        "observable": observable,
        "by": by,
        "units": "standard deviations" if whole is not None else str(data[name].attrs.get("units", "")),
        "sign": _SIGNS[by],
        "verdict": str(at["verdict_reason"].item()) if whole is None else _verdicts(data),
        "top_stability": _stability(at, row) if observable == "loss" and whole is None else None,
        "top_overlap": None if whole is None else _known(float(whole["top_overlap"].item())),
        "notes": [] if whole is None else whole.attrs["notes"],
        "examples": rows.drop(columns="quantity").to_dict("records"),
    }


def _verdicts(data: xr.Dataset) -> str:
    """How many snapshots of a run are in doubt; empty where none is."""
    words = [word for word in data["verdict"].values.tolist() if word not in ("", "good")]
    return f"{len(words)} of {data.sizes['step']} snapshots ({', '.join(dict.fromkeys(words))})" * bool(words)


def _stability(snapshot: xr.Dataset, row: int) -> float | None:
    return _known(float(snapshot["top_stability"][row])) if "top_stability" in snapshot else None


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def extremes_text(answer: Mapping[str, Any]) -> str:
    """The answer of `extremes` as a table."""
    examples: list[dict[str, Any]] = answer["examples"]
    units = "" if answer["units"] in ("", "1") else f", {answer['units']}"
    steps, is_whole = answer["steps"], answer["by"] == "integrated"
    at = f"over {len(steps)} snapshots, steps {steps[0]} to {steps[-1]}" if is_whole else f"at step {answer['step']}"
    by = "integrated influence" if is_whole else answer["by"]
    title = (
        f"{answer['axis']} {answer['query']} (id {plain(answer['id'])}) {at}: "
        f"{by} on {answer['observable']}{units}, ± {'bound on its ' * is_whole}standard error"
    )
    optional = [name for name in ("label", "text") if any(row.get(name) is not None for row in examples)]
    beside = [f"at step {answer['step']}"] * is_whole
    head = ["", "train", "id", answer["by"], "", *beside, *optional]
    rows = [
        [
            row["effect"],
            str(row["train"]),
            plain(row["id"], 30),
            with_error(row["value"], row["standard_error"]),
            _doubt(row["value"], row["standard_error"]),
            *[with_error(row.get("snapshot"), row.get("snapshot_standard_error"))] * is_whole,
            *(plain(str(row[name]), 24 if name == "label" else 60) for name in optional),
        ]
        for row in examples
    ]
    parts = [title, table(head, rows, left=["", "id", *optional]) if rows else _nothing(answer)]
    if any(row[4] for row in rows):
        parts.append(f"{_IN_DOUBT} = within 1.96 standard errors of 0: the sign is not known")
    return "\n\n".join([*parts, *_trust(answer), fill(answer["sign"], _WIDTH)])


def _nothing(answer: Mapping[str, Any]) -> str:
    """Why a table has no row: each value is 0."""
    what = "the loss of this query" if answer["observable"] == "loss" else answer["observable"]
    at = "at every draw of each snapshot" if answer["by"] == "integrated" else "at every draw of this snapshot"
    return f"None: no train example has an effect, as where {what} is the same {at}."


def _trust(answer: Mapping[str, Any]) -> Iterator[str]:
    """What is known of how far a ranking can be trusted, in paragraphs."""
    if answer["top_stability"] is not None:
        yield (
            "Of its 10 most helpful and 10 most harmful by half of the draws (of Subspace: of the examples behind its "
            f"curvature),\nthe other half finds {answer['top_stability']:.0%} too (by influence)."
        )
    if answer["top_overlap"] is not None:
        yield (
            "Of its 10 most helpful and 10 most harmful by every second snapshot, the other snapshots find "
            f"{answer['top_overlap']:.0%} too."
        )
    if answer["verdict"]:
        start = "Not good are" if answer["by"] == "integrated" else "The snapshot is"
        yield fill(f"{start} {plain(answer['verdict'], 400)}", _WIDTH)
    if answer["notes"]:
        yield "\n".join(fill(f"note: {plain(note, 400)}", _WIDTH) for note in answer["notes"])


def _doubt(value: float, error: float) -> str:
    return "" if is_clear(value, error) else _IN_DOUBT
