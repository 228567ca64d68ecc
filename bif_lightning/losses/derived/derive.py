"""Per-example losses: derived from `training_step` and proved, or given by the user and checked.

The loss of an example is what the training step would return for a batch of that one example. There are three ways
to get it for every example of a batch, each tried where the one before cannot be proved on examples of the data:

1. take the step's loss apart into elementwise losses, from one run on the batch (`captured`);
2. vmap the step over the examples (`singles`);
3. run it on each of them (`singles`).

Where none can be proved, the message holds a `loss_fn` to start from.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from bif_lightning.losses.derived.batch_size import BatchOf, examples_in
from bif_lightning.losses.derived.exceptions import LossRefusedError
from bif_lightning.losses.derived.intercept import NotSeparableError, Step
from bif_lightning.losses.derived.one_by_one import VmappedLoss, prove_singles
from bif_lightning.losses.derived.reduction import PerSample
from bif_lightning.losses.derived.separable import CapturedLoss, prove_captured
from bif_lightning.losses.derived.suggest import refusal
from bif_lightning.losses.derived.user_loss import check_user_loss as check_user_loss
from bif_lightning.losses.problem import eval_mode
from bif_lightning.model.sharded import is_sharded, reshard


class DerivedLoss(Protocol):
    """(module, batch) -> the loss of each example, shape [batch], as `derive_loss` proved it."""

    @property
    def rung(self) -> str:
        """How the losses are found, in words for dumps and logs."""
        ...

    @property
    def cost(self) -> str:
        """What the losses of a batch cost, in words."""
        ...

    @property
    def eval_batch_size(self) -> int | None:
        """The number of examples that batches must have; None if that is free."""
        ...

    @property
    def per_sample(self) -> PerSample:
        """Whether an example's loss is what the step returns for it, or that times its own divisor."""
        ...

    def __call__(self, module: nn.Module, batch: Any, /) -> Float[Tensor, " example"]:
        """The loss of each example; without a graph. Evaluate the same batch objects at every draw.

        Raises:
            LossChangedError: what was proved does not hold on this batch, or at these weights.
        """
        ...

    def refreeze(self) -> None:
        """Call before each snapshot: what must stay as it is between draws is that of the next evaluations."""
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
    """Derive per-example losses from a training step, and prove them on a few examples.

    The module is put into eval mode meanwhile, and keeps its weights; the proofs use noisy ones as well.

    Args:
        step: call of the training step, (module, batch) -> what it returned. It must not log.
        module: with weights at which to prove.
        batch_of: collates examples, given by index.
        rows: at least two examples, better eight, as unlike in length, class and target as the data has them.
        per_sample: "mean" for what the step returns for an example alone, "sum" for the sum over the example's
            elements that enters the training objective (`shares` has the equations).
        size_of: the number of examples in a batch. The default takes the length that all its tensors share.

    Returns:
        The losses as a function of (module, batch).

    Raises:
        ValueError: fewer than two examples in `rows`.
        LossRefusedError: the losses cannot be derived or not proved. The message says what was tried, and
            has a `loss_fn` to start from.
    """
    if len(set(rows)) < 2 or len(set(rows)) < len(rows):
        raise ValueError(f"rows is {list(rows)}; per-example losses are proved on at least two different examples")
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
