"""What differs between two estimates, bit by bit."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from bif_lightning.results.estimate import Cost


def differences(one: object, other: object, path: str = "") -> list[str]:
    """Paths of fields that differ in any bit; what an estimate cost may differ."""
    if isinstance(one, Cost):
        return []
    if dataclasses.is_dataclass(one):
        one, other = ({f.name: getattr(each, f.name) for f in dataclasses.fields(one)} for each in (one, other))
    if isinstance(one, Mapping):
        if one.keys() != other.keys():
            return [path]
        return [found for name in one for found in differences(one[name], other[name], f"{path}.{name}")]
    if isinstance(one, np.ndarray):
        return [] if one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True) else [path]
    return [] if repr(one) == repr(other) else [path]
