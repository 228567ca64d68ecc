"""What can be said of a curve over training within its error band: a width for all steps at once, and the changes."""

from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

Change = dict[str, Any]


def simultaneous(steps: int) -> float:
    """How many standard errors make a band that holds all of so many steps at once, with 95 %.

    Šidák: a level of 0.95^(1/steps) for each. For normal errors that is enough whatever their dependence (Šidák 1967),
    and snapshots with common random numbers have some.

    >>> round(simultaneous(1), 2), round(simultaneous(20), 2)
    (1.96, 3.02)
    """
    return NormalDist().inv_cdf((1 + 0.95 ** (1 / max(steps, 1))) / 2)


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
