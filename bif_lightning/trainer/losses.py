"""Per-example losses: derived from `training_step` and proved, or given by the user and checked.

The loss of an example is what the training step would return for a batch of that one example. `derive_loss`
gets it for every example of a batch from one run of the step, and starts only if three things hold on examples of the
data: the step's loss is a weighted sum of elementwise losses (`capture`), its coefficients are those of a mean or a
sum over examples (`shares`), and each example in a batch of one has the loss of its row (`oracle`). The
first two are tested again on every batch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from bif_lightning.problem import evaluating

from .advice import refusal
from .batch import examples_in
from .capture import Captured, NotSeparableError, Step, capture, scalar_loss
from .oracle import at_perturbed_weights, disagreement, rounding, tells_apart
from .shares import Rule, calls_of, consistent_rules, split
from .userloss import check_user_loss as check_user_loss

LossFn = Callable[[nn.Module, Any], Tensor]
"""(module, batch) -> the loss of each example, shape [batch]."""

BatchOf = Callable[[Sequence[int]], Any]
"""Indices of examples -> the collated batch of them, on the module's device."""


class LossChangedError(ValueError):
    """A derived loss that was proved at the start does not hold on a later batch."""


class SizedLoss(Protocol):
    """(module, batch, number of examples) -> the loss of each example, shape [batch]."""

    def __call__(self, module: nn.Module, batch: Any, size: int, /) -> Tensor: ...


@dataclass(frozen=True)
class DerivedLoss:
    """Per-example losses out of a training step; made by `derive_loss`.

    Attributes:
        step: the training step.
        rules: how each of its loss calls is divided among examples.
        size_of: the number of examples in a batch.
    """

    step: Step
    rules: tuple[tuple[Rule, ...], ...]
    size_of: Callable[[Any], int]

    def __call__(self, module: nn.Module, batch: Any, size: int | None = None) -> Tensor:
        """The loss of each example alone.

        Args:
            module: with the weights to evaluate, in eval mode.
            batch: a collated batch.
            size: its number of examples; asked of `size_of` if None.

        Returns:
            Losses, shape [batch], float32, without a graph.

        Raises:
            LossChangedError: the step's loss on this batch is no longer the proved kind of sum.
        """
        count = self.size_of(batch) if size is None else size
        try:
            return split(capture(self.step, module, batch), count, self.rules).float()
        except NotSeparableError as reason:
            raise LossChangedError(
                "the per-example losses derived from training_step held when they were checked, but not on this "
                f"batch of {count}: {reason}. Pass loss_fn(module, batch) -> Tensor[batch] to the callback"
            ) from reason


def captured_loss(step: Step) -> SizedLoss:
    """Per-example losses where every loss call is a mean over what its function counts; nothing is proved.

    This is the bare mechanism. `derive_loss` finds out how each call is divided, and proves it.

    Args:
        step: the training step.

    Returns:
        A function of (module, batch, number of examples) that returns losses of shape [batch], float32,
        without a graph, and raises `NotSeparableError` where the step's loss is no weighted sum.
    """

    def loss(module: nn.Module, batch: Any, size: int, /) -> Tensor:
        captured = capture(step, module, batch)
        means: list[tuple[Rule, ...]] = [("mean",)] * len(captured.terms)
        return split(captured, size, means).float()

    return loss


def derive_loss(
    step: Step,
    module: nn.Module,
    batch_of: BatchOf,
    rows: Sequence[int],
    *,
    size_of: Callable[[Any], int] = examples_in,
) -> DerivedLoss:
    """Derive per-example losses from a training step, and prove them on a few examples.

    The module is put into eval mode meanwhile. Where the examples have equal losses (a head of zeros, a
    finished memorisation), the proof is made at weights with noise on them; the module keeps its own.

    Args:
        step: call of the training step, (module, batch) -> what it returned. It must not log.
        module: with weights at which to prove.
        batch_of: collates examples, given by index.
        rows: at least two examples, better eight, as unlike in length, class and target as the data has them.
        size_of: the number of examples in a batch. The default takes the length that all its tensors share.

    Returns:
        The losses as a function of (module, batch).

    Raises:
        ValueError: fewer than two examples in `rows`.
        MisconfigurationException: the losses cannot be derived or not proved. The message says why, and
            has a `loss_fn` to start from.
    """
    if len(set(rows)) < 2 or len(set(rows)) < len(rows):
        raise ValueError(f"rows is {list(rows)}; per-example losses are proved on at least two different examples")
    with evaluating(module):
        batch = batch_of(rows)
        try:
            _check_sizes(size_of, batch, batch_of, rows)
            rules = _prove(step, module, batch, batch_of, rows)
        except NotSeparableError as reason:
            raise MisconfigurationException(refusal(str(reason), reason.calls, batch, len(rows))) from reason
    return DerivedLoss(step, rules, size_of)


