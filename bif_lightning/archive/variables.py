"""Short ways to make the datasets of a dump."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bif_lightning.archive.samples_file import strings
from bif_lightning.archive.schema import Variable


def real(path: str, values: Any, units: str, long_name: str, dims: tuple[str, ...] = ()) -> Variable:
    """64-bit floats, or one of them where there are no dims."""
    return Variable(path=path, dims=dims, values=np.asarray(values, np.float64), units=units, long_name=long_name)


def whole(path: str, values: Any, long_name: str, dims: tuple[str, ...] = (), units: str = "1") -> Variable:
    """64-bit integers, or one of them where there are no dims."""
    return Variable(path=path, dims=dims, values=np.asarray(values, np.int64), units=units, long_name=long_name)


def bulk(
    path: str, values: Any, units: str, long_name: str, dims: tuple[str, ...], sign: str | None = None
) -> Variable:
    """32-bit floats, for what makes a dump large; with what its sign means, where it has one."""
    single = np.asarray(values, np.float32)
    attrs = {} if sign is None else {"sign": sign}
    return Variable(path=path, dims=dims, values=single, units=units, long_name=long_name, attrs=attrs)


def text_column(path: str, values: Sequence[str], long_name: str, dim: str) -> Variable:
    """Texts along one axis."""
    return Variable(path=path, dims=(dim,), values=strings(values), units=None, long_name=long_name)
