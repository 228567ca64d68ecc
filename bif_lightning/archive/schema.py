"""Names, versions and small rules of the file format that SPEC.md describes. No h5py."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DUMP = "bif-lightning-dump"
SAMPLES = "bif-lightning-samples"
VERSION = "1.3"
LOSS = "loss"  # the observable that every dump has: the losses of the queries
SAMPLES_FILE = "samples.h5"
DUMP_NAME = re.compile(r"step=(\d{9,})\.h5")
CHUNK_VALUES = 256 * 256
OVERVIEW_SIDE = 256

# A netCDF dimension without values: readers that follow netCDF take the size and show no variable.
PURE_DIMENSION = "This is a netCDF dimension but not a netCDF variable."

# Numbers of a dump that stand alone: name -> (units, long_name).
DIAGNOSTICS = {
    "rhat": ("1", "split R-hat of the mean train loss"),
    "ess": ("1", "effective number of independent draws behind the mean train loss"),
    "llc": ("nat", "local learning coefficient estimate, inverse temperature x (mean loss - loss at the snapshot)"),
    "llc_standard_error": ("nat", "Monte Carlo standard error of llc"),
    "drift": ("1", "second-half minus first-half mean loss, in standard errors of that difference"),
    "score_agreement": ("1", "median rank correlation of influence columns between halves of the chains, or examples"),
    "group_agreement": ("1", "median correlation of influence columns between the same halves"),
    "noise_ratio": (
        "1",
        "minibatch variance of an SGLD step over its injected-noise variance, where that ratio is largest",
    ),
    "llc_ratio": ("1", "llc over half the effective dimension of the loss at the snapshot"),
    "control_agreement": (
        "1",
        "median rank correlation of influence columns with those of draws from the pull alone",
    ),
    "snapshot_loss": ("nat", "mean train loss at the snapshot"),
}
# Those of some samplers alone.
PARTICULARS = {
    "ridge": ("nat^2", "ridge of the conditioned influence"),
    "effective_dimension": ("1", "effective dimension of the posterior"),
}
COSTS = {
    "seconds": ("s", "wall time of the estimate"),
    "steps": ("1", "sampler steps of all chains"),
    "workers": ("1", "chains run at a time by each process"),
    "extra_bytes": ("byte", "memory beyond the model"),
}


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One dataset of a file.

    Attributes:
        path: name from the root, without a leading slash.
        dims: name of each axis. Where it is the variable's own name, the variable is that axis's scale.
        values: numbers, or an object array of strings.
        units: of numbers ("1" for pure numbers and counts); None for strings.
        long_name: what it is, in words.
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
    """Everything in one file: attributes by group ("" is the root), datasets, dimensions without values, links."""

    variables: Sequence[Variable]
    attrs: Mapping[str, Mapping[str, Any]]
    links: Mapping[str, str] = field(default_factory=dict[str, str])
    pure_dims: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def nbytes(self) -> int:
        """Size before compression, in bytes; strings are counted as UTF-8."""
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
    """Chunk of at most `values` entries, near square in the last two axes, so that a row and a column cost alike.

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
    """float32 rounded to 10 mantissa bits, ties to even; the 13 low bits become 0 and compress away.

    The relative error is at most 2⁻¹¹. NaN and infinities stay; a finite value never becomes infinite.

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
    """64-bit floats, or one of them where there are no dims."""
    return Variable(path=path, dims=dims, values=np.asarray(values, np.float64), units=units, long_name=long_name)


def int64(path: str, values: Any, long_name: str, dims: tuple[str, ...] = (), units: str = "1") -> Variable:
    """64-bit integers, or one of them where there are no dims."""
    return Variable(path=path, dims=dims, values=np.asarray(values, np.int64), units=units, long_name=long_name)


def float32(
    path: str, values: Any, units: str, long_name: str, dims: tuple[str, ...], sign: str | None = None
) -> Variable:
    """32-bit floats, for what makes a dump large; with what its sign means, where it has one."""
    single = np.asarray(values, np.float32)
    attrs = {} if sign is None else {"sign": sign}
    return Variable(path=path, dims=dims, values=single, units=units, long_name=long_name, attrs=attrs)


def text_column(path: str, values: Sequence[str], long_name: str, dim: str) -> Variable:
    """Texts along one axis."""
    return Variable(path=path, dims=(dim,), values=strings(values), units=None, long_name=long_name)


def strings(values: Sequence[str]) -> np.ndarray:
    """Texts as an object array that HDF5 can hold: NUL and lone surrogates are replaced by visible marks."""
    array = np.empty(len(values), dtype=object)
    array[:] = [storable(value) for value in values]
    return array


def string(value: str) -> np.ndarray:
    """One text as a 0-d object array."""
    return np.array(storable(value), dtype=object)


def storable(text: str) -> str:
    return text.replace("\0", "\u2400").encode("utf-8", "replace").decode("utf-8")


def class_name(names: Sequence[str] | None, label: int) -> str:
    """Name of a class index, or the index itself where it has no name.

    >>> class_name(("cat", "dog"), 1), class_name(None, 1), class_name(("cat",), 7)
    ('dog', '1', '7')
    """
    return names[label] if names and 0 <= label < len(names) else str(label)