def _check_sizes(size_of: Callable[[Any], int], batch: Any, batch_of: BatchOf, rows: Sequence[int]) -> None:
    for part, count in ((batch, len(rows)), (batch_of(rows[:1]), 1)):
        found = size_of(part)
        if found != count:
            raise NotSeparableError(f"size_of(batch) is {found} for a batch of {count} examples; pass another size_of")


def _prove(
    step: Step, module: nn.Module, batch: Any, batch_of: BatchOf, rows: Sequence[int]
) -> tuple[tuple[Rule, ...], ...]:
    given = _Trial.run(step, module, batch, batch_of, rows)
    rules = consistent_rules(given.batch, given.singles)
    if given.unequal(rules, given.scale()) is None and given.tells_apart():
        return rules
    # Small losses drown in rounding and equal ones prove nothing: other weights decide, and set the unit.
    other = _Trial.run(at_perturbed_weights(step, module), module, batch, batch_of, rows)
    wrong = given.unequal(rules, max(given.scale(), other.scale())) or other.unequal(rules, other.scale())
    if wrong is None and not other.tells_apart():
        wrong = (
            f"examples {list(rows)} all have the loss {given.alone[0].item():.6g} in a batch of one, also with noise "
            "on the weights, so that a wrong order of the losses could not be seen"
        )
    if wrong is not None:
        raise NotSeparableError(wrong, calls_of(given.batch))
    return rules


@dataclass(frozen=True)
class _Trial:
    """The step on a batch and on each of its examples alone; `alone` is without capture."""

    rows: Sequence[int]
    dtypes: set[torch.dtype]
    batch: Captured
    singles: tuple[Captured, ...]
    alone: Tensor

    @classmethod
    def run(cls, step: Step, module: nn.Module, batch: Any, batch_of: BatchOf, rows: Sequence[int]) -> "_Trial":
        together = _attempt(step, module, batch, f"a batch of the examples {list(rows)}")
        singles: list[Captured] = []
        alone: list[Tensor] = []
        for row in rows:
            single = batch_of([row])
            captured = _attempt(step, module, single, f"a batch of one, example {row}")
            singles.append(captured)
            alone.append(_plain(step, module, single, captured))
        # The weights' as well: language models cast their logits to float32 before the loss.
        dtypes = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
        return cls(rows, dtypes, together, tuple(singles), torch.stack(alone))

    def scale(self) -> float:
        """Mean size of the losses; 0 where one is not finite."""
        mean = float(self.alone.abs().mean())
        return mean if math.isfinite(mean) else 0.0

    def unequal(self, rules: Sequence[Sequence[Rule]], scale: float) -> str | None:
        """How a row differs from its example alone by more than rounding at losses of this scale, if one does."""
        shares = split(self.batch, len(self.rows), rules)
        return disagreement(self.alone, shares, self.rows, self._rounding() * scale)

    def tells_apart(self) -> bool:
        """Whether a row in the wrong place would show."""
        return tells_apart(self.alone, self._rounding() * self.scale())

    def _rounding(self) -> float:
        dtypes = self.dtypes | {call.precision for call in calls_of(self.batch)}
        return max(rounding(dtype, self.alone.device) for dtype in dtypes)


def _attempt(step: Step, module: nn.Module, batch: Any, where: str) -> Captured:
    try:
        return capture(step, module, batch)
    except NotSeparableError as reason:
        raise NotSeparableError(f"on {where}: {reason}", reason.calls) from reason
    except Exception as cause:
        raise NotSeparableError(f"training_step raised {type(cause).__name__} on {where}: {cause}") from cause


def _plain(step: Step, module: nn.Module, single: Any, captured: Captured) -> Tensor:
    with torch.no_grad():
        loss = scalar_loss(step(module, single)).double()
    # Where everything is ignored torch's mean is 0/0; an example without a target has loss 0.
    empty = all(t.call.weights is not None and not bool(t.call.weights.any()) for t in captured.terms)
    return torch.zeros_like(loss) if empty and bool(loss.isnan()) else loss
