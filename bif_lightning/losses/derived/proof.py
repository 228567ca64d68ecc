"""The check of per-example losses: a row of a batch must have the loss of its example in a batch of one."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bif_lightning.losses.derived.intercept import Step
from bif_lightning.model.devices import raise_unrelated
from bif_lightning.model.functional import FunctionalBackend
from bif_lightning.model.sharded import ShardedBackend, is_sharded, reshard
from bif_lightning.model.weights import WeightBackend, Weights, every_supported

# A batch and a batch of one use different kernels, and on a GPU only one of them may round to TF32.
ROUNDING: Final = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}
ROUNDING_TF32: Final = 1e-2
_SPREAD: Final = 3.0


def at_perturbed_weights(step: Step, module: nn.Module, params: Sequence[str] | None = None) -> Step:
    """The same step at weights with added noise, to distinguish examples with equal losses.

    The noise is the same at every call. Its standard deviation is half a parameter's root mean square plus 0.05, which
    also moves a head of zeros. Each call leaves the module unchanged. With a sharded module, all ranks must make the
    same calls. Complex parameters, which no chain moves, stay as they are. Without trainable parameters, the step runs
    at the module's own weights.

    Args:
        params: name patterns of the parameters that get noise; None for all trainable ones.
    """
    if not (names := params or every_supported(module)):
        return step
    sharded = is_sharded(module)
    backend = ShardedBackend(module, names) if sharded else FunctionalBackend(module, names, twins=False)
    weights = backend.weights()
    perturb(backend, weights)
    bound = backend.bind(weights)

    def perturbed(other: nn.Module, batch: Any) -> object:
        if sharded:
            reshard(other)  # weights that an earlier forward pass gathered would hide the noise
        return bound.call(lambda noisy: step(noisy, batch))

    return perturbed


def perturb(backend: WeightBackend, weights: Weights) -> None:
    """Add the noise of `at_perturbed_weights` to weights at the snapshot."""
    generator = torch.Generator(backend.device).manual_seed(0)
    with torch.no_grad():
        for parameter, piece in enumerate(backend.layout.pieces(weights.flat)):
            noise = torch.empty_like(piece)
            backend.fill_normal(noise, parameter, generator)
            if piece.numel():  # a rank may hold nothing of a small parameter
                piece.add_(noise * _noise_size(piece))


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
    """Whether losses differ from each other by more than a few tolerances, enough to detect a wrong row."""
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
    """Message that all examples have the same loss, with which the check cannot detect errors."""
    return (
        f"examples {list(rows)} all have the loss {alone[0].item():.6g} in a batch of one, also with noise on the "
        "weights, so a wrong loss could not be detected (contrastive losses of one example are constant)"
    )


@dataclass(frozen=True)
class RowPairs:
    """Losses of some examples, each alone and in a batch of all, at the same weights.

    Attributes:
        alone, together: shape [row], float64.
        rounding: relative rounding error of losses.
        scale: size of losses that rounding is relative to.
    """

    alone: Tensor
    together: Tensor
    rounding: float
    scale: float


def compare_rows(
    losses: Callable[[nn.Module, Any], Tensor],
    module: nn.Module,
    batch_of: Callable[[Sequence[int]], Any],
    rows: Sequence[int],
) -> list[RowPairs]:
    """Losses of examples alone and in a batch, with noise on the weights and at the weights themselves.

    Losses that are not finite are left out, and weights with noise at which the network fails.

    Args:
        losses: (module, batch) -> losses of shape [batch] or [batch, token].
        module: in eval mode.
        batch_of: collates examples, given by index.
    """
    batch, singles = batch_of(rows), [batch_of([row]) for row in rows]
    noisy, found = at_perturbed_weights(losses, module), list[RowPairs]()
    scale = 0.0  # small losses are dominated by rounding: those with noise on the weights set the scale of both
    for function in (noisy, losses):
        if is_sharded(module):
            reshard(module)  # of weights with noise that the pass before gathered
        try:
            with AutocastTypes() as autocast:
                values = [cast(Tensor, function(module, part)).detach() for part in (batch, *singles)]
        except Exception as error:
            raise_unrelated(error)
            if function is losses:
                raise
            continue
        together, *apart = (value.double().reshape(len(value), -1).sum(1) for value in values)
        alone = torch.cat(apart)
        if bool((together.isfinite() & alone.isfinite()).all()):
            scale = max(scale, float(alone.abs().mean()))
            types = float_types(module) | autocast.types | {values[0].dtype}
            found.append(RowPairs(alone, together, max(rounding(dtype, alone.device) for dtype in types), scale))
    return found


def unequal_rows(pairs: Iterable[RowPairs], rows: Sequence[int], least: float = 0.0) -> str | None:
    """Describe a row of a batch whose loss is not that of its example alone; None if all agree.

    Args:
        rows: the examples, for the message.
        least: relative difference that is accepted in any case.
    """
    found = (disagreement(p.alone, p.together, rows, max(least, p.rounding) * p.scale) for p in pairs)
    return next((wrong for wrong in found if wrong is not None), None)
