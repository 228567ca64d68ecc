"""The oracle for per-example losses: an example in a batch of one must have the loss of its row."""

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .capture import Step

# A batch and a batch of one take different kernels, and on a GPU only one of them may round to TF32.
ROUNDING: Final = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}
ROUNDING_TF32: Final = 1e-2
_SPREAD: Final = 3.0


class Bound(nn.Module):
    """A function of a module as a module, so that `functional_call` can put other weights in."""

    def __init__(self, module: nn.Module, step: Step) -> None:
        super().__init__()
        self.module = module
        self.step = step

    def forward(self, batch: Any) -> object:
        return self.step(self.module, batch)


def at_perturbed_weights(step: Step, module: nn.Module) -> Step:
    """The same step at weights with noise on them, where examples that had equal losses have different ones.

    The noise is the same at every call: 0.5 of a parameter's root mean square plus 0.05, so that a head of
    zeros moves as well. The module gets its own weights back after each call.
    """
    generator = torch.Generator().manual_seed(0)
    noisy: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point():
            value = parameter.detach()
            noise = torch.randn(value.shape, generator=generator).to(value)
            noisy[f"module.{name}"] = value + noise * (0.5 * value.square().mean().sqrt() + 0.05)

    def perturbed(other: nn.Module, batch: Any) -> object:
        return functional_call(Bound(other, step), noisy, (batch,))

    return perturbed


def rounding(dtype: torch.dtype, device: torch.device) -> float:
    """Relative difference of losses that rounding explains in this precision on this device."""
    tolerance = ROUNDING.get(dtype, ROUNDING[torch.float32])
    return max(tolerance, ROUNDING_TF32) if device.type == "cuda" and dtype != torch.float64 else tolerance


def tells_apart(alone: Tensor, tolerance: float) -> bool:
    """Whether losses differ from each other by more than a few tolerances, so that a wrong row would be seen."""
    return bool(((alone - alone.mean()).abs() > _SPREAD * tolerance).any())


def disagreement(alone: Tensor, rows: Tensor, indices: Sequence[int], tolerance: float) -> str | None:
    """Say how rows differ from the losses of the examples alone.

    Args:
        alone: the loss of each example in a batch of one, shape [row].
        rows: the loss that the batch gives to each, shape [row].
        indices: the example of each row, for the message.
        tolerance: largest difference, in the losses' units, beyond 1e-4 of each loss.

    Returns:
        The first difference in words; None where there is none.
    """
    for index, single, row in zip(indices, alone.tolist(), rows.tolist(), strict=True):
        if not math.isfinite(single) or not math.isfinite(row):
            return f"the loss of example {index} is {single} alone and {row} in a batch"
        if abs(single - row) > tolerance + 1e-4 * abs(single):
            return (
                f"example {index} has loss {single:.6g} in a batch of one, but {row:.6g} as its part of a batch of "
                f"{len(indices)}: the loss couples the examples of a batch (contrastive losses, hard-example "
                "mining and random mixing do), or its elements are not in the order of the examples"
            )
    return None
