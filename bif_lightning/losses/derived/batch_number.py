"""Training steps whose loss depends on the number of the batch, which no example has."""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import nn

from bif_lightning.exceptions import LossRefusedError
from bif_lightning.losses.derived.intercept import Step, scalar_loss
from bif_lightning.losses.derived.proof import float_types, rounding
from bif_lightning.model.devices import raise_unrelated

# Whatever is done at every k-th batch is done at 0 and not at 1; the last is beyond any number of first batches.
_FURTHER: Final = (1, 2, 1_000_003)


def check_number_of_batch(step_at: Callable[[int], Step], module: nn.Module, batch: Any) -> None:
    """Check that a batch has one loss, whatever its number in the epoch.

    Args:
        step_at: of a number (`batch_idx`), the training step of the batch with this number.
        module: in eval mode.
        batch: a collated batch.

    Raises:
        LossRefusedError: it has another.
    """

    def loss(number: int) -> torch.Tensor:
        with torch.enable_grad():
            return scalar_loss(step_at(number)(module, batch)).detach()

    first = loss(0)
    relative = max(rounding(dtype, first.device) for dtype in {first.dtype, *float_types(module)})
    for number in _FURTHER:
        try:
            found = loss(number)
        except Exception as error:  # such a number may be none of the user's
            raise_unrelated(error)
            continue
        if not torch.allclose(found.double(), first.double(), rtol=relative, atol=0, equal_nan=True):
            raise LossRefusedError(
                f"training_step returned {float(first):.6g} with batch_idx=0 and {float(found):.6g} with "
                f"batch_idx={number} for the same batch: its loss depends on the number of the batch in the epoch, "
                "which an example does not have. Pass the loss of each example to the callback, without the number: "
                "BIFCallback(..., loss_fn=loss_fn) with loss_fn(module, batch) -> Tensor[batch]"
            )
