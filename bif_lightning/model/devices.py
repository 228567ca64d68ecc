"""What an accelerator asks for: clocks that wait for it, memory that runs out, dtypes it lacks, modules on one."""

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from bif_lightning.exceptions import PreemptedError

_CPU_WORDS = ("can't allocate memory", "not enough memory")  # of torch's allocator, which raises a plain RuntimeError


def now() -> float:
    """Seconds of a clock that has waited for the work queued on the accelerator, if there is one."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, and nothing of what the model can do.

    >>> is_out_of_memory(torch.OutOfMemoryError("3 GB")), is_out_of_memory(RuntimeError("no second derivative"))
    (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_WORDS)


def raise_unrelated(error: BaseException) -> None:
    """Raise an error again that says nothing of the model, and that another way to compute would hide: memory ran out,
    or the job is to end."""
    if is_out_of_memory(error) or isinstance(error, PreemptedError):
        raise error


def check_float64(device: torch.device) -> None:
    """Check that a device computes in float64, in which losses are compared, and sums and Gram matrices are taken.

    Raises:
        ValueError: it does not, as that of Apple (mps).
    """
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError) as error:
        raise_unrelated(error)
        raise ValueError(
            f"the device {device.type} has no float64, which influence is computed with: move the model to the CPU "
            'with model.cpu(), and train with L.Trainer(accelerator="cpu"); or train on this device without the '
            "callback, and attribute the checkpoints on the CPU: bif_lightning.attribute(module, checkpoints, train, "
            'query, trainer=L.Trainer(accelerator="cpu"))'
        ) from error


def check_one_device(parameters: Mapping[str, Tensor]) -> None:
    """Check that all parameters are on one device.

    Raises:
        ValueError: they are not; the message names two of them.
    """
    first, *others = parameters.items()
    for name, parameter in others:
        if parameter.device != first[1].device:
            raise ValueError(
                f"the sampled weights are on several devices: {first[0]} on {first[1].device}, {name} on "
                f"{parameter.device}. Chains need them on one: load the model without device_map and offloading, or "
                "restrict params to the weights of one device"
            )
