"""The terms of a loss: the elementwise losses that a training step reduced, and their coefficients.

A training step returns one number L for a batch. Computed with losses of `torch.nn.functional`, it is a weighted sum of
elementwise losses,  L = Σ_k c_k r_k.  `capture` finds both: it makes every such call without its reduction, turns the
elements r into leaves of the autograd graph, lets the step continue from them, and takes c = ∂L/∂r.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bif_lightning.data.tensors import plain_tensor

Step = Callable[[nn.Module, Any], object]
"""A call of a training step: (module, batch) -> a scalar tensor, or a mapping with one under "loss"."""

_Arguments = Mapping[str, Any]
T = TypeVar("T")


class NotSeparableError(ValueError):
    """The loss of a training step was not shown to be a sum over its examples; the message says why."""

    def __init__(self, reason: str, calls: Sequence["Call"] = ()) -> None:
        super().__init__(reason)
        self.calls = tuple(calls)


@dataclass(frozen=True)
class Call:
    """One call of a loss of `torch.nn.functional`.

    Attributes:
        name: the function, such as "cross_entropy".
        reduction: the caller's reduction: "mean", "sum", "none" or "batchmean".
        elements: r, the losses without reduction, weighted as the function weights them; a leaf.
        weights: z, the contribution of each element to the divisor of the function's mean (class weight, or 0 if
            ignored); None if all are 1.
        arguments: the arguments of the call, with shapes instead of tensors, since keeping tensors of the size of
            logits for the whole batch would dominate the memory.
        precision: the coarser of the dtype of its first argument and, if enabled, that of autocast.
    """

    name: str
    reduction: str
    elements: Tensor
    weights: Tensor | None
    arguments: _Arguments
    precision: torch.dtype

    def reduced(self) -> Tensor:
        """The reduced loss that the caller expects, from `elements`; a mean over no element is 0 instead of NaN."""
        if self.reduction == "none":
            return self.elements.clone()  # a leaf would refuse the caller's in-place masking
        total = self.elements.sum()
        if self.reduction == "sum":
            return total
        if self.reduction == "batchmean":
            return total / self.arguments["input"][0]
        if self.weights is None:
            return total / self.elements.numel()
        divisor = self.weights.sum()
        return total / torch.where(divisor == 0, 1.0, divisor)


@dataclass(frozen=True)
class Term:
    """One call and its coefficients in the loss.

    Attributes:
        call: the call.
        coefficients: c = ∂L/∂r, with the shape of `call.elements`; None if the call does not enter L.
    """

    call: Call
    coefficients: Tensor | None


@dataclass(frozen=True)
class Captured:
    """A loss and its terms.

    Attributes:
        loss: L, a scalar without a graph.
        terms: one for each call, in the order of the calls.
    """

    loss: Tensor
    terms: tuple[Term, ...]


def capture(step: Step, module: nn.Module, batch: Any) -> Captured:
    """Run a training step once and find the terms of its loss; `check_sum` checks that they are complete.

    This does not need a graph of the network's forward pass; with weights that do not require gradients, none is
    recorded. It is thread-safe, since function modes belong to one thread.

    Args:
        step: the training step.
        module: its first argument.
        batch: its second argument.

    Raises:
        NotSeparableError: no loss of `torch.nn.functional` reaches the result, or the result is not a scalar.
    """
    mode = _Intercept()
    with torch.inference_mode(False), torch.enable_grad():
        with mode:
            output = step(module, batch)
        loss = scalar_loss(output)
        leaves = [call.elements for call in mode.calls]
        grads: tuple[Tensor | None, ...] = ()
        if leaves and loss.requires_grad:
            grads = cast("tuple[Tensor | None, ...]", torch.autograd.grad(loss, leaves, allow_unused=True))
    calls = tuple(mode.calls)
    if all(grad is None for grad in grads):
        raise NotSeparableError(_nothing_reached(calls), calls)
    return Captured(loss.detach(), tuple(map(Term, calls, grads)))


def averaged(step: Step, module: nn.Module, batch: Any, sums: Sequence[bool], size: int) -> Tensor:
    """The loss of a training step, with its graph, with some of its loss calls divided by the number of examples.

    Examples that have no target (all their labels are ignored) do not count, as in a mean. What the step does with the
    results of the calls is linear, as `check_sum` showed.

    Args:
        sums: of each call, in their order, whether it is divided.
        size: the number of examples in the batch.
    """
    with _Average(sums, size):
        return scalar_loss(step(module, batch))


def scalar_loss(output: object) -> Tensor:
    """The scalar loss in what a training step returned.

    Raises:
        NotSeparableError: it does not contain one.
    """
    loss = cast("Mapping[str, object]", output).get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise NotSeparableError(
            f"training_step returned {type(output).__name__} without a loss tensor (manual optimization and skipped "
            "batches do so)"
        )
    if loss.numel() != 1:
        raise NotSeparableError(f"training_step returned a loss of shape {tuple(loss.shape)}, which is not a scalar")
    return plain_tensor(loss).reshape(())


class _Intercept(TorchFunctionMode):
    """Makes calls of known losses without their reduction, and records them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func not in _WEIGHTS:
            return func(*args, **(kwargs or {}))
        call = unreduced(func, args, kwargs or {})
        self.calls.append(call)
        return call.reduced()


