"""Dumps with flipped bits, missing ends and changed structure."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np


def flip_bits(data: bytearray, rng: np.random.Generator) -> None:
    for at in rng.integers(len(data), size=int(rng.integers(1, 30))):
        data[at] ^= 1 << int(rng.integers(8))


def flip_one(data: bytearray, rng: np.random.Generator) -> None:
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))


def flip_in_front(data: bytearray, rng: np.random.Generator) -> None:
    data[int(rng.integers(min(4096, len(data))))] ^= 1 << int(rng.integers(8))


def truncate(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(rng.integers(len(data))) :]


def blank(data: bytearray, rng: np.random.Generator) -> None:
    at, size = int(rng.integers(len(data))), int(rng.integers(1, 4096))
    data[at : at + size] = bytes([int(rng.integers(2)) * 255]) * len(data[at : at + size])


def swap(data: bytearray, rng: np.random.Generator) -> None:
    size = int(rng.integers(8, 2048))
    a, b = (int(rng.integers(len(data) - size)) for _ in range(2))
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


BYTES: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    flip_bits, flip_one, flip_in_front, truncate, blank, swap,
)  # fmt: skip


def edit_structure(path: Path, rng: np.random.Generator) -> None:
    """One dataset, group or attribute is taken away or becomes something else."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = names[int(rng.integers(len(names)))]
        shape = tuple(rng.integers(0, 5, size=int(rng.integers(0, 4))).tolist())
        new = (
            None,
            np.zeros(shape),
            np.zeros(shape, "i1"),
            np.full(shape, "text", object),
            np.zeros(shape, "c16"),
            "group",
        )
        what = new[int(rng.integers(len(new)))]
        attribute = list(file.attrs)[int(rng.integers(len(file.attrs)))]
        if rng.random() < 0.3:
            file.attrs[attribute] = [np.zeros(3), "text", 10**9, -1][int(rng.integers(4))]
            return
        del file[name]
        if isinstance(what, str):
            file.create_group(name)
        elif what is not None:
            kind = h5py.string_dtype() if what.dtype == object else what.dtype
            file.create_dataset(name, data=what, dtype=kind)


def mutate(whole: bytes, path: Path, rng: np.random.Generator) -> bool:
    """Write a mutated dump; whether its numbers are still covered by their checksums."""
    if rng.random() < 0.25:
        path.write_bytes(whole)
        edit_structure(path, rng)
        return False
    data = bytearray(whole)
    BYTES[int(rng.integers(len(BYTES)))](data, rng)
    path.write_bytes(data)
    return True
