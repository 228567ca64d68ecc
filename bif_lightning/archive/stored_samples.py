"""Reads samples.h5."""

import os
from itertools import pairwise
from typing import Any

import h5py
import numpy as np

from bif_lightning.archive.guard import UnreadableFileError, find, open_file, require
from bif_lightning.archive.samples_file import SIDES, digest
from bif_lightning.archive.schema import SAMPLES
from bif_lightning.samples import Samples


def stored_digest(path: str | os.PathLike[str]) -> str:
    """The digest that a samples file states; reads nothing else of it.

    Raises:
        UnreadableFileError: it is broken, foreign or of a later version.
    """
    with open_file(path, SAMPLES) as file:
        return str(file.attrs.get("sha256"))


def read_samples(path: str | os.PathLike[str], *, thumbnails: bool) -> tuple[Samples, Samples]:
    """Train and query samples of a samples file, checked against its digest.

    Args:
        path: the file.
        thumbnails: False leaves the pictures on disk; `Samples.thumbnails` is None then.

    Raises:
        UnreadableFileError: it is broken, foreign or of a later version, or its content does not match its digest.
        FileNotFoundError: there is none.
    """
    with open_file(path, SAMPLES) as file:
        stated = file.attrs.get("sha256")
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
    )


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
