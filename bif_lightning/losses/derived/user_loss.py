"""Checks of a user's per-example loss function."""

from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from bif_lightning.exceptions import LossRefusedError
from bif_lightning.losses.derived.proof import rounding
from bif_lightning.losses.problem import eval_mode
from bif_lightning.model.functional import FunctionalBackend
from bif_lightning.model.sharded import is_sharded

_TOLERANCE: Final = 0.03
_EXAMPLE: Final = 'return F.cross_entropy(module(x), y, reduction="none")'


def check_user_loss(
    loss_fn: Callable[[nn.Module, Any], Tensor],
    module: nn.Module,
    batch_of: Callable[[Sequence[int]], Any],
    rows: Sequence[int],
) -> None:
    """Check that a user's loss function returns the loss of each example, and is differentiable.

    The module runs in eval mode; its gradients stay unchanged. Losses in half precision cause a warning.

    Args:
        loss_fn: (module, batch) -> losses of shape [batch] or [batch, token].
        module: with weights at which the loss is finite.
        batch_of: collates examples, given by index.
        rows: at least two examples.

    Raises:
        ValueError: fewer than two examples in `rows`.
        LossRefusedError: the result is not a tensor, a scalar, of a wrong length or dtype, not finite, or without a
            gradient to any weight; or an example alone has another loss than its row (tokens summed).
    """
    if len(rows) < 2:
        raise ValueError(f"rows is {list(rows)}; a loss function is checked on at least two examples")
    with eval_mode(module):
        batch = batch_of(rows)
        with torch.no_grad():
            result = loss_fn(module, batch)
        _check_form(result, len(rows))
        _warn_of_rounding(result)
        _check_finite(result, rows)
        _check_gradient(loss_fn, module, batch)
        with torch.no_grad():
            alone = [loss_fn(module, batch_of([row])) for row in rows]
    _check_alone(alone, result, rows)


def _refuse(found: str, action: str) -> NoReturn:
    raise LossRefusedError(f"loss_fn {found}; {action}")


def _check_form(result: object, size: int) -> None:
    if not isinstance(result, Tensor):
        _refuse(f"returned {type(result).__name__}", f"return a tensor of shape [batch], such as\n    {_EXAMPLE}")
    if result.dim() == 0:
        _refuse(
            f"returned one number for a batch of {size} examples",
            f'return one for each example, with reduction="none":\n    {_EXAMPLE}',
        )
    if result.dim() > 2 or result.shape[0] != size:
        _refuse(
            f"returned shape {tuple(result.shape)} for a batch of {size} examples",
            f"return [{size}] or [{size}, token], for instance by .reshape(len(y), -1)",
        )
    if not result.is_floating_point():
        _refuse(f"returned {result.dtype}", "return a loss in floating point (accuracy is not a loss)")


def _warn_of_rounding(result: Tensor) -> None:
    if result.dtype in (torch.bfloat16, torch.float16):
        rank_zero_warn(
            f"loss_fn returns {result.dtype}, which keeps about three digits. An influence is a covariance of small "
            "changes of the losses, which such rounding covers up. Compute the loss from logits in float32:\n"
            '    return F.cross_entropy(module(x).float(), y, reduction="none")'
        )


def _check_finite(result: Tensor, rows: Sequence[int]) -> None:
    finite = result.isfinite().reshape(len(rows), -1).all(1).tolist()
    bad = [row for row, good in zip(rows, finite, strict=True) if not good]
    if bad:
        _refuse(
            f"returned a loss that is not finite for the examples {bad}", "look at these examples or leave them out"
        )


def _check_gradient(loss_fn: Callable[[nn.Module, Any], Tensor], module: nn.Module, batch: Any) -> None:
    if is_sharded(module) or not any(parameter.requires_grad for parameter in module.parameters()):
        return  # the first snapshot checks the gradient
    backend = FunctionalBackend(module, twins=False)
    weights = backend.weights()

    def backward(bound: nn.Module) -> None:
        with torch.enable_grad():
            losses = loss_fn(bound, batch)
            if losses.requires_grad:
                # Unequal weights, since centred losses add up to 0 and are refused with another message.
                losses.backward(torch.linspace(1, 2, losses.numel()).to(losses).view_as(losses))

    backend.bind(weights).call(backward)
    if not bool(weights.gradient.any()):
        _refuse(
            "has no gradient to any weight of the module",
            "leave out .detach(), .item(), numpy and torch.no_grad, and use the module that is passed in",
        )


def _check_alone(alone: Sequence[object], result: Tensor, rows: Sequence[int]) -> None:
    sums = result.detach().double().reshape(len(rows), -1).sum(1)
    relative = max(_TOLERANCE, rounding(result.dtype, result.device))
    tolerance = relative * float(sums.abs().mean()) + 1e-6
    for row, single, together in zip(rows, alone, sums.tolist(), strict=True):
        _check_form(single, 1)
        value = float(single.detach().double().sum()) if isinstance(single, Tensor) else float("nan")
        if not abs(value - together) <= tolerance:
            _refuse(
                f"gives example {row} the loss {value:.6g} in a batch of one, but {together:.6g} in a batch "
                f"of {len(rows)}",
                "the loss of an example must not depend on the others in its batch (no mean over the batch, no "
                "division by its length), and the losses must be in the order of the examples",
            )
