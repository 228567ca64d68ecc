"""Token losses: checks of what a loss function returns, and values of a whole set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bif_lightning.data.dataset import Batch
from bif_lightning.data.tensors import plain_tensor
from bif_lightning.losses.observables import Batches, DividedBatches, LossFn, checked_rows

_LEARN = (
    "return [batch, token] losses, or (losses, mask) with a mask that is False for tokens without a loss; "
    "bif_lightning.token_losses(logits, labels) makes both, and bif_lightning.causal_lm_loss is such a loss_fn"
)


def zero_absent(loss_fn: LossFn) -> Callable[[nn.Module, Batch], Tensor]:
    """Wrap a loss function to return one tensor that is 0 where the mask is False."""

    def losses(module: nn.Module, batch: Batch) -> Tensor:
        found = loss_fn(module, batch)
        if not isinstance(found, tuple):
            return plain_tensor(found)
        values, mask = _pair(found)
        return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))

    return losses


def by_token(found: Any, count: int) -> tuple[Float[Tensor, "batch token"], Bool[Tensor, "batch token"]]:
    """Losses and mask of a batch of `count` examples, from what a loss function returned.

    Raises:
        ValueError: it did not return token losses.
    """
    losses, mask = _pair(found) if isinstance(found, tuple) else (found, None)
    losses = plain_tensor(losses)
    if not isinstance(losses, Tensor) or losses.dim() != 2 or len(losses) != count:
        shape = f"shape {list(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"loss_fn: {shape} for a batch of {count} examples, but per_token=True; {_LEARN}")
    if mask is None:
        mask = torch.ones_like(losses, dtype=torch.bool)
    return losses, mask


def _pair(found: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    if len(found) != 2 or not all(isinstance(part, Tensor) for part in found):
        kinds = ", ".join(type(part).__name__ for part in found)
        raise ValueError(f"loss_fn returned a tuple ({kinds}); {_LEARN}")
    losses, mask = map(plain_tensor, found)
    if mask.dtype != torch.bool or mask.shape != losses.shape:
        raise ValueError(
            f"loss_fn returned losses of shape {list(losses.shape)} and a mask of shape {list(mask.shape)}, "
            f"{mask.dtype}; the mask must be a tensor of bool in the shape of the losses"
        )
    return losses, mask


@dataclass(frozen=True)
class TokenValues:
    """Token losses of a set of examples.

    Attributes:
        sums: loss of each example, the sum over its tokens, nats.
        values: loss of each token with a loss, in the order of examples, nats.
        masks: mask of each batch, True for tokens with a loss.
    """

    sums: Float[Tensor, " example"]
    values: Float[Tensor, " token"]
    masks: Sequence[Bool[Tensor, "_ _"]]

    def places(self) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"]]:
        """Number of the example of each token, and the token's position in it."""
        found, start = list[Tensor](), 0
        for mask in self.masks:
            place = mask.nonzero().cpu()
            place[:, 0] += start
            found.append(place)
            start += len(mask)
        whole = torch.cat(found)
        return whole[:, 0], whole[:, 1]

    def check_same(self, other: "TokenValues") -> None:
        """Check that other losses belong to the same tokens.

        Raises:
            ValueError: a mask differs.
        """
        for mask, there in zip(self.masks, other.masks, strict=True):
            if not torch.equal(mask, there):
                raise ValueError(
                    f"loss_fn gave {int(there.sum())} tokens of a batch a loss, but {int(mask.sum())} at the snapshot: "
                    "the mask must depend on the data only, not on weights or random numbers"
                )


def token_values(function: LossFn, module: nn.Module, batches: Batches) -> TokenValues:
    """Losses of all tokens of a set. Collective if ranks divide the batches.

    Raises:
        ValueError: the loss function does not return token losses.
    """
    divided = isinstance(batches, DividedBatches)
    found = [_measured(function, module, *batch) for batch in (batches.own if divided else batches)]
    if divided:
        found = _assembled(batches, found)
    sums, values, masks = list[Tensor](), list[Tensor](), list[Tensor]()
    for (losses, mask), (_, count) in zip(found, batches, strict=True):
        sums.append(checked_rows(losses.where(mask, losses.new_zeros(())), count, "loss_fn"))
        kept = losses[mask]
        values.append(kept if kept.dtype == torch.float64 else kept.float())
        masks.append(mask)
    return TokenValues(torch.cat(sums), torch.cat(values), masks)


def _measured(function: LossFn, module: nn.Module, batch: Batch, count: int) -> tuple[Tensor, Tensor]:
    losses, mask = by_token(function(module, batch), count)
    return losses.detach(), mask.detach()


def _assembled(batches: DividedBatches, own: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Gather the losses and masks of all batches, which may have different widths."""
    known = batches.assembled([mask.new_full((len(mask),), mask.shape[1], dtype=torch.int64) for _, mask in own])
    widths = [int(width[0]) for width in known]
    most = max(widths)
    wide = [[nn.functional.pad(each, (0, most - each.shape[1])) for each in pair] for pair in own]
    losses = batches.assembled([pair[0] for pair in wide])
    masks = batches.assembled([pair[1].to(torch.uint8) for pair in wide])
    return [(value[:, :w], mask[:, :w].bool()) for value, mask, w in zip(losses, masks, widths, strict=True)]
