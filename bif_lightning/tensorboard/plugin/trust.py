"""Diagnostics over training, and the chains of one snapshot."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bif_lightning.archive.read.parts import read_parts
from bif_lightning.archive.schema import COSTS, DIAGNOSTICS, DUMP, PARTICULARS
from bif_lightning.exceptions import UnreadableFileError
from bif_lightning.results.verdict import LEAST_RELIABILITY, MOST_DRIFT, MOST_LLC, MOST_NOISE
from bif_lightning.tensorboard.plugin.answers import Answer, RefusedError, as_json
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.run_files import RunFiles, remembered, token

NUMBERS = (*DIAGNOSTICS, *PARTICULARS, "seconds", "steps", "extra_bytes")
_MOST_DRAWS = 1000
# The verdict asks for the reliability of a whole estimate; that of two halves is less (Spearman and Brown).
_LEAST_AGREEMENT = LEAST_RELIABILITY / (2 - LEAST_RELIABILITY)
THRESHOLDS = {
    "noise_ratio": {"most": MOST_NOISE},
    "drift": {"least": -MOST_DRIFT, "most": MOST_DRIFT},
    "llc_ratio": {"most": MOST_LLC},
    "group_agreement": {"least": round(_LEAST_AGREEMENT, 3)},
}


def trust_points(files: RunFiles, parameters: Parameters) -> Answer:
    """Diagnostics of each step of these files; `assemble` makes the answer of those of all steps."""
    return as_json({"points": [point for step in files.steps if (point := _point(files, step))]})


def _point(files: RunFiles, step: int) -> Mapping[str, Any] | None:
    try:
        path = files.dump(step)
        return remembered(("trust", str(path), token(path)), lambda: _read(files, step))
    except (UnreadableFileError, OSError, RefusedError):
        return None  # the list of runs says which dumps cannot be read, and why


def _read(files: RunFiles, step: int) -> Mapping[str, Any]:
    paths = {name: f"{'cost' if name in COSTS else 'chains'}/{name}" for name in NUMBERS}
    names = (*paths.values(), "chains/verdict", "divergences/chain")
    of = read_parts(files.dump(step), DUMP, attrs=("verdict",), names=names, tables=("metrics",))
    return {
        "step": step,
        "verdict": of.attrs.get("verdict"),
        "verdict_text": of.values.get("chains/verdict"),
        "divergences": len(of.values.get("divergences/chain", ())),
        "metrics": {name: float(value) for name, value in of.tables["metrics"].items()},
        **{name: float(of.values.get(path, np.nan)) for name, path in paths.items()},
    }


def assemble(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A list along the steps for each diagnostic, from the points of all steps."""
    metrics = sorted({name for point in points for name in point["metrics"]})
    columns = ("verdict", "verdict_text", "divergences", *NUMBERS)
    return {
        "steps": [point["step"] for point in points],
        **{"sampler_steps" if name == "steps" else name: [point[name] for point in points] for name in columns},
        "metrics": {name: [point["metrics"].get(name) for point in points] for name in metrics},
        "thresholds": THRESHOLDS,
    }


def chains(files: RunFiles, parameters: Parameters) -> Answer:
    """Loss traces of the chains of one snapshot, its divergences, settings, notes, cost and origin."""
    step = files.step(parameters)
    names = ["chain", "draw", "loss", "distance", "chain_llc", "snapshot_loss"]
    paths = [f"chains/{name}" for name in names] + [f"cost/{name}" for name in COSTS]
    paths += ["divergences/chain", "divergences/draw", "divergences/message"]
    of = read_parts(files.dump(step), DUMP, names=[*paths, "settings_json", "notes_json", "provenance_json"]).values
    loss = _matrix(of["chains/loss"])
    thinned = -(-loss.shape[1] // _MOST_DRAWS)
    return as_json(
        {
            "chain": of["chains/chain"],
            "draw": of["chains/draw"][::thinned],
            "loss": loss[:, ::thinned],
            "distance": _matrix(of["chains/distance"])[:, ::thinned],
            "thinned": thinned,
            "chain_llc": of["chains/chain_llc"],
            "snapshot_loss": of["chains/snapshot_loss"],
            "divergences": _divergences(of),
            "cost": {name: of.get(f"cost/{name}") for name in COSTS},
            **{name: _parsed(of.get(f"{name}_json")) for name in ("settings", "notes", "provenance")},
        }
    )


def _matrix(values: np.ndarray) -> np.ndarray:
    if values.ndim != 2:
        raise UnreadableFileError(f"a trace of the chains has {values.ndim} axes, not chain and draw")
    return values


def _divergences(of: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = [of.get(f"divergences/{name}", ()) for name in ("chain", "draw", "message")]
    return [
        {"chain": int(chain), "draw": int(draw), "message": str(message)}
        for chain, draw, message in zip(*columns, strict=True)
    ]


def _parsed(text: Any) -> Any:
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(f"its settings or notes are not valid JSON ({error})") from error
