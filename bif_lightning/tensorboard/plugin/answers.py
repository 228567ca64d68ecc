"""Answers to requests, and refusals with a sentence that the page can show."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

JSON = "application/json"
BINARY = "application/octet-stream"


@dataclass(frozen=True)
class Answer:
    """One answer of the server.

    Attributes:
        body: its bytes.
        kind: its media type.
        status: the HTTP status.
        headers: further headers.
    """

    body: bytes
    kind: str = JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


class RefusedError(Exception):
    """A refused request: 400 bad parameters, 404 not found, 422 unreadable file, 503 try again."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status

    def answer(self) -> Answer:
        """The sentence as JSON, with its status."""
        return Answer(json.dumps({"error": str(self)}).encode(), status=self.status)


def as_json(value: Any, headers: Mapping[str, str] | None = None) -> Answer:
    """Answer with JSON; numbers that are not finite become null."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Answer(text.encode("utf-8", "replace"), headers=headers or {})


def plain(value: Any) -> Any:
    """Convert a value for JSON: arrays to lists, NaN and infinities to None.

    >>> plain({"a": np.array([1.0, np.nan]), "b": (np.int64(2), "x")})
    {'a': [1.0, None], 'b': [2, 'x']}
    """
    if isinstance(value, np.ndarray):
        return _listed(value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def _listed(array: np.ndarray) -> Any:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return array.tolist()
    shown = array.astype(object)
    shown[~np.isfinite(array)] = None
    return shown.tolist()


def as_numbers(headers: Mapping[str, str], *arrays: np.ndarray) -> Answer:
    """Answer with numbers, array after array: float32 or int32, little endian."""
    parts = [array.astype("<i4" if array.dtype.kind in "iu" else "<f4", copy=False).tobytes() for array in arrays]
    return Answer(b"".join(parts), kind=BINARY, headers=headers)
