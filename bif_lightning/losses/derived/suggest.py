"""The message for a training step that gives no per-example losses: the reasons, and a `loss_fn` to start from."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bif_lightning.losses.derived.batch_size import tensors_in
from bif_lightning.losses.derived.intercept import Call
from bif_lightning.losses.derived.reduction import PerSample

_TARGET_KEYS: Final = ("labels", "label", "targets", "target", "y")


def refusal(
    reasons: Mapping[str, str], calls: Sequence[Call], batch: Any, size: int, per_sample: PerSample = "mean"
) -> str:
    """A message that says why per-example losses cannot be derived, and shows what to pass.

    Args:
        reasons: why each method failed, by method.
        calls: the loss calls that were recorded.
        batch: the batch that was tried.
        size: its number of examples.
        per_sample: whether to average or to add the losses of an example's elements.
    """
    tried = "\n".join(f"- {way}: {reason}." for way, reason in reasons.items())
    return (
        f"per-example losses (per_sample={per_sample!r}) cannot be derived from training_step. Tried:\n{tried}\n"
        "Pass the loss of each example to the callback, shape [batch] (or [batch, token]). From the recorded calls, "
        "with module(x) as the forward pass:\n\n"
        f"{suggested_loss_fn(calls, batch, size, per_sample)}\n\n"
        "BIFCallback(..., loss_fn=loss_fn)"
    )


def suggested_loss_fn(calls: Sequence[Call], batch: Any, size: int, per_sample: PerSample = "mean") -> str:
    """Source of a `loss_fn` that makes the recorded calls without their reduction."""
    lines = ["import torch.nn.functional as F", "", "def loss_fn(module, batch):", f"    {_unpacking(batch)}"]
    seen = {call.name: call for call in calls if "target" in call.arguments and "input" in call.arguments}
    if not seen:
        floating = [tensor.is_floating_point() for tensor in tensors_in(batch)]
        name = "mse_loss" if floating and all(floating) else "cross_entropy"
        lines.append("    # Write the formula of training_step here, without its mean over the examples.")
        lines.append(f'    return F.{name}(module(x), y, reduction="none")')
        return "\n".join(lines)
    lines += [f"    {name} = ...  # the tensor that training_step passes" for name in _tensor_options(seen.values())]
    lines.append("    # Add what training_step computes by hand, and its factors, for each example.")
    terms = [_expression(call, size, per_sample) for call in seen.values()]
    return "\n".join([*lines, f"    return {' + '.join(terms)}"])


def _unpacking(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return "x = y = batch"
    if isinstance(batch, Mapping):
        keys = list(cast("Mapping[Any, Any]", batch))
        target = next((key for key in _TARGET_KEYS if key in keys), keys[-1])
        source = next((key for key in keys if key != target), target)
        return f"x, y = batch[{source!r}], batch[{target!r}]"
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        count = len(cast("Sequence[Any]", batch))
        return {1: "x = y = batch[0]", 2: "x, y = batch"}.get(count, "x, y, *_ = batch")
    return "x, y = ...  # the inputs and targets in your batch"


def _tensor_options(calls: Any) -> list[str]:
    names = [name for call in calls for name, value in _options(call).items() if isinstance(value, torch.Size)]
    return sorted(set(names))


def _options(call: Call) -> dict[str, Any]:
    defaults = inspect.signature(getattr(F, call.name)).parameters
    given = {name: value for name, value in call.arguments.items() if name not in ("input", "target")}
    return {
        name: value for name, value in given.items() if isinstance(value, torch.Size) or value != defaults[name].default
    }


def _expression(call: Call, size: int, per_sample: PerSample) -> str:
    options = "".join(
        f", {name}={name if isinstance(value, torch.Size) else repr(value)}" for name, value in _options(call).items()
    )
    elements = call.elements
    if elements.dim() and elements.shape[0] != size and elements.numel() % size == 0:
        classes = ", -2" if len(call.arguments["input"]) > elements.dim() else ""
        return (
            f'F.{call.name}(module(x).flatten(0{classes}), y.flatten(), reduction="none"{options}).reshape(len(y), -1)'
        )
    over_elements = f".flatten(1).{per_sample}(1)" if elements.dim() > 1 else ""
    outputs = "module(x)"
    if call.name == "nll_loss":
        outputs = "module(x).log_softmax(1)"
    return f'F.{call.name}({outputs}, y, reduction="none"{options}){over_elements}'
