"""Changes over training that are none of the Monte Carlo error: flips of the sign, peaks and troughs."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bif_lightning.archive.tables import Quantity, trajectory

Change = dict[str, Any]


def changes(run: xr.Dataset, train: int | str, query: int | str, by: Quantity = "correlation") -> pd.DataFrame:
    """Where the influence of one train example on one query's loss changes for certain.

    All steps are judged together by the simultaneous band of `trajectory`, so that a run without any change shows one
    with a probability of 5 % at most, however many steps it has.

    Args:
        run: from `open_run`.
        train, query: row number or id of each.
        by: "correlation" compares over steps; "influence" scales with the local curvature.

    Returns:
        columns kind, step, value, before, after, in the order of the steps. A "flip" is a step whose band lies on the
        other side of 0 than that of the step `before`, the last one whose band excludes 0. A "peak" (or "trough") is
        the highest (lowest) step between `before` and `after`, whose bands lie below (above) its own; `after` of a flip
        is its own step.

    Raises:
        ValueError: an unknown example or quantity; the message lists what is near.
    """
    of = trajectory(run, train, query, by)
    arrays = (of[name].to_numpy(np.float64) for name in ("value", "band_low", "band_high"))
    return pd.DataFrame(
        found_changes(of["step"].tolist(), *arrays), columns=["kind", "step", "value", "before", "after"]
    )


def found_changes(steps: Sequence[int], value: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[Change]:
    """Flips, peaks and troughs of one curve within its band; steps whose band is NaN are left out."""
    known = np.isfinite(low) & np.isfinite(high)
    kept = [step for step, keep in zip(steps, known, strict=True) if keep]
    value, low, high = value[known], low[known], high[known]
    found = [*_flips(kept, value, low, high), *_tops("peak", kept, value, low, high)]
    found += [change | {"value": -change["value"]} for change in _tops("trough", kept, -value, -high, -low)]
    return sorted(found, key=lambda change: change["step"])


def _flips(steps: Sequence[int], value: np.ndarray, low: np.ndarray, high: np.ndarray) -> Iterator[Change]:
    last, before = 0, steps[0] if steps else 0
    for step, here, below, above in zip(steps, value, low, high, strict=True):
        sign = int(below > 0) - int(above < 0)
        if sign and last and sign != last:
            yield {"kind": "flip", "step": step, "value": float(here), "before": before, "after": step}
        if sign:
            last, before = sign, step


def _tops(kind: str, steps: Sequence[int], value: np.ndarray, low: np.ndarray, high: np.ndarray) -> Iterator[Change]:
    for at in range(1, len(steps) - 1):
        before = _lower(range(at - 1, -1, -1), at, value, low, high, strictly=False)
        after = _lower(range(at + 1, len(steps)), at, value, low, high, strictly=True)
        if before is not None and after is not None:
            yield {
                "kind": kind,
                "step": steps[at],
                "value": float(value[at]),
                "before": steps[before],
                "after": steps[after],
            }


def _lower(side: range, at: int, value: np.ndarray, low: np.ndarray, high: np.ndarray, *, strictly: bool) -> int | None:
    """The nearest step of one side whose band lies below that of `at`, before any that is as high; of equals, the last
    one is the top."""
    for other in side:
        if value[other] > value[at] or (strictly and value[other] == value[at]):
            return None
        if high[other] < low[at]:
            return other
    return None
