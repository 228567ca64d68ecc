"""An accelerator "sim" in the memory of the host, which obeys the rules of CUDA: device bugs show without a GPU.

Its kernels are those of the CPU, so that results are equal to the bit. It refuses tensors of two devices, generators of
another device, and indices that lie on it for tensors of the CPU. It has two devices; it counts launches, waits and
copies; it meters its memory, and can have little; its kernels can take time, for which only who synchronizes waits; it
can lack dtypes, as MPS lacks float64. The process group "simccl" takes its tensors alone, as NCCL does.

    simulated_device.install()        # once in a process, before its first backward pass
    model.to("sim")
    torch.sim.max_memory_allocated()  # the functions of torch.cuda

Torch starts a thread for each device at the first backward pass, and a process cannot go back to one without this
accelerator: tests call functions in a process of their own (`process.py`).
"""

import importlib.util
import types
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from simulated_device import build

NAME, GROUP = "sim", "simccl"
DEVICES = 2


@cache
def library() -> Any:
    """The compiled library."""
    found = importlib.util.spec_from_file_location(build.NAME, build.library())
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@cache
def install() -> None:
    """Register the accelerator in this process, which has to be one of tests of it."""
    assert library().DEVICES == DEVICES
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _functions())
    torch.utils.generate_methods_for_privateuse1_backend(for_tensor=True, for_module=True, for_storage=True)
    dist.Backend.register_backend(GROUP, _group, extended_api=True, devices=[NAME])


def counts() -> dict[str, int]:
    """Launches, waits, copies and collectives since `reset_counts`, in all and by name (as "launch:mm")."""
    each: dict[str, int] = library().counts()
    kinds = ("launch", "wait", "copy", "collective")
    return {kind: sum(n for name, n in each.items() if name.startswith(f"{kind}:")) for kind in kinds} | each


def reset_counts() -> None:
    library().reset_counts()


@contextmanager
def slow_kernels(seconds: float) -> Generator[None]:
    """Every kernel takes so long, in a queue of its device."""
    library().set_kernel_seconds(seconds)
    try:
        yield
    finally:
        library().set_kernel_seconds(0.0)
        torch.accelerator.synchronize()


@contextmanager
def little_memory(extra: int) -> Generator[None]:
    """So many bytes are left on the current device; an allocation beyond raises torch.OutOfMemoryError."""
    library().limit_memory(library().memory(library().current_device())[0] + extra)
    try:
        yield
    finally:
        library().limit_memory(-1)


@contextmanager
def without(dtype: torch.dtype) -> Generator[None]:
    """The device has no tensors of this dtype."""
    library().forbid_dtype(dtype, True)
    try:
        yield
    finally:
        library().forbid_dtype(dtype, False)


def _group(common: Any, options: Any = None) -> Any:
    store, rank, size, wait = common.store, common.group_rank, common.group_size, common.timeout.total_seconds()
    host = dist.ProcessGroupGloo(dist.PrefixStore(GROUP, store), rank, size, timedelta(seconds=wait))
    return library().group(rank, size, host, wait)


def _index(device: Any) -> int:
    """−1 for the current device."""
    if device is None or isinstance(device, int):
        return -1 if device is None else device
    index = torch.device(device).index
    return -1 if index is None else index


def _own(device: Any) -> int:
    index = _index(device)
    return library().current_device() if index < 0 else index


class _Event:
    """Of the one queue of a device."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def record(self, stream: Any = None) -> None: ...
    def wait(self, stream: Any = None) -> None: ...
    def synchronize(self) -> None:
        torch.accelerator.synchronize()

    def query(self) -> bool:
        return True


class _Stream:
    """The one queue of a device."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.device = torch.device(NAME, library().current_device())

    def wait_event(self, event: Any) -> None: ...
    def wait_stream(self, stream: Any) -> None: ...
    def record_event(self, event: Any = None) -> Any:
        return event or _Event()

    def synchronize(self) -> None:
        torch.accelerator.synchronize()


def _functions() -> types.ModuleType:
    """`torch.sim`, with those functions of `torch.cuda` that torch, Lightning and this package call."""
    its = library()

    def seed_all(seed: int) -> None:
        for index in range(DEVICES):
            its.default_generator(index).manual_seed(seed)

    functions: dict[str, Any] = {
        "Stream": _Stream,
        "Event": _Event,
        "current_stream": _Stream,
        "default_stream": _Stream,
        "stream": lambda stream: nullcontext(),
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "is_initialized": lambda: True,
        "is_available": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: DEVICES,
        "current_device": its.current_device,
        "set_device": lambda device: its.set_device(_index(device)),
        "synchronize": lambda device=None: its.synchronize(_own(device)),
        "memory_allocated": lambda device=None: its.memory(_own(device))[0],
        "max_memory_allocated": lambda device=None: its.memory(_own(device))[1],
        "reset_peak_memory_stats": lambda device=None: its.reset_peak(_own(device)),
        "empty_cache": lambda: None,
        "default_generators": tuple(its.default_generator(index) for index in range(DEVICES)),
        "manual_seed": lambda seed: its.default_generator(-1).manual_seed(seed) and None,
        "manual_seed_all": seed_all,
        "get_rng_state": lambda device=NAME: its.default_generator(_index(device)).get_state(),
        "set_rng_state": lambda state, device=NAME: its.default_generator(_index(device)).set_state(state) and None,
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16, torch.float32],
    }
    module = types.ModuleType(f"torch.{NAME}")
    vars(module).update(functions)
    return module
