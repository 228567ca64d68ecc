"""Widths of error bands: of one value, and of a curve over training with its flips and peaks."""

from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

CLEAR = 1.959963984540054
"""Half width of a 95 % interval in standard errors, the two-sided normal quantile. A value whose distance from zero is
larger has a significant sign: the same rule in the tab, tables, figures, scalars and the command line."""

Change = dict[str, Any]


def is_clear(value: Any, error: Any) -> Any:
    """Whether zero lies outside value ± 1.96 standard errors, for numbers or arrays; False if either is NaN.

    >>> bool(is_clear(-0.5, 0.25)), bool(is_clear(0.5, 0.26)), bool(is_clear(0.5, float("nan")))
    (True, False, False)
    """
    return np.abs(value) > CLEAR * error


def simultaneous(steps: int) -> float:
    """Half width, in standard errors, of a band that contains the curve at all steps at once with probability 0.95.

    Šidák's level for each step is 0.95^(1/steps). For normal errors the band covers at least 95 % for any dependence
    (Šidák 1967), such as between snapshots with common random numbers.

    >>> round(simultaneous(1), 2), round(simultaneous(20), 2)
    (1.96, 3.02)
    """
    return NormalDist().inv_cdf((1 + 0.95 ** (1 / max(steps, 1))) / 2)


def found_changes(steps: Sequence[int], value: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[Change]:
    """Flips, peaks and troughs of one curve that its band supports; steps with a NaN band are left out."""
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
    """The nearest step on one side whose band lies below that of `at`, None if a step as high comes first.

    Of equal values the last one is the top.
    """
    for other in side:
        if value[other] > value[at] or (strictly and value[other] == value[at]):
            return None
        if high[other] < low[at]:
            return other
    return None
