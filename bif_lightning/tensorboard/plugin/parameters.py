"""Parses and validates the parameters of a request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import hexdigits

import numpy as np

from bif_lightning.tensorboard.plugin.answers import RefusedError

MOST_ROWS = 4096


@dataclass(frozen=True)
class Parameters:
    """The query string of one request.

    Every method raises RefusedError with status 400 if the value is missing or invalid.
    """

    values: Mapping[str, str]

    def has(self, name: str) -> bool:
        """Whether it was given, and not empty."""
        return bool(self.values.get(name))

    def text(self, name: str, default: str | None = None) -> str:
        """A text."""
        value = self.values.get(name) or default
        if value is None:
            raise RefusedError(400, f"The request lacks the parameter {name}.")
        return value

    def choice(self, name: str, allowed: Sequence[str], default: str | None = None) -> str:
        """One of some words."""
        value = self.text(name, default)
        if value not in allowed:
            raise RefusedError(400, f"{name} is {value[:80]!r}; it must be one of {', '.join(allowed)}.")
        return value

    def number(self, name: str, least: int, most: int, default: int | None = None) -> int:
        """A whole number from least to most."""
        value = _whole(self.text(name, None if default is None else str(default)))
        if value is None or not least <= value <= most:
            raise RefusedError(
                400, f"{name} is {self.values.get(name, '')[:80]!r}; it must be a number from {least} to {most}."
            )
        return value

    def rows(self, name: str, size: int) -> np.ndarray:
        """Row numbers below `size`, separated by commas; at most 4096 of them."""
        parts = self.text(name).split(",")
        if len(parts) > MOST_ROWS:
            raise RefusedError(400, f"{name} lists {len(parts)} rows; at most {MOST_ROWS} can be asked for at once.")
        found = [_whole(part) for part in parts]
        rows = np.array([-1 if row is None else row for row in found], np.int64)
        if (rows < 0).any() or (rows >= size).any():
            raise RefusedError(
                400, f"{name} is {self.values[name][:80]!r}; it must be row numbers from 0 to {size - 1}."
            )
        return rows

    def mask(self, name: str, size: int) -> np.ndarray:
        """Positions below `size` of which the bits are set in hexadecimal digits, the first the highest; or all."""
        if not self.has(name):
            return np.arange(size)
        digits, wanted = self.text(name), -(-size // 4)
        if len(digits) != wanted or any(digit not in hexdigits for digit in digits):
            raise RefusedError(400, f"{name} must be a mask of {wanted} hexadecimal digits.")
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(digits + "0" * (wanted % 2)), np.uint8))[:size]
        if not bits.any():
            raise RefusedError(400, f"No example is chosen by {name}; change the words that choose them.")
        return np.flatnonzero(bits)

    def but(self, **others: str) -> "Parameters":
        """The same with other values of some."""
        return Parameters({**self.values, **others})

    def under(self, prefix: str) -> "Parameters":
        """Those whose names begin with a prefix, without it."""
        return Parameters(
            {name.removeprefix(prefix): value for name, value in self.values.items() if name.startswith(prefix)}
        )


def _whole(text: str) -> int | None:
    # Longer than any row or step: int() of a very long text is slow, and other digits are not wanted.
    ok = 0 < len(text) <= 15 and text.isascii() and text.removeprefix("-").isdecimal()
    return int(text) if ok else None
