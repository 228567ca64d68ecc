"""Names, versions and encodings of the file format that SPEC.md describes. Without h5py."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DUMP = "bif-lightning-dump"
SAMPLES = "bif-lightning-samples"
INTEGRATED = "bif-lightning-integrated"
VERSION = "1.4"
LOSS = "loss"  # the observable of every dump: the query losses
SAMPLES_FILE = "samples.h5"
INTEGRATED_FILE = "integrated.h5"
DUMP_NAME = re.compile(r"step=(\d{9,})\.h5")
CHUNK_VALUES = 256 * 256
OVERVIEW_SIDE = 256

# Marks a dimension without values: netCDF readers use its size and show no variable.
PURE_DIMENSION = "This is a netCDF dimension but not a netCDF variable."

# Scalars of every dump: name -> (units, long_name).
DIAGNOSTICS = {
    "rhat": ("1", "split R-hat of the mean train loss"),
    "ess": ("1", "effective sample size of the mean train loss"),
    "llc": ("nat", "estimated local learning coefficient: inverse temperature x (mean loss - loss at the snapshot)"),
    "llc_standard_error": ("nat", "Monte Carlo standard error of llc"),
    "drift": ("1", "mean loss of the second half of the draws minus the first, in standard errors"),
    "score_agreement": (
        "1",
        "median rank correlation of influence columns between two halves of the chains (Subspace: of the examples)",
    ),
    "group_agreement": (
        "1",
        "median correlation of influence columns, summed over random groups, between the same two halves",
    ),
    "noise_ratio": (
        "1",
        "minibatch variance of an SGLD step divided by its injected-noise variance, along the worst direction",
    ),
    "llc_ratio": ("1", "llc divided by half the effective dimension of the loss at the snapshot"),
    "control_agreement": (
        "1",
        "median rank correlation of influence columns with those of draws from the localization prior",
    ),
    "snapshot_loss": ("nat", "mean train loss at the snapshot"),
}
# Scalars of some samplers.
PARTICULARS = {
    "ridge": ("nat^2", "error variance of the train losses in the conditioned influence"),
    "effective_dimension": ("1", "effective dimension of the posterior"),
    "alpha": ("1", "share of the chains' correction of the closed form that the influence contains"),
    "residual_share": ("1", "variance of a chain beside its quadratic approximation, over that of the approximation"),
}
COSTS = {
    "seconds": ("s", "wall time of the estimate"),
    "steps": ("1", "sampler steps of all chains together"),
    "workers": ("1", "chains that each process runs at a time"),
    "extra_bytes": ("byte", "memory used in addition to the model"),
}


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One dataset of a file.

    Attributes:
        path: name from the root, without a leading slash.
        dims: name of each axis. A variable with its own name as its one axis is the scale of that axis.
        values: numbers, or an object array of strings.
        units: units of numbers ("1" for dimensionless numbers and counts); None for strings.
        long_name: description for readers of the file.
        attrs: further attributes.
        rounded: whether float32 values are written with 10 mantissa bits (`round_to_10_bits`).
    """

    path: str
    dims: tuple[str, ...]
    values: np.ndarray
    units: str | None
    long_name: str
    attrs: Mapping[str, str] = field(default_factory=dict[str, str])
    rounded: bool = False

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def is_scale(self) -> bool:
        return self.dims == (self.name,)


@dataclass(frozen=True, kw_only=True)
class Content:
    """Content of one file: datasets, attributes by group ("" is the root), hard links, dimensions without values.

    Sums over a training hardly compress, and their file is written anew at each dump: `compressed` is False there.
    """

    variables: Sequence[Variable]
    attrs: Mapping[str, Mapping[str, Any]]
    links: Mapping[str, str] = field(default_factory=dict[str, str])
    pure_dims: Mapping[str, int] = field(default_factory=dict[str, int])
    compressed: bool = True

    @property
    def nbytes(self) -> int:
        """Size before compression, in bytes, with strings in UTF-8."""
        return sum(_nbytes(variable.values) for variable in self.variables)


