"""Random numbers that are functions of a key: (seed, snapshot, chain, step, parameter).

A number depends on its key alone, not on the rank, the thread, earlier draws or a global generator. So one rank or
many, and a resumed run or an uninterrupted one, draw the same bits.
"""

import hashlib
import random
import struct
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

MINIBATCH = -1
"""The parameter index that keys the choice of a minibatch; parameters themselves count from 0."""

GLOBAL = -2
"""The parameter index that keys the global generators while a model that draws random numbers runs."""

DATA = -3
"""The parameter index that keys the global generators while the measured examples are read."""


def stream_seed(*key: int) -> int:
    """63-bit seed of one stream: the first bytes of BLAKE2b over the key's integers.

    >>> stream_seed(0, 0, 0, 0) == stream_seed(0, 0, 0, 0), stream_seed(0, 1) == stream_seed(1, 0)
    (True, False)
    """
    digest = hashlib.blake2b(struct.pack(f"<{len(key)}q", *key), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_global(device: torch.device, seed: int) -> None:
    """Seed the global generators of torch (CPU and one other device at most), NumPy and Python."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).default_generators[device.index or 0].manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 - the generator that models and datasets use
    random.seed(seed)


def global_states(device: torch.device) -> tuple[bytes, ...]:
    """States of the global generators that a model on `device`, or its data, may use, for comparison."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    # Not by pickle: equal tensors may have different pickles.
    of_torch = (state.cpu().numpy().tobytes() for state in states)
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return (*of_torch, np.asarray(keys).tobytes(), repr((kind, rest, random.getstate())).encode())


@contextmanager
def unaltered_generators(device: torch.device) -> Generator[None]:
    """Restore, at exit, the global generators that a model on `device`, or its data, may use."""
    of_torch, of_numpy, of_python = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    on_device = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    try:
        yield
    finally:
        torch.set_rng_state(of_torch)
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)
        if on_device is not None:
            torch.get_device_module(device).set_rng_state(on_device, device)


@dataclass(frozen=True)
class Noise:
    """The random numbers of one chain at one snapshot.

    Args:
        seed: of the run.
        snapshot: key of the snapshot (0 for all snapshots that share random numbers).
        chain: index of the chain.
        generator: draws the normal numbers, on its device. Bits differ between kinds of device.
        choices: draws the minibatches.
    """

    seed: int
    snapshot: int
    chain: int
    generator: torch.Generator
    choices: np.random.Generator

    def normals(self, step: int, parameter: int) -> torch.Generator:
        """The generator of the N(0, 1) numbers of one parameter at one step; valid until the next call."""
        # torch's CPU generator keeps 32 bits of a seed: of a million streams about a hundred pairs coincide, at
        # unrelated steps and parameters.
        return self.generator.manual_seed(self.key(step, parameter))

    def minibatch(self, step: int, size: int, batch_size: int) -> Int[Tensor, " batch"]:
        """Indices of `batch_size` of `size` examples, without replacement; all of them, in order, if fewer."""
        if batch_size >= size:
            return torch.arange(size, device="cpu")
        # Takes time proportional to the batch size, not to the size of the data.
        self.choices.bit_generator.state = _philox_start(self.key(step, MINIBATCH))
        return torch.from_numpy(self.choices.choice(size, batch_size, replace=False))

    def key(self, step: int, parameter: int) -> int:
        """Seed of the stream at one step for one parameter."""
        return stream_seed(self.seed, self.snapshot, self.chain, step, parameter)


def chain_noise(seed: int, snapshot: int, chain: int, device: torch.device) -> Noise:
    """The noise of one chain, with a private generator on `device`."""
    choices = np.random.Generator(np.random.Philox(key=0))
    return Noise(seed, snapshot, chain, torch.Generator(device=device), choices)


def _philox_start(key: int) -> dict[str, Any]:
    """State of `np.random.Philox(key=key)`. Constructing one costs more than the draw."""
    return {
        "bit_generator": "Philox",
        "state": {"counter": np.zeros(4, np.uint64), "key": np.array([key, 0], np.uint64)},
        "buffer": np.zeros(4, np.uint64),
        "buffer_pos": 4,
        "has_uint32": 0,
        "uinteger": 0,
    }
