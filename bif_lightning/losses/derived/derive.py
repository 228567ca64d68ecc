"""Per-example losses, derived from `training_step` and checked on examples.

The loss of an example is what the training step returns for a batch of that example alone. Three methods compute it for
every example of a batch. They are tried in order, until one passes its check on examples of the data:

1. split the step's loss into elementwise losses, from one run on the batch (`separable`);
2. vmap the step over the examples (`one_by_one`);
3. run the step on each example (`one_by_one`).

If all fail, and the step fails on a batch of one, or in evaluation mode, they are tried again with the example twice
(`example_twice`), or with a part of the module in training mode (`modes`). Else the error contains a `loss_fn` to start
from.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bif_lightning.exceptions import LossChangedError, LossRefusedError
from bif_lightning.losses.derived.adaptation import Adaptation
from bif_lightning.losses.derived.batch_size import BatchOf, examples_in
from bif_lightning.losses.derived.example_twice import TWICE, twice_alone
from bif_lightning.losses.derived.intercept import NotSeparableError, Step, scalar_loss
from bif_lightning.losses.derived.modes import part_to_train
from bif_lightning.losses.derived.one_by_one import SingleLoss, VmappedLoss, prove_singles
from bif_lightning.losses.derived.proof import compare_rows, unequal_rows
from bif_lightning.losses.derived.randomness import by_chance, refusal_of_chance
from bif_lightning.losses.derived.reduction import PerSample
from bif_lightning.losses.derived.separable import CapturedLoss, prove_captured
from bif_lightning.losses.derived.suggest import refusal
from bif_lightning.losses.derived.user_loss import check_user_loss as check_user_loss
from bif_lightning.losses.problem import eval_mode
from bif_lightning.model.devices import raise_unrelated
from bif_lightning.model.sharded import is_sharded, reshard

_LEAST_FOR_TWICE: Final = 3
"""Examples with which a sum over them cannot be taken for a mean, where an example alone is in its batch twice."""


class DerivedLoss(Protocol):
    """(module, batch) -> the loss of each example, shape [batch], as `derive_loss` checked it."""

    @property
    def method(self) -> str:
        """The method, in words for dumps and logs."""
        ...

    @property
    def adapted(self) -> Adaptation:
        """In which other way than as it is the step is called."""
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

    @property
    def adds_up(self) -> bool:
        """Whether the step adds up the losses of examples, which `objective` averages."""
        ...

    def objective(self, module: nn.Module, batch: Any, /) -> Float[Tensor, ""]:
        """The mean loss of a batch, with its graph: what the step returns, or where it adds up losses their mean.

        The weights of a mean (class weights, tokens) are the step's own.
        """
        ...

    def relative_weights(self, module: nn.Module, batch: Any, /) -> Float[Tensor, " example"] | None:
        """How much the loss of each example counts in the objective of a batch, the most at 1; None for all alike.

        Raises:
            ValueError: the objective is no weighted mean of the losses of examples.
        """
        ...

    def reset_coefficients(self) -> None:
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
        rows: at least two examples, better eight, with varied lengths, classes and targets.
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
    checks = _Checks(module, batch_of, rows, per_sample, size_of)
    found = checks.run(step)
    if not isinstance(found, _Refused):
        return found
    scalar: Callable[[nn.Module, Any], Tensor] = lambda m, batch: scalar_loss(step(m, batch))  # noqa: E731
    if checks.fails_alone(step):
        again = checks.run(twice_alone(step))
        if not isinstance(again, _Refused):
            return replace(again, adapted=Adaptation(TWICE, twice_alone))
    if part := part_to_train(scalar, module, batch_of(rows)):
        again = checks.run(part.switched(step))
        if not isinstance(again, _Refused):
            return replace(again, adapted=Adaptation(part.words, part.switched))
        said = part.message("training_step")
        raise LossRefusedError(f"per-example losses cannot be derived from training_step: {said}") from found.captured
    if source := by_chance(scalar, module, batch_of, rows):
        said = refusal_of_chance(source, "training_step")
        raise LossRefusedError(f"per-example losses cannot be derived from training_step: {said}") from found.captured
    calls = found.captured.calls
    raise LossRefusedError(refusal(found.tried, calls, batch_of(rows), len(rows), per_sample)) from found.captured


@dataclass(frozen=True)
class _Refused:
    """Why each method failed, in words, and the error of the first."""

    tried: Mapping[str, str]
    captured: NotSeparableError


@dataclass(frozen=True)
class _Checks:
    """What a training step is checked with; see `derive_loss`."""

    module: nn.Module
    batch_of: BatchOf
    rows: Sequence[int]
    per_sample: PerSample
    size_of: Callable[[Any], int]

    def run(self, step: Step) -> "CapturedLoss | VmappedLoss | SingleLoss | _Refused":
        """The losses by the first method that passes its check."""
        module, batch_of, rows = self.module, self.batch_of, self.rows
        with eval_mode(module), _gathered_weights_freed(module):
            try:
                return prove_captured(step, module, batch_of, rows, per_sample=self.per_sample, size_of=self.size_of)
            except NotSeparableError as error:
                captured = error
        tried = {CapturedLoss.method: str(captured)}
        other_ways = f"{VmappedLoss.method}, and on batches of one"
        with eval_mode(module), _gathered_weights_freed(module):
            try:
                if self.per_sample == "mean":
                    return prove_singles(step, module, batch_of, rows)
                tried[other_ways] = "they return the loss of an example alone, which is per_sample='mean'"
            except NotSeparableError as error:
                tried[other_ways] = str(error)
        return _Refused(tried, captured)

    def fails_alone(self, step: Step) -> bool:
        """Whether the step fails on a batch of one and not on a batch of several, whose loss may be a mean."""
        if self.per_sample != "mean" or len(self.rows) < _LEAST_FOR_TWICE:
            return False
        return self._fails(step, self.rows[:1]) and not self._fails(step, self.rows)

    def _fails(self, step: Step, rows: Sequence[int]) -> bool:
        with eval_mode(self.module), _gathered_weights_freed(self.module), torch.enable_grad():
            try:
                step(self.module, self.batch_of(rows))
            except Exception as error:
                raise_unrelated(error)
                return True
        return False


def check_rows(loss: DerivedLoss, module: nn.Module, batch_of: BatchOf, rows: Sequence[int], name: str) -> None:
    """Check that derived losses hold for further examples too: those of a batch are those of each example alone.

    Args:
        loss: by `derive_loss`.
        module, batch_of, rows: as there; of fewer than two examples nothing is checked.
        name: what the examples are, for the message.

    Raises:
        LossRefusedError: they do not; the message says of which example.
    """
    if loss.eval_batch_size == 1 or len(rows) < 2:
        return
    with eval_mode(module), _gathered_weights_freed(module):
        try:
            wrong = unequal_rows(compare_rows(loss, module, batch_of, rows), rows)
        except LossChangedError as error:
            raise LossRefusedError(f"of {name} examples, {error}") from error
        finally:
            loss.reset_coefficients()
    if wrong is not None:
        raise LossRefusedError(
            f"the per-example losses derived from training_step hold for the train examples, but not for the {name} "
            f"examples: {wrong}. A collate function that sorts its examples, and padding that the network sees, do so. "
            "Pass a collate_fn that keeps the order, or a loss_fn with the loss that each example has alone"
        )


@contextmanager
def _gathered_weights_freed(module: nn.Module) -> Generator[None]:
    try:
        yield
    finally:
        if is_sharded(module):
            reshard(module)
