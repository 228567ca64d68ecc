"""The list of runs: sizes, matrices, and a line for each dump."""

import json
from collections.abc import Mapping
from typing import Any

from bif_lightning.archive.read.parts import Picked, read_parts
from bif_lightning.archive.schema import DUMP, SAMPLES
from bif_lightning.exceptions import UnreadableFileError
from bif_lightning.tensorboard.plugin.answers import Answer, RefusedError, as_json
from bif_lightning.tensorboard.plugin.examples import SIDES, Examples, examples_of
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.run_files import QUANTITIES, RunFiles, head

_ATTRS = ("global_step", "epoch", "created_utc", "verdict", "samples_sha256")
_SHOWN_NAMES = 4


def dump_lines(files: RunFiles, parameters: Parameters) -> Answer:
    """A line for each dump of these files: step, epoch, verdict; or why it cannot be read."""
    return as_json({"lines": [_line(files, step) for step in files.steps]})


def _line(files: RunFiles, step: int) -> Mapping[str, Any]:
    try:
        of = read_parts(files.dump(step), DUMP, attrs=_ATTRS, names=("chains/verdict",))
        if of.attrs.get("global_step") != step:
            raise UnreadableFileError(f"its attribute global_step is {of.attrs.get('global_step')}")
        return {
            "step": step,
            "epoch": of.attrs["epoch"],
            "verdict": of.attrs.get("verdict"),
            "verdict_text": of.values.get("chains/verdict"),
            "created": str(of.attrs.get("created_utc", "")),
            "samples": str(of.attrs["samples_sha256"]),
        }
    except (UnreadableFileError, OSError, LookupError, RefusedError) as error:
        return {"step": step, "why": str(error)}


def description(files: RunFiles, parameters: Parameters) -> Answer:
    """Describe a run from the dump of one step and the samples file."""
    step = files.step(parameters)
    of = head(files, step)
    shapes = of.shapes
    quantities = [quantity for quantity in QUANTITIES if quantity in shapes]
    observables = of.attrs.get("observables", ())
    return as_json(
        {
            "num_train": shapes["correlation"][0],
            "num_query": shapes["correlation"][1],
            "matrices": quantities,
            "observables": (names := [str(name) for name in observables if f"{name}_correlation" in shapes]),
            "own_columns": _with_own_columns(files, step, names),
            **_settings(of),
            **_described(files, step),
        }
    )


def _with_own_columns(files: RunFiles, step: int, observables: list[str]) -> list[str]:
    """The observables whose columns are not queries."""
    asked = {name: f"{name}_column" for name in observables}
    stored = read_parts(files.dump(step), DUMP, asked=asked.values()).present
    return [name for name, column in asked.items() if column in stored]


def _settings(of: Picked) -> dict[str, str]:
    try:
        settings: dict[str, Any] = json.loads(of.values["settings_json"])
        names: list[str] = list(map(str, settings["parameters"]))
        kind = str(settings["sampler"].get("kind", "SGLD"))
        weights = int(settings["num_weights"])
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return {"kind": "unknown", "parameters_text": "unknown"}
    shown = ", ".join(names[:_SHOWN_NAMES]) + (
        f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    )
    return {"kind": kind, "parameters_text": f"{weights:,} weights in {len(names)} tensors: {shown}"}


def _described(files: RunFiles, step: int) -> dict[str, Any]:
    of = examples_of(files)
    path = files.samples()
    asked = {f"{side}_thumbnail": f"{side}/thumbnail_offset" for side in SIDES}
    pictured = frozenset[str]() if path is None else read_parts(path, SAMPLES, asked=asked.values()).present
    parts = {"classes": "labels/correlation", "tokens": "tokens", "traces": "traces/train_loss"}
    stored = read_parts(files.dump(step), DUMP, asked=parts.values()).present
    has = {f"{side}_text": of.side(side).texts is not None for side in SIDES}
    has |= {f"{side}_label": of.side(side).labels is not None for side in SIDES}
    has |= {name: name_in in pictured for name, name_in in asked.items()}
    has |= {name: name_in in stored for name, name_in in parts.items()}
    return {"has": has, "sort_columns": _sortable(of)}


def _sortable(of: Examples) -> dict[str, list[str]]:
    """Names of the user's own columns, by side."""
    return {side: list(of.side(side).columns or {}) for side in SIDES}
