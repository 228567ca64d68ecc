"""Read samples.h5."""

import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import h5py
import numpy as np

from bif_lightning.archive.examples_file import COLUMN, SIDES, digest
from bif_lightning.archive.read.untrusted import attribute, find, members, open_file, require
from bif_lightning.archive.schema import SAMPLES
from bif_lightning.exceptions import UnreadableFileError
from bif_lightning.results.examples import Samples

_Row = TypeVar("_Row", tuple[str, ...], np.ndarray)


def stored_digest(path: str | os.PathLike[str]) -> str:
    """Read only the digest of a samples file.

    Raises:
        UnreadableFileError: it is damaged, of another format, or of a later version.
    """
    with open_file(path, SAMPLES) as file:
        return str(attribute(file, "sha256"))


def read_samples(path: str | os.PathLike[str], *, thumbnails: bool) -> tuple[Samples, Samples]:
    """Read the train and query samples of a samples file, and check them against its digest.

    Args:
        path: the file.
        thumbnails: False leaves the pictures on disk; `Samples.thumbnails` is None then.

    Raises:
        UnreadableFileError: it is damaged, of another format, or of a later version, or its content does not match its
            digest.
        FileNotFoundError: there is none.
    """
    with open_file(path, SAMPLES) as file:
        stated = attribute(file, "sha256")
        try:
            train, query = (_side(file, side, thumbnails) for side in SIDES)
        except (OSError, RuntimeError, TypeError, UnicodeDecodeError) as error:
            raise UnreadableFileError(f"{path} is damaged ({error})") from error
    if digest(train, query) != stated:
        raise UnreadableFileError(f"{path} is damaged: its content does not match its digest")
    return train, query


def _side(file: h5py.File, side: str, thumbnails: bool) -> Samples:
    ids = strings(require(file, f"{side}/id"))
    labels = find(file, f"{side}/label")
    names = find(file, f"{side}/class_name")
    texts = find(file, f"{side}/text")
    return Samples(
        ids=ids,
        index=require(file, f"{side}/index")[...],
        labels=None if labels is None else labels[...],
        label_names=None if names is None else strings(names),
        texts=None if texts is None else strings(texts),
        thumbnails=_thumbnails(file, side) if thumbnails else None,
        columns=_columns(file, side, len(ids)) or None,
        tokens=_split(file, side, "token_text", strings, len(ids)),
        token_ids=_split(file, side, "token_id", lambda dataset: np.asarray(dataset[...], np.int64), len(ids)),
    )


def _columns(file: h5py.File, side: str, size: int) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    for path in (f"{side}/{name}" for name in members(file, side) if name.startswith(COLUMN)):
        dataset = require(file, path)
        is_text = h5py.check_string_dtype(dataset.dtype) is not None
        values = np.array(strings(dataset), dtype=object) if is_text else np.asarray(dataset[...], np.float64)
        # The digest does not cover them.
        if values.shape != (size,):
            raise UnreadableFileError(f"{file.filename}: {path} has shape {values.shape} for {size} examples")
        columns[path.removeprefix(f"{side}/{COLUMN}")] = values
    return columns


def _split(
    file: h5py.File, side: str, name: str, read: Callable[[h5py.Dataset], _Row], size: int
) -> tuple[_Row, ...] | None:
    """Values of the tokens of all examples, split by example."""
    joined = find(file, f"{side}/{name}")
    if joined is None:
        return None
    offsets: list[int] = require(file, f"{side}/token_offset")[...].tolist()
    values = read(joined)
    # The digest does not cover tokens.
    if len(offsets) != size + 1 or sorted(offsets) != offsets or (offsets[0], offsets[-1]) != (0, len(values)):
        raise UnreadableFileError(f"{file.filename}: the token offsets of {side} do not fit its {name}")
    return tuple(values[start:end] for start, end in pairwise(offsets))


def strings(dataset: h5py.Dataset) -> tuple[str, ...]:
    """A column of strings."""
    values: Any = dataset.asstr()[...]
    return tuple(values.tolist())


def _thumbnails(file: h5py.File, side: str) -> tuple[bytes, ...] | None:
    joined = find(file, f"{side}/thumbnail")
    if joined is None:
        return None
    data = joined[...].tobytes()
    offsets: list[int] = require(file, f"{side}/thumbnail_offset")[...].tolist()
    starts = np.asarray(offsets)
    if starts[0] != 0 or starts[-1] != len(data) or (np.diff(starts) < 0).any():
        raise UnreadableFileError(f"{file.filename}: the thumbnail offsets of {side} do not fit their bytes")
    return tuple(data[start:end] for start, end in pairwise(offsets))


def read_thumbnail(path: str | os.PathLike[str], side: str, row: int, most: int) -> bytes:
    """Read only the thumbnail of one example; b"" if it has none.

    Args:
        path: the samples file.
        side: "train" or "query".
        row: of that side.
        most: bytes that a picture may have.

    Raises:
        UnreadableFileError: the file is damaged, of another format, or of a later version, or the picture is too large.
        FileNotFoundError: there is none.
    """
    with open_file(path, SAMPLES) as file:
        try:
            joined = find(file, f"{side}/thumbnail")
            offsets = find(file, f"{side}/thumbnail_offset")
            if joined is None or offsets is None or not 0 <= row < len(offsets) - 1:
                return b""
            start, end = map(int, offsets[row : row + 2])
            if not 0 <= start <= end <= len(joined) or end - start > most:
                raise UnreadableFileError(f"{path}: the thumbnail of {side} example {row} does not fit its bytes")
            return joined[start:end].tobytes()
        except (OSError, RuntimeError, TypeError) as error:
            raise UnreadableFileError(f"{path} is damaged ({error})") from error
