"""The global random number generators that a training step can draw from."""

import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from bif_lightning.trainer.guard.tensors import Undo


def generator_states(module: nn.Module) -> dict[str, tuple[object, Callable[[Any], object]]]:
    """State of every global generator and the function that sets it, by name.

    They are torch's on the CPU and on each accelerator that holds a parameter or buffer of `module`, NumPy's legacy
    one and Python's. Generators of other devices belong to other processes and are neither read nor set.
    """
    states: dict[str, tuple[object, Callable[[Any], object]]] = {
        "torch": (torch.get_rng_state(), torch.set_rng_state),
        "numpy": (np.random.get_state(legacy=False), np.random.set_state),  # noqa: NPY002
        "python": (random.getstate(), random.setstate),
    }
    for device in _accelerators(module):
        states[f"torch on {device}"] = _accelerator_state(device)
    return states


def keep_global_generators(module: nn.Module) -> list[tuple[str, Undo]]:
    """Functions that restore the current state of every global generator, by name."""
    return [(name, partial(_set, write, state)) for name, (state, write) in generator_states(module).items()]


def _set(write: Callable[[Any], object], state: object) -> None:
    write(state)


def _accelerators(module: nn.Module) -> Iterable[torch.device]:
    tensors = [*module.parameters(), *module.buffers()]
    devices = {tensor.device for tensor in tensors} - {torch.device("meta"), torch.device("cpu")}
    return sorted(devices, key=str)


def _accelerator_state(device: torch.device) -> tuple[object, Callable[[Any], object]]:
    backend: Any = torch.get_device_module(device)
    if device.type == "mps":  # one device, and its functions take none
        return backend.get_rng_state(), backend.set_rng_state
    return backend.get_rng_state(device), partial(backend.set_rng_state, device=device)