class _Average(TorchFunctionMode):
    """Divides the results of chosen calls of known losses by the number of examples."""

    def __init__(self, sums: Sequence[bool], size: int) -> None:
        super().__init__()
        self.sums, self.size = list(sums), size

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in _WEIGHTS or not self.sums or not self.sums.pop(0):
            return result
        return result / _counted(func, args, kwargs or {}, self.size)


def _counted(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], size: int) -> Tensor | int:
    """How many of `size` examples have a target."""
    arguments = _bound(func, args, kwargs)
    weights = _of_target(arguments, arguments["input"]) if _WEIGHTS[func] is _of_target else None
    return size if weights is None else weights.reshape(size, -1).any(1).sum().clamp(min=1)


def arguments_of(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of a call by name, defaults among them; None where the function is no known loss."""
    return _bound(func, args, kwargs) if func in _WEIGHTS else None


def unreduced(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, leaf: bool = True) -> Call:
    """Make the call of a known loss without its reduction.

    Args:
        leaf: its elements are leaves of the graph; else they have the graph of the call.
    """
    arguments = _bound(func, args, kwargs)
    average, reduce = arguments.pop("size_average", None), arguments.pop("reduce", None)
    reduction: str = arguments.pop("reduction")
    if average is not None or reduce is not None:  # the arguments that `reduction` replaced in torch 0.4
        reduction = "none" if reduce is False else "sum" if average is False else "mean"
    full = {name: at_least_float32(value) for name, value in arguments.items()}
    with torch.set_grad_enabled(not leaf):
        elements = plain_tensor(func(**full, reduction="none"))
    with torch.no_grad():
        weights = _WEIGHTS[func](full, elements)
    if leaf:
        elements = elements.detach().requires_grad_()
    precision = _precision(next(value for value in arguments.values() if isinstance(value, Tensor)))
    shapes = {name: value.shape if isinstance(value, Tensor) else value for name, value in arguments.items()}
    return Call(func.__name__, reduction, elements, weights, shapes, precision)


def _bound(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    bound = _SIGNATURES[func].bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _precision(first: Tensor) -> torch.dtype:
    device = first.device.type
    if not torch.is_autocast_enabled(device):
        return first.dtype
    return max(first.dtype, torch.get_autocast_dtype(device), key=lambda dtype: torch.finfo(dtype).eps)


def at_least_float32(value: T) -> T:
    """A tensor of half precision in float32; anything else as it is."""
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return cast(T, value.float())
    return value


def _ones(arguments: _Arguments, elements: Tensor) -> Tensor | None:
    return None


def _given(arguments: _Arguments, elements: Tensor) -> Tensor | None:
    weight = arguments["weight"]
    return None if weight is None else weight.expand_as(elements)


def _of_target(arguments: _Arguments, elements: Tensor) -> Tensor | None:
    target: Tensor = arguments["target"]
    if target.is_floating_point():  # class probabilities: the mean divides by the number of positions
        return None
    target = target.long()  # labels of uint8 would be a mask where they are indices
    counted = target != arguments["ignore_index"]
    if arguments["weight"] is None:
        return counted.to(elements.dtype)
    weight: Tensor = arguments["weight"][torch.where(counted, target, 0)]
    return torch.where(counted, weight, 0).to(elements.dtype)


_WEIGHTS: Final[dict[Callable[..., Any], Callable[[_Arguments, Tensor], Tensor | None]]] = {
    F.cross_entropy: _of_target,
    F.nll_loss: _of_target,
    F.mse_loss: _given,
    F.l1_loss: _given,
    F.huber_loss: _given,
    F.smooth_l1_loss: _ones,
    F.binary_cross_entropy: _ones,
    F.binary_cross_entropy_with_logits: _ones,
    F.gaussian_nll_loss: _ones,
    F.poisson_nll_loss: _ones,
    F.kl_div: _ones,
    F.soft_margin_loss: _ones,
    F.hinge_embedding_loss: _ones,
    F.margin_ranking_loss: _ones,
    F.cosine_embedding_loss: _ones,
    F.triplet_margin_loss: _ones,
    F.multi_margin_loss: _ones,
    F.multilabel_margin_loss: _ones,
    F.multilabel_soft_margin_loss: _ones,
}
_SIGNATURES: Final = {func: inspect.signature(func) for func in _WEIGHTS}


def _nothing_reached(calls: tuple[Call, ...]) -> str:
    if not calls:
        return "training_step called no loss of torch.nn.functional (or of torch.nn, such as nn.CrossEntropyLoss)"
    names = ", ".join(call.name for call in calls)
    return f"training_step called {names}, but what it returned does not depend on the result"
