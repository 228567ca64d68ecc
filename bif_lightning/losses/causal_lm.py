"""Token losses of causal language models, as a `loss_fn`, without a float32 copy of the logits.

The loss at position s is that of predicting token s of the text. The first token has no loss.

torch's cross-entropy keeps a float32 copy of the logits, and their log-softmax, for the backward pass. Here both passes
convert one chunk of tokens at a time, and the backward pass recomputes the softmax:

    loss_s = log Σ_v exp(z_sv) − z_s,label,   ∂loss_s/∂z_sv = softmax(z_s)_v − [v = label].
"""

import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional


def cross_entropy(
    logits: Float[Tensor, "batch token word"], labels: Int[Tensor, "batch token"], tokens: int
) -> Float[Tensor, "batch token"]:
    """−log softmax(logits)[label], nats, in float32 (float64 of float64 logits).

    Args:
        logits: in any precision.
        labels: class of each token, less than the number of words.
        tokens: number of tokens to compute at a time; if all fit, torch's cross-entropy is used.
    """
    flat, targets = logits.flatten(0, 1), labels.flatten()
    whole = len(targets) <= tokens
    losses = _plain(flat, targets) if whole else cast(Tensor, _Chunked.apply(flat, targets, tokens))
    return losses.view_as(labels)


def _plain(logits: Float[Tensor, "token word"], labels: Int[Tensor, " token"]) -> Float[Tensor, " token"]:
    return functional.cross_entropy(
        logits if logits.dtype == torch.float64 else logits.float(), labels, reduction="none"
    )


