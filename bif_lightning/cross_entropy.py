"""Cross-entropy of many tokens over a large vocabulary, without a second copy of the logits.

torch's own keeps the logits once more in float32, and their log-softmax, for the backward pass. Here both passes turn
them into float32 a chunk of tokens at a time, and the backward pass computes the softmax again:

    loss_s = log Σ_v exp(z_sv) − z_s,label,   ∂loss_s/∂z_sv = softmax(z_s)_v − [v = label].
"""

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
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