def _nbytes(values: np.ndarray) -> int:
    if values.dtype.kind != "O":
        return values.nbytes
    return sum(16 + len(str(value).encode()) for value in values.ravel())


def dump_name(step: int) -> str:
    """File name of the dump at a global step.

    >>> dump_name(6000)
    'step=000006000.h5'
    """
    if step < 0:
        raise ValueError(f"step is {step}; a global step is 0 or above")
    return f"step={step:09d}.h5"


def chunk_shape(shape: tuple[int, ...], values: int = CHUNK_VALUES) -> tuple[int, ...]:
    """Chunk of at most `values` entries, nearly square in the last two axes: rows and columns cost the same to read.

    >>> chunk_shape((10000, 1000)), chunk_shape((10000, 10)), chunk_shape((4, 100, 5000))
    ((256, 256), (6553, 10), (1, 100, 655))
    """
    if len(shape) == 1:
        return (min(shape[0], values),)
    *outer, rows, columns = shape
    side = int(values**0.5)
    height = min(rows, max(side, values // min(columns, side)))
    width = min(columns, max(side, values // min(rows, side)))
    return (*(1 for _ in outer), height, min(width, values // height))


def round_to_10_bits(values: np.ndarray) -> np.ndarray:
    """Round float32 values to 10 mantissa bits, ties to even; the 13 low bits become 0, which compresses well.

    The relative error is at most 2⁻¹¹. NaN and infinities are unchanged; finite values stay finite.

    >>> round_to_10_bits(np.array([1 / 3, np.inf], np.float32)).tolist()
    [0.333251953125, inf]
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    low = np.uint32(0x1FFF)
    half_to_even = np.uint32(0x0FFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    rounded = ((bits + half_to_even) & ~low).view(np.float32)
    truncated = (bits & ~low).view(np.float32)
    finite = np.isfinite(values)
    return np.where(finite, np.where(np.isfinite(rounded), rounded, truncated), values).astype(np.float32)


def float64(path: str, values: Any, units: str, long_name: str, dims: tuple[str, ...] = ()) -> Variable:
    """Variable of 64-bit floats; a scalar without dims."""
    return Variable(path=path, dims=dims, values=np.asarray(values, np.float64), units=units, long_name=long_name)


def int64(path: str, values: Any, long_name: str, dims: tuple[str, ...] = (), units: str = "1") -> Variable:
    """Variable of 64-bit integers; a scalar without dims."""
    return Variable(path=path, dims=dims, values=np.asarray(values, np.int64), units=units, long_name=long_name)


def float32(
    path: str, values: Any, units: str, long_name: str, dims: tuple[str, ...], sign: str | None = None
) -> Variable:
    """Variable of 32-bit floats, for the large arrays of a dump; `sign` explains the meaning of the sign."""
    single = np.asarray(values, np.float32)
    attrs = {} if sign is None else {"sign": sign}
    return Variable(path=path, dims=dims, values=single, units=units, long_name=long_name, attrs=attrs)


def text_column(path: str, values: Sequence[str], long_name: str, dim: str) -> Variable:
    """Variable of strings along one axis."""
    return Variable(path=path, dims=(dim,), values=strings(values), units=None, long_name=long_name)


def strings(values: Sequence[str]) -> np.ndarray:
    """Strings as an object array for HDF5; NUL and lone surrogates, which HDF5 cannot store, are replaced."""
    array = np.empty(len(values), dtype=object)
    array[:] = [storable(value) for value in values]
    return array


def string(value: str) -> np.ndarray:
    """One string as a 0-d object array for HDF5."""
    return np.array(storable(value), dtype=object)


def storable(text: str) -> str:
    """Replace NUL by U+2400 and lone surrogates by a question mark."""
    return text.replace("\0", "\u2400").encode("utf-8", "replace").decode("utf-8")


def class_name(names: Sequence[str] | None, label: int) -> str:
    """Name of a class, or its index if it has no name.

    >>> class_name(("cat", "dog"), 1), class_name(None, 1), class_name(("cat",), 7)
    ('dog', '1', '7')
    """
    return names[label] if names and 0 <= label < len(names) else str(label)