class _Chunked(torch.autograd.Function):
    """Cross-entropy in chunks. It can be differentiated any number of times, and in forward mode."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, tokens: int) -> Tensor:
        ctx.save_for_backward(logits, labels)
        ctx.save_for_forward(logits, labels)
        ctx.tokens = tokens
        parts = zip(logits.split(tokens), labels.split(tokens), strict=True)
        return torch.cat([_plain(scores, targets) for scores, targets in parts])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, labels = ctx.saved_tensors
        out = torch.empty_like(logits)
        for start in range(0, len(labels), ctx.tokens):
            part = slice(start, start + ctx.tokens)
            out[part] = _slope(logits[part], labels[part]) * grads[0][part, None]
        return out, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        logits, labels = ctx.saved_tensors
        parts = zip(*(each.split(ctx.tokens) for each in (logits, labels, tangents[0])), strict=True)
        return torch.cat([(_slope(scores, targets) * tangent).sum(1) for scores, targets, tangent in parts])


def _slope(logits: Float[Tensor, "token word"], labels: Int[Tensor, " token"]) -> Float[Tensor, "token word"]:
    chances = functional.softmax(logits if logits.dtype == torch.float64 else logits.float(), 1)
    ones = torch.ones_like(labels, dtype=chances.dtype)[:, None]
    return chances.scatter_add(1, labels[:, None], -ones)


_NO_FORWARD = ("torch.nn.modules.module", "lightning.pytorch.core.module", "pytorch_lightning.core.module")

TokenLosses = tuple[Tensor, Tensor]
"""Losses [batch, token], nats, and a mask of the same shape that is False for tokens without a loss."""

CHUNK = 1 << 24
"""Number of logits to convert to float32 at a time: 64 MB."""


def token_losses(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    shift: bool = False,
    chunk: int = CHUNK,
) -> TokenLosses:
    """Cross-entropy −log softmax(logits)[label] of every token, in float32.

    The logits are converted to float32 in chunks of tokens, and no chunk is kept. Beside the logits, only their
    gradient takes memory, in their precision.

    Args:
        logits: [batch, token, word], in any precision.
        labels: token that each position predicts, [batch, token]; with `shift` the tokens themselves, each predicted by
            the position before it.
        ignore_index: label of positions without a loss.
        shift: whether to shift the labels.
        chunk: number of logits in a chunk.

    Returns:
        Losses [batch, token] in nats, and a mask of the same shape; tokens without a loss have mask False and loss 0.

    Raises:
        ValueError: the shapes do not fit.

    >>> logits = torch.zeros(1, 3, 4)  # uniform over 4 words
    >>> losses, mask = token_losses(logits, torch.tensor([[2, 0, 3]]), shift=True)
    >>> [round(loss, 4) for loss in losses[0].tolist()], mask.tolist()
    ([0.0, 1.3863, 1.3863], [[False, True, True]])
    """
    if logits.dim() != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"logits have shape {list(logits.shape)} and labels {list(labels.shape)}; they must be "
            "[batch, token, word] and [batch, token]"
        )
    # Keep all positions, since slicing the logits would copy them; the last one predicts nothing.
    targets = functional.pad(labels[:, 1:], (0, 1), value=ignore_index) if shift else labels
    mask = targets != ignore_index
    losses = cross_entropy(logits, targets.masked_fill(~mask, 0), max(1, chunk // logits.shape[-1]))
    losses = losses.masked_fill(~mask, 0.0)
    if not shift:
        return losses, mask
    return functional.pad(losses, (1, -1)), functional.pad(mask, (1, -1))


def causal_lm_loss(module: nn.Module, batch: Any) -> TokenLosses:
    """Token losses of a causal language model, as a `loss_fn`.

    Batches may be

    - a mapping with "input_ids" [batch, token], and optionally "attention_mask" and "labels" of the same shape, as in
      Hugging Face transformers. A token has a loss if its label is not −100 and the mask is 1 for it and for the token
      before it. Padding may be on either side: positions count from the first token that is not padding;
    - a tensor of token ids [batch, token];
    - a pair (inputs, targets) of such tensors, with targets already shifted.

    A module without a forward method of its own, as a LightningModule that keeps the model in an attribute, is replaced
    by its part that is the model: the only one with a parameter `input_ids`, or else the only one with weights.

    The model must return logits [batch, token, word] as in LitGPT, an object or mapping with "logits", or a tuple that
    begins with logits. A forward method with a parameter `input_ids` gets the entries of a mapping that match its
    parameters, without the labels; any other method gets the token ids. For transformers, set
    `model.config.use_cache = False`, since the cache of keys and values only takes memory.

    Raises:
        ValueError: the batch has another form, the model does not return logits, or it cannot be told which part of the
            module is the model.

    >>> model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5))
    >>> losses, mask = causal_lm_loss(model, torch.tensor([[1, 4, 2]]))
    >>> losses.shape, mask.tolist()
    (torch.Size([1, 3]), [[False, True, True]])
    """
    module = _language_model(module)
    if isinstance(batch, Mapping):
        return _of_mapping(module, cast(Mapping[str, Any], batch))
    if isinstance(batch, Tensor):
        return token_losses(_logits(module(batch)), batch, shift=True)
    if isinstance(batch, list | tuple) and len(cast(list[Any], batch)) == 2:
        inputs, targets = cast(list[Tensor], batch)
        return token_losses(_logits(module(inputs)), targets)
    raise ValueError(
        f"causal_lm_loss got a batch of type {type(batch).__name__}; it takes a mapping with 'input_ids', a tensor of "
        "token ids, or a pair (inputs, targets); write a loss_fn with bif_lightning.token_losses for any other"
    )


def _language_model(module: nn.Module) -> nn.Module:
    """The module itself, or the part of it that is the model where it has no forward method."""
    if _has_forward(module):
        return module
    parts = dict(module.named_children())
    named = {name: part for name, part in parts.items() if "input_ids" in inspect.signature(part.forward).parameters}
    found = named or {name: part for name, part in parts.items() if next(part.parameters(), None) is not None}
    if len(found) == 1:
        return next(iter(found.values()))
    among = ", ".join(found) or "its parts"
    raise ValueError(
        f"{type(module).__name__} has no forward method, and it cannot be told which of {among} is the model: pass "
        f"loss_fn=lambda module, batch: causal_lm_loss(module.{next(iter(found), 'model')}, batch)"
    )


def _has_forward(module: nn.Module) -> bool:
    """Whether a module has a forward method, other than that of its base class which only fails."""
    return "forward" in vars(module) or getattr(type(module).forward, "__module__", "") not in _NO_FORWARD


def _of_mapping(module: nn.Module, batch: Mapping[str, Any]) -> TokenLosses:
    if "input_ids" not in batch:
        raise ValueError(
            f"causal_lm_loss got a batch with the keys {', '.join(map(str, batch))}, but without 'input_ids'; rename "
            "the column, or write a loss_fn with bif_lightning.token_losses"
        )
    ids: Tensor = batch["input_ids"]
    labels: Tensor = batch.get("labels", ids)
    attended: Tensor | None = batch.get("attention_mask")
    if attended is not None:
        there = attended.bool()
        # A token after padding is the first of its sequence.
        labels = labels.masked_fill(~there | ~functional.pad(there, (1, -1)), -100)
    losses, mask = token_losses(_logits(module(**_inputs(module, batch))), labels, shift=True)
    return (losses, mask) if attended is None else _aligned(losses, mask, attended.bool())


def _inputs(module: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a batch that the forward method has parameters for."""
    taken = inspect.signature(module.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return {name: value for name, value in batch.items() if name != "labels" and isinstance(value, Tensor)}
    if "input_ids" in taken:
        return {name: value for name, value in batch.items() if name in taken and name != "labels"}
    return {next(iter(taken)): batch["input_ids"]}


def _logits(found: Any) -> Tensor:
    if isinstance(found, Mapping) and "logits" in found:
        found = cast(Mapping[str, Any], found)["logits"]
    elif isinstance(found, tuple) and found:
        found = cast(tuple[Any, ...], found)[0]
    logits = found if isinstance(found, Tensor) else getattr(found, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        shape = f"a tensor of shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(found).__name__
        raise ValueError(
            f"the module returned {shape} for a batch of token ids; causal_lm_loss needs logits [batch, token, "
            "word], alone, under the name 'logits', or first in a tuple"
        )
    return logits


def _aligned(
    losses: Float[Tensor, "batch token"], mask: Bool[Tensor, "batch token"], attended: Bool[Tensor, "batch token"]
) -> TokenLosses:
    """Shift each sequence to begin at position 0, without the padding before it."""
    start = attended.int().argmax(1, keepdim=True)
    places = torch.arange(losses.shape[1], device=losses.device) + start
    inside = places < losses.shape[1]
    places = places.clamp(max=losses.shape[1] - 1)
    return losses.gather(1, places).masked_fill(~inside, 0.0), mask.gather(1, places) & inside
