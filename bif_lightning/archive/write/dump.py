"""Content of a dump: every dataset with its axes, units and description. Without h5py or files."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bif_lightning.archive.examples_file import SIDES, digest
from bif_lightning.archive.schema import DUMP, SAMPLES_FILE, VERSION, Content, Variable, string
from bif_lightning.archive.write import chains, matrices
from bif_lightning.archive.write.tokens import token_variables
from bif_lightning.results.estimate import Estimate
from bif_lightning.results.examples import Samples

_PLOT = {
    "NX_class": "NXdata",
    "signal": "correlation",
    "auxiliary_signals": ["influence"],
    "axes": ["train", "query"],
    "title": "Correlation of train and query losses over the posterior (positive = the train example helps)",
}
_CHAINS_PLOT = {
    "NX_class": "NXdata",
    "signal": "loss",
    "axes": ["chain", "draw"],
    "title": "Mean train loss at each draw, nat",
}


def dump_content(
    estimate: Estimate,
    *,
    train: Samples,
    query: Samples,
    attrs: Mapping[str, Any],
    metrics: Mapping[str, float],
    records: Mapping[str, Any],
    precision: str,
) -> Content:
    """Content of one dump.

    Args:
        estimate: the estimate.
        train, query: descriptions of the rows and columns.
        attrs: further root attributes (step, epoch, creator, time).
        metrics: numbers of the training run at this step, by name.
        records: values to store as JSON, each in `<name>_json` (hyperparameters, provenance); empty ones are left out.
        precision: "full", or "10bit" to round matrices and traces to 10 mantissa bits.

    Raises:
        ValueError: the name of an observable makes two datasets have the same name.
    """
    variables = [*_variables(estimate, train, query), *_records(estimate, records)]
    _check_names(variables)
    if precision == "10bit":
        variables = [replace(variable, rounded=_is_bulky(variable)) for variable in variables]
    root = _root(estimate, train, query, {variable.path for variable in variables})
    groups: dict[str, Mapping[str, Any]] = {"": root | {"precision": precision} | dict(attrs)}
    groups |= {"plot": _PLOT, "chains": _CHAINS_PLOT}
    if metrics:
        groups["metrics"] = {name: float(value) for name, value in metrics.items()}
    links = {f"plot/{name}": name for name in ("train", "query", "correlation", "influence")}
    return Content(variables=variables, attrs=groups, links=links)


def _variables(estimate: Estimate, train: Samples, query: Samples) -> Iterator[Variable]:
    yield from matrices.axes(train, query)
    yield from matrices.losses(estimate)
    for name, influence in estimate.observables.items():
        yield from matrices.observable(name, influence)
    yield from matrices.overview(estimate.correlation)
    if estimate.label_means is not None:
        yield from matrices.labels(estimate.label_means, train, query)
    yield from chains.chains(estimate)
    if estimate.top_stability is not None:
        yield chains.stability(estimate.top_stability)
    if estimate.divergences:
        yield from chains.divergences(estimate.divergences)
    if estimate.traces is not None:
        yield from chains.traces(estimate, estimate.traces)
    if estimate.tokens is not None:
        yield from token_variables(estimate, estimate.tokens)
    yield from chains.cost(estimate)


def _root(estimate: Estimate, train: Samples, query: Samples, present: set[str]) -> dict[str, Any]:
    coordinates = [f"{side}_{part}" for side in SIDES for part in ("id", "index", "label")]
    root: dict[str, Any] = {
        "schema": DUMP,
        "schema_version": VERSION,
        "NX_class": "NXroot",
        "default": "plot",
        "coordinates": " ".join(name for name in coordinates if name in present),
        "num_train": len(train),
        "num_query": len(query),
        "num_chains": len(estimate.chain_ids),
        "num_draws": int(estimate.loss_trace.shape[1]),
        "num_weights": estimate.num_weights,
        "verdict": estimate.verdict.word,
        "samples_file": SAMPLES_FILE,
        "samples_sha256": digest(train, query),
    }
    return root | ({"observables": list(estimate.observables)} if estimate.observables else {})


def _records(estimate: Estimate, records: Mapping[str, Any]) -> Iterator[Variable]:
    settings = estimate.settings() | {"parameters": estimate.parameters, "num_weights": estimate.num_weights}
    present = {name: value for name, value in (*records.items(), ("notes", estimate.notes)) if value}
    for name, value in {"settings": settings, **present}.items():
        text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False)
        yield Variable(path=f"{name}_json", dims=(), values=string(text), units=None, long_name=f"{name}, as JSON")


def plain(value: Any) -> Any:
    """Convert a value to JSON types; values other than mappings, sequences, numbers, booleans and strings become `str`.

    >>> plain({"path": ("a", 1, float("nan"))})
    {'path': ['a', 1, 'nan']}
    """
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _is_bulky(variable: Variable) -> bool:
    return variable.values.dtype == np.float32 and variable.path != "overview/block"


def _check_names(variables: Sequence[Variable]) -> None:
    seen: set[str] = set()
    for variable in variables:
        if variable.path in seen:
            raise ValueError(
                f"two datasets of the dump would be called {variable.path!r}; rename the observable that causes this "
                "(SPEC.md lists the reserved names)"
            )
        seen.add(variable.path)
