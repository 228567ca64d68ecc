"""Losses of single tokens of language models, as a `loss_fn` for `per_token=True`.

Position s of the losses is that of predicting token s, so that it is the place of the token in its text. A token with
nothing before it has no loss.

Cross-entropy of many tokens over a large vocabulary, without a second copy of the logits.

torch's own keeps the logits once more in float32, and their log-softmax, for the backward pass. Here both passes turn
them into float32 a chunk of tokens at a time, and the backward pass computes the softmax again:

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
        labels: below the number of words.
        tokens: how many are computed at a time; where there are no more, it is torch's own.
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
    """Differentiable any number of times, and in forward mode: all passes are made of torch's own operations."""

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


TokenLosses = tuple[Tensor, Tensor]
"""Losses [batch, token], nats, and a mask of the same shape, False where a token has no loss."""

CHUNK = 1 << 24
"""Logits, as numbers, that are turned into float32 at a time: 64 MB."""


def token_losses(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    shift: bool = False,
    chunk: int = CHUNK,
) -> TokenLosses:
    """Cross-entropy −log softmax(logits)[label] of every token, in float32.

    The logits are turned into float32 a chunk of tokens at a time, and no chunk is kept: beside the logits themselves
    there is at most their gradient, in their own precision.

    Args:
        logits: at every position [batch, token, word], in any precision.
        labels: the token that each position predicts [batch, token]; with `shift` the tokens themselves, each predicted
            by the position before it.
        ignore_index: label of positions that have no loss.
        shift: labels are not shifted yet.
        chunk: logits, as numbers, in a chunk.

    Returns:
        losses [batch, token] in nats, 0 where there is none; mask, False there. Both in the places of the labels.

    Raises:
        ValueError: shapes that do not belong together.
    """
    if logits.dim() != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"logits have shape {list(logits.shape)} and labels {list(labels.shape)}; they must be "
            "[batch, token, word] and [batch, token]"
        )
    # All positions are kept, as a part of the logits would be a copy of them; the last one predicts nothing.
    targets = functional.pad(labels[:, 1:], (0, 1), value=ignore_index) if shift else labels
    mask = targets != ignore_index
    losses = cross_entropy(logits, targets.masked_fill(~mask, 0), max(1, chunk // logits.shape[-1]))
    losses = losses.masked_fill(~mask, 0.0)
    if not shift:
        return losses, mask
    return functional.pad(losses, (1, -1)), functional.pad(mask, (1, -1))


def causal_lm_loss(module: nn.Module, batch: Any) -> TokenLosses:
    """Losses of the tokens of a causal language model, for `loss_fn`.

    Batches may be

    - a mapping with "input_ids" [batch, token], and maybe "attention_mask" and "labels" in the same places, as of
      Hugging Face transformers: a token has a loss where its label is not −100, it is attended to, and so is the one
      before it. Padding may be on either side: positions count from the first token attended to;
    - a tensor of token numbers [batch, token];
    - a pair (inputs, targets) of such tensors, targets shifted already.

    The module returns logits [batch, token, word], as LitGPT's do, an object or mapping with "logits", or a tuple that
    begins with them. A forward method that takes `input_ids` gets what it knows of a mapping by name, but no labels;
    any other one gets the token numbers alone. Set `model.config.use_cache = False` of a transformer: the cache of keys
    and values is memory for nothing here.

    Raises:
        ValueError: a batch of another form, or a module that returns no logits.
    """
    if isinstance(batch, Mapping):
        return _of_mapping(module, cast(Mapping[str, Any], batch))
    if isinstance(batch, Tensor):
        return token_losses(_logits(module(batch)), batch, shift=True)
    if isinstance(batch, list | tuple) and len(cast(list[Any], batch)) == 2:
        inputs, targets = cast(list[Tensor], batch)
        return token_losses(_logits(module(inputs)), targets)
    raise ValueError(
        f"causal_lm_loss got a batch of type {type(batch).__name__}; it takes a mapping with 'input_ids', a tensor of "
        "token numbers, or a pair (inputs, targets); write a loss_fn with bif_lightning.token_losses for any other"
    )


def _of_mapping(module: nn.Module, batch: Mapping[str, Any]) -> TokenLosses:
    if "input_ids" not in batch:
        raise ValueError(
            f"causal_lm_loss got a batch with the keys {', '.join(map(str, batch))}, and no 'input_ids'; rename the "
            "column, or write a loss_fn with bif_lightning.token_losses"
        )
    ids: Tensor = batch["input_ids"]
    labels: Tensor = batch.get("labels", ids)
    attended: Tensor | None = batch.get("attention_mask")
    if attended is not None:
        there = attended.bool()
        # Behind padding nothing is known of a token: it is the first of its sequence.
        labels = labels.masked_fill(~there | ~functional.pad(there, (1, -1)), -100)
    losses, mask = token_losses(_logits(module(**_inputs(module, batch))), labels, shift=True)
    return (losses, mask) if attended is None else _aligned(losses, mask, attended.bool())


def _inputs(module: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What the module's forward takes of a batch, by name."""
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
            f"the module returned {shape} for a batch of token numbers; causal_lm_loss needs logits [batch, token, "
            "word], alone, under the name 'logits', or first in a tuple"
        )
    return logits


def _aligned(
    losses: Float[Tensor, "batch token"], mask: Bool[Tensor, "batch token"], attended: Bool[Tensor, "batch token"]
) -> TokenLosses:
    """The same, each sequence moved to begin at position 0, whatever padding stood before it."""
    start = attended.int().argmax(1, keepdim=True)
    places = torch.arange(losses.shape[1], device=losses.device) + start
    inside = places < losses.shape[1]
    places = places.clamp(max=losses.shape[1] - 1)
    return losses.gather(1, places).masked_fill(~inside, 0.0), mask.gather(1, places) & inside
