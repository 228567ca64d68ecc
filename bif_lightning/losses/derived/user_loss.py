"""Checks of a user's per-example loss function."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

import torch
from torch import Tensor, nn

from bif_lightning.data.variety import CheckedExamples
from bif_lightning.distributed.ranks import current_ranks
from bif_lightning.exceptions import LossRefusedError
from bif_lightning.losses.derived.modes import part_to_train
from bif_lightning.losses.derived.proof import compare_rows, perturb, unequal_rows
from bif_lightning.losses.derived.randomness import by_chance, refusal_of_chance
from bif_lightning.losses.graph import needs_graph
from bif_lightning.losses.problem import eval_mode
from bif_lightning.model.functional import FunctionalBackend
from bif_lightning.model.sharded import is_sharded
from bif_lightning.model.weights import every_supported

_TOLERANCE: Final = 0.03
_EXAMPLE: Final = 'return F.cross_entropy(module(x), y, reduction="none")'


def check_user_loss_on(
    loss_fn: Callable[[nn.Module, Any], Tensor],
    module: nn.Module,
    sets: Sequence[CheckedExamples],
    *,
    gradient: bool = True,
    random: bool = False,
) -> None:
    """Check a loss function on examples of several sets.

    Args:
        sets: of one example alone nothing is checked.
        gradient: whether to check that the loss of the first set has a gradient.
        random: whether the losses may be random.

    Raises:
        LossRefusedError: see `check_user_loss`; it names the set where that is not the first.
    """
    for place, some in enumerate(sets):
        if len(some.rows) < 2:
            continue
        try:
            check_user_loss(loss_fn, module, some.batch_of, some.rows, gradient=gradient and not place, random=random)
        except LossRefusedError as error:
            if not place:
                raise
            raise LossRefusedError(f"of the {some.name} examples, {error}") from error


def check_user_loss(
    loss_fn: Callable[[nn.Module, Any], Tensor],
    module: nn.Module,
    batch_of: Callable[[Sequence[int]], Any],
    rows: Sequence[int],
    *,
    gradient: bool = True,
    random: bool = False,
) -> None:
    """Check that a user's loss function returns the loss of each example, and is differentiable.

    The module runs in eval mode; its gradients stay unchanged. Losses in half precision cause a warning.

    Args:
        loss_fn: (module, batch) -> losses of shape [batch] or [batch, token].
        module: with weights at which the loss is finite.
        batch_of: collates examples, given by index.
        rows: at least two examples.
        gradient: whether to check that the loss of these examples has one; where a margin is kept it is 0.
        random: whether the losses may be random, which hides whether they depend on other examples.

    Raises:
        ValueError: fewer than two examples in `rows`.
        LossRefusedError: the result is not a tensor, a scalar, of a wrong length or dtype, not finite, or without a
            gradient to any weight; or an example alone has another loss than its row (tokens summed).
    """
    if len(rows) < 2:
        raise ValueError(f"rows is {list(rows)}; a loss function is checked on at least two examples")
    with eval_mode(module):
        batch = batch_of(rows)
        recorded = _runs(loss_fn, module, batch)
        with torch.set_grad_enabled(recorded):
            result = loss_fn(module, batch)
        _check_form(result, len(rows))
        _warn_of_rounding(result)
        _check_finite(result, rows)
        if gradient:
            _check_gradient(loss_fn, module, batch)
        with torch.set_grad_enabled(recorded):
            _check_form(loss_fn(module, batch_of(rows[:1])), 1)
        _check_alone(loss_fn, module, batch_of, rows, recorded, random=random)


def _runs(loss_fn: Callable[[nn.Module, Any], Tensor], module: nn.Module, batch: Any) -> bool:
    """Whether the loss needs a graph.

    Raises:
        LossRefusedError: it fails in evaluation mode, and not in training mode.
    """
    try:
        return needs_graph(lambda: loss_fn(module, batch))
    except Exception as error:
        if part := part_to_train(loss_fn, module, batch):
            raise LossRefusedError(part.message("loss_fn")) from error
        raise


def _warn(message: str) -> None:
    """On the first rank; Lightning, which has a function for that, may not be there."""
    if current_ranks().rank == 0:
        warnings.warn(message, stacklevel=2)


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
        _warn(
            f"loss_fn returns {result.dtype}, which keeps about three digits. An influence is a covariance of small "
            "changes of the losses, which such rounding hides. Compute the loss from logits in float32:\n"
            '    return F.cross_entropy(module(x).float(), y, reduction="none")'
        )


def _check_finite(result: Tensor, rows: Sequence[int]) -> None:
    finite = result.isfinite().reshape(len(rows), -1).all(1).tolist()
    bad = [row for row, good in zip(rows, finite, strict=True) if not good]
    if bad:
        _refuse(f"returned a loss that is not finite for the examples {bad}", "check these examples, or leave them out")


def _check_gradient(loss_fn: Callable[[nn.Module, Any], Tensor], module: nn.Module, batch: Any) -> None:
    if is_sharded(module) or not (names := every_supported(module)):
        return  # the first snapshot checks the gradient
    backend = FunctionalBackend(module, names, twins=False)
    weights = backend.weights()

    def backward(bound: nn.Module) -> None:
        with torch.enable_grad():
            losses = loss_fn(bound, batch)
            if losses.requires_grad:
                # Unequal weights, since centred losses add up to 0 and are refused with another message.
                losses.backward(torch.linspace(1, 2, losses.numel()).to(losses).view_as(losses))

    bound = backend.bind(weights)
    bound.call(backward)
    if not bool(weights.gradient.any()):  # as at the minimum of a loss that fits every example
        perturb(backend, weights)
        bound.call(backward)
    if not bool(weights.gradient.any()):
        _refuse(
            "has no gradient to any weight of the module",
            "leave out .detach(), .item(), numpy and torch.no_grad, and use the module that is passed in",
        )


def _check_alone(
    loss_fn: Callable[[nn.Module, Any], Tensor],
    module: nn.Module,
    batch_of: Callable[[Sequence[int]], Any],
    rows: Sequence[int],
    recorded: bool,
    *,
    random: bool,
) -> None:
    def losses(own: nn.Module, batch: Any) -> Tensor:
        with torch.set_grad_enabled(recorded):
            return loss_fn(own, batch)

    pairs = compare_rows(losses, module, batch_of, rows)
    if (wrong := unequal_rows(pairs, rows, _TOLERANCE)) is not None:
        if source := by_chance(loss_fn, module, batch_of, rows):
            if random:
                return
            raise LossRefusedError(refusal_of_chance(source, "loss_fn"))
        _refuse(
            f"is not the loss of each example: {wrong}",
            "the loss of an example must not depend on the others in its batch (no mean over the batch, no "
            "division by its length), and the losses must be in the order of the examples",
        )
    if (wrong := unequal_rows(pairs, rows)) is not None:
        _warn(
            f"loss_fn: {wrong}. That is more than rounding in the dtypes of the weights explains. Unless a kernel "
            "rounds to fewer digits, the loss of an example depends on the others in its batch, and its influence too"
        )
