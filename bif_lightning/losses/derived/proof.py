"""The check of per-example losses: a row of a batch must have the loss of its example in a batch of one."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bif_lightning.losses.derived.intercept import Step
from bif_lightning.model.functional import FunctionalBackend
from bif_lightning.model.sharded import ShardedBackend, is_sharded, reshard

# A batch and a batch of one take different kernels, and on a GPU only one of them may round to TF32.
ROUNDING: Final = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}
ROUNDING_TF32: Final = 1e-2
_SPREAD: Final = 3.0


def at_perturbed_weights(step: Step, module: nn.Module) -> Step:
    """The same step at weights with added noise, where examples with equal losses get different ones.

    The noise is the same at every call. Its standard deviation is half a parameter's root mean square plus 0.05, so
    that a head of zeros moves too. Each call leaves the module unchanged. Where ranks hold it in shards, all make the
    same calls. Without a trainable parameter the step runs at the module's own weights.
    """
    if not any(parameter.requires_grad for parameter in module.parameters()):
        return step
    sharded = is_sharded(module)
    backend = ShardedBackend(module) if sharded else FunctionalBackend(module, twins=False)
    weights = backend.weights()
    generator = torch.Generator(backend.device).manual_seed(0)
    with torch.no_grad():
        for parameter, piece in enumerate(backend.layout.pieces(weights.flat)):
            noise = torch.empty_like(piece)
            backend.fill_normal(noise, parameter, generator)
            if piece.numel():  # a rank may hold nothing of a small parameter
                piece.add_(noise * _noise_size(piece))
    bound = backend.bind(weights)

    def perturbed(other: nn.Module, batch: Any) -> object:
        if sharded:
            reshard(other)  # weights that an earlier forward pass gathered would hide the noise
        return bound.call(lambda noisy: step(noisy, batch))

    return perturbed


def _noise_size(value: Tensor) -> Tensor:
    return 0.5 * value.square().mean().sqrt() + 0.05


def rounding(dtype: torch.dtype, device: torch.device) -> float:
    """Relative rounding error of losses in this precision on this device."""
    tolerance = ROUNDING.get(dtype, ROUNDING[torch.float32])
    return max(tolerance, ROUNDING_TF32) if device.type == "cuda" and dtype != torch.float64 else tolerance


class AutocastTypes(TorchFunctionMode):
    """Records the dtypes that autocast rounds to."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and torch.is_autocast_enabled(result.device.type):
            self.types.add(torch.get_autocast_dtype(result.device.type))
        return result


def float_types(module: nn.Module) -> set[torch.dtype]:
    """Floating dtypes of the weights: a network may round to them before it casts its outputs to float32."""
    return {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}


def losses_differ(alone: Tensor, tolerance: float) -> bool:
    """Whether losses differ from each other by more than a few tolerances, so that a wrong row would show."""
    return bool(((alone - alone.mean()).abs() > _SPREAD * tolerance).any())


def disagreement(alone: Tensor, rows: Tensor, indices: Sequence[int], tolerance: float) -> str | None:
    """Describe how rows differ from the losses of the examples alone.

    Args:
        alone: the loss of each example in a batch of one, shape [row].
        rows: the loss that the batch gives to each, shape [row].
        indices: the example of each row, for the message.
        tolerance: largest difference, in the losses' units, beyond 1e-4 of each loss.

    Returns:
        The first difference in words; None if all agree.
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


def equal_losses(rows: Sequence[int], alone: Tensor) -> str:
    """A sentence that all examples have the same loss, so that the check shows nothing."""
    return (
        f"examples {list(rows)} all have the loss {alone[0].item():.6g} in a batch of one, also with noise on the "
        "weights, so that a wrong loss could not be distinguished (contrastive losses of one example are constant)"
    )
