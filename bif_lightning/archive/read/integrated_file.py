"""Reads integrated.h5, and tells of which dumps it is.

The file is made of the dumps. It is used where its snapshots, by step and time of writing, are the first of those that
are asked for; then only the others have to be added. Everything else is summed from the dumps.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Int

from bif_lightning.archive.integrated_file import SUMS
from bif_lightning.archive.read.examples import stored_digest, strings
from bif_lightning.archive.read.index import dump_paths
from bif_lightning.archive.read.parts import read_parts
from bif_lightning.archive.read.positions import read_positions
from bif_lightning.archive.read.untrusted import attribute, open_file, require
from bif_lightning.archive.schema import DUMP, INTEGRATED, INTEGRATED_FILE, SAMPLES_FILE
from bif_lightning.exceptions import UnreadableFileError
from bif_lightning.results.integrated import COUNTED, DIGEST_BYTES, IntegratedInfluence

_STAMP = "global_step", "created_utc", "samples_sha256"


@dataclass(frozen=True)
class Stamp:
    """Which dump a file is: its step, when it was written, and the digest of its examples."""

    path: Path
    step: int
    created: str
    samples: str


@dataclass(frozen=True)
class IntegratedFile:
    """Which dumps are in an integrated.h5.

    Attributes:
        path: of the file.
        steps, created: of the dumps, in the order of their steps.
        samples: digest of the examples.
        shape: train, query.
    """

    path: Path
    steps: tuple[int, ...]
    created: tuple[str, ...]
    samples: str
    shape: tuple[int, int]

    def begins(self, dumps: Sequence[Stamp]) -> bool:
        """Whether the dumps in the file are the first of these, which are in the order of their steps."""
        first = dumps[: len(self.steps)]
        own = list(zip(self.steps, self.created, strict=True))
        return own == [(each.step, each.created) for each in first] and {each.samples for each in first} == {
            self.samples
        }


def read_stamp(path: Path) -> Stamp:
    """Which dump a file is.

    Raises:
        UnreadableFileError: it is broken, foreign or of a later version.
        OSError: the system does not let it be read.
    """
    attrs = read_parts(path, DUMP, attrs=_STAMP).attrs
    if missing := [name for name in _STAMP if name not in attrs]:
        raise UnreadableFileError(f"{path} lacks the attribute {', '.join(missing)}")
    step, created, samples = (attrs[name] for name in _STAMP)
    return Stamp(path, int(step), str(created), str(samples))


def dumps_of_run(directory: Path) -> list[Stamp]:
    """The dumps of a run by step: those in its folder that can be opened, and are of its examples."""
    found: dict[int, Stamp] = {}
    for path in dump_paths(directory):
        try:
            stamp = read_stamp(path)
        except (OSError, UnreadableFileError):
            continue
        found.setdefault(stamp.step, stamp)
    dumps = [found[step] for step in sorted(found)]
    samples = _samples_of(directory) or (dumps[-1].samples if dumps else "")
    return [dump for dump in dumps if dump.samples == samples]


def _samples_of(directory: Path) -> str | None:
    try:
        return stored_digest(directory / SAMPLES_FILE)
    except (OSError, UnreadableFileError):
        return None


def open_integrated(directory: Path) -> IntegratedFile | None:
    """Which dumps are in the file of a folder; None where there is none, or none that can be read."""
    path = directory / INTEGRATED_FILE
    try:
        with _opened(path) as file:
            return _described(file, path)
    except (OSError, UnreadableFileError):
        return None


def read_sum(of: IntegratedFile, queries: Int[np.ndarray, " query"]) -> IntegratedInfluence:
    """The columns of these queries, as they were when the last dump had been pushed.

    Raises:
        UnreadableFileError: the file is damaged, or was replaced since `of` was read.
        OSError: the system does not let it be read.
    """
    with opened_again(of) as file:
        status, digests = (np.asarray(require(file, name)[...], np.uint8) for name in ("status", "digest"))
        status, digests = status[:, queries], digests[:, queries]
        rows = [queries, np.arange(of.shape[0])]
        sums = [read_positions(require(file, name), rows).T for name in SUMS]
    # Where there is nothing in a column, the file has NaN, and a sum begins with 0.
    known = (status == COUNTED).any(0)
    total, errors, squares, every_second = (np.where(known, values, 0.0) for values in sums)
    return IntegratedInfluence(total, squares, errors, every_second, status, digests, list(of.steps))


@contextmanager
def opened_again(of: IntegratedFile) -> Generator[h5py.File]:
    """The file, if it is still the same.

    Raises:
        UnreadableFileError: the file is damaged, or was replaced since `of` was read.
        OSError: the system does not let it be read.
    """
    with _opened(of.path) as file:
        if _described(file, of.path) != of:
            raise UnreadableFileError(f"{of.path} was replaced by one of other snapshots while it was read")
        yield file


@contextmanager
def _opened(path: Path) -> Generator[h5py.File]:
    with open_file(path, INTEGRATED) as file:
        try:
            yield file
        except UnreadableFileError:
            raise
        # This is what h5py and NumPy make of damaged structures.
        except (OSError, RuntimeError, LookupError, TypeError, ValueError, OverflowError) as error:
            raise UnreadableFileError(f"{path} is damaged ({type(error).__name__}: {error})") from error


def _described(file: h5py.File, path: Path) -> IntegratedFile:
    steps = tuple(int(step) for step in require(file, "step")[...])
    created = strings(require(file, "created_utc"))
    query, train = require(file, SUMS[0]).shape
    shapes = dict.fromkeys(SUMS, (query, train))
    shapes |= {"status": (len(steps), query), "digest": (len(steps), query, DIGEST_BYTES)}
    for name, shape in shapes.items():
        if (found := require(file, name)).shape != shape:
            raise UnreadableFileError(f"{path}: {name} has shape {found.shape}, not {shape}")
    if not steps or steps[0] < 0 or len(created) != len(steps) or sorted(set(steps)) != list(steps):
        raise UnreadableFileError(f"{path}: its {len(steps)} steps and {len(created)} times do not fit one another")
    return IntegratedFile(path, steps, created, str(attribute(file, "samples_sha256")), (train, query))
