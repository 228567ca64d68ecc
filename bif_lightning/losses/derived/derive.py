"""Per-example losses, derived from `training_step` and checked on examples.

The loss of an example is what the training step returns for a batch of that example alone. Three methods find it for
every example of a batch. Each is tried where the one before fails its check on examples of the data:

1. split the step's loss into elementwise losses, from one run on the batch (`separable`);
2. vmap the step over the examples (`one_by_one`);
3. run the step on each example (`one_by_one`).

Where all fail, the message contains a `loss_fn` to start from.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from bif_lightning.exceptions import LossRefusedError
from bif_lightning.losses.derived.batch_size import BatchOf, examples_in
from bif_lightning.losses.derived.intercept import NotSeparableError, Step
from bif_lightning.losses.derived.one_by_one import VmappedLoss, prove_singles
from bif_lightning.losses.derived.reduction import PerSample
from bif_lightning.losses.derived.separable import CapturedLoss, prove_captured
from bif_lightning.losses.derived.suggest import refusal
from bif_lightning.losses.derived.user_loss import check_user_loss as check_user_loss
from bif_lightning.losses.problem import eval_mode
from bif_lightning.model.sharded import is_sharded, reshard


class DerivedLoss(Protocol):
    """(module, batch) -> the loss of each example, shape [batch], as `derive_loss` checked it."""

    @property
    def rung(self) -> str:
        """The method, in words for dumps and logs."""
        ...

    @property
    def cost(self) -> str:
        """The cost of the losses of a batch, in words."""
        ...

    @property
    def eval_batch_size(self) -> int | None:
        """The required number of examples in a batch; None for any."""
        ...

    @property
    def per_sample(self) -> PerSample:
        """Whether the loss of an example is what the step returns for it ("mean"), or times its divisor ("sum")."""
        ...

    def __call__(self, module: nn.Module, batch: Any, /) -> Float[Tensor, " example"]:
        """The loss of each example, without a graph. Pass the same batch objects at every draw.

        Raises:
            LossChangedError: the check fails on this batch, or at these weights.
        """
        ...

    def refreeze(self) -> None:
        """Forget the coefficients of earlier draws. Call before each snapshot, which then fixes new ones."""
        ...


def derive_loss(
    step: Step,
    module: nn.Module,
    batch_of: BatchOf,
    rows: Sequence[int],
    *,
    per_sample: PerSample = "mean",
    size_of: Callable[[Any], int] = examples_in,
) -> DerivedLoss:
    """Derive per-example losses from a training step, and check them on a few examples.

    The module runs in eval mode and keeps its weights; the checks also use weights with added noise.

    Args:
        step: call of the training step, (module, batch) -> what it returned. It must not log.
        module: its weights are used for the checks.
        batch_of: collates examples, given by index.
        rows: at least two examples, better eight, that differ in length, class and target as the data does.
        per_sample: "mean" for what the step returns for an example alone, "sum" for the sum over the example's
            elements that enters the training objective (`reduction` has the equations).
        size_of: the number of examples in a batch. The default takes the length that all its tensors share.

    Returns:
        The losses as a function of (module, batch).

    Raises:
        ValueError: fewer than two examples in `rows`.
        LossRefusedError: the losses cannot be derived, or fail the checks. The message says what was tried, and
            contains a `loss_fn` to start from.
    """
    if len(set(rows)) < 2 or len(set(rows)) < len(rows):
        raise ValueError(f"rows is {list(rows)}; per-example losses are checked on at least two different examples")
    with eval_mode(module), _gathered_weights_freed(module):
        try:
            return prove_captured(step, module, batch_of, rows, per_sample=per_sample, size_of=size_of)
        except NotSeparableError as error:
            captured = error
    tried = {CapturedLoss.rung: str(captured)}
    other_ways = f"{VmappedLoss.rung}, and on batches of one"
    with eval_mode(module), _gathered_weights_freed(module):
        try:
            if per_sample == "mean":
                return prove_singles(step, module, batch_of, rows)
            tried[other_ways] = "they give what the step returns for an example, which is its per_sample='mean'"
        except NotSeparableError as error:
            tried[other_ways] = str(error)
    raise LossRefusedError(refusal(tried, captured.calls, batch_of(rows), len(rows), per_sample)) from captured


@contextmanager
def _gathered_weights_freed(module: nn.Module) -> Generator[None]:
    try:
        yield
    finally:
        if is_sharded(module):
            reshard(module)
