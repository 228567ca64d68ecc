"""Per-example losses from the training step on batches of one, vmapped or one after the other.

The loss of an example is what the step returns for a batch of that example alone, whatever it computes inside. It can
be attributed only if the loss of a batch is the mean or the sum of such losses, at the module's weights and with noise
added to them. Otherwise the loss couples the examples of a batch, and the step is refused.
"""

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bif_lightning.exceptions import LossChangedError
from bif_lightning.losses.derived.adaptation import AS_IT_IS, Adaptation
from bif_lightning.losses.derived.batch_size import BatchOf, examples_in
from bif_lightning.losses.derived.example_form import ExampleForm
from bif_lightning.losses.derived.intercept import NotSeparableError, Step, scalar_loss
from bif_lightning.losses.derived.proof import (
    AutocastTypes,
    at_perturbed_weights,
    equal_losses,
    float_types,
    losses_differ,
    rounding,
)
from bif_lightning.losses.derived.reduction import PerSample
from bif_lightning.losses.graph import needs_graph
from bif_lightning.model.devices import raise_unrelated
from bif_lightning.model.sharded import is_sharded


@dataclass(frozen=True)
class VmappedLoss:
    """The training step vectorised over the examples of a batch, each as a batch of one; made by `prove_singles`."""

    method: str = field(default="training_step vmapped over examples", init=False)
    cost: str = field(default="one vectorised forward pass for each batch", init=False)
    eval_batch_size: int | None = field(default=None, init=False)
    per_sample: PerSample = field(default="mean", init=False)

    step: Step
    form: ExampleForm
    adds_up: bool = False
    adapted: Adaptation = AS_IT_IS

    def __call__(self, module: nn.Module, batch: Any) -> Float[Tensor, " example"]:
        """The loss of each example alone.

        Args:
            module: with the weights to evaluate, in eval mode.
            batch: of the form of the checked ones.

        Returns:
            Losses, shape [batch], float32, or float64 if the step computes in it; without a graph.

        Raises:
            LossChangedError: the batch has another form, or the step returned no scalar.
        """

        try:
            return self.unchecked(module, batch)
        except NotSeparableError as cause:
            raise _changed(str(cause)) from cause

    def unchecked(self, module: nn.Module, batch: Any) -> Tensor:
        """The same.

        Raises:
            NotSeparableError: as `LossChangedError` above.
        """

        def one(*rows: Tensor) -> Tensor:
            return scalar_loss(self.step(module, self.form.example(rows)))

        with torch.no_grad():
            # With random numbers, the loss of an example is not a function of the weights.
            return _at_least_float32(torch.vmap(one, randomness="error")(*self.form.rows(batch)))

    def objective(self, module: nn.Module, batch: Any) -> Tensor:
        """What the step returns, or the mean of the losses that it adds up."""
        return _mean(self.step, module, batch, self.adds_up)

    def relative_weights(self, module: nn.Module, batch: Any) -> None:
        """None: all examples count alike, as was shown."""

    def reset_coefficients(self) -> None:
        """Do nothing: batches are not compared with earlier evaluations."""


@dataclass(frozen=True)
class SingleLoss:
    """The training step on one example at a time; made by `prove_singles`.

    Attributes:
        step: the training step.
        cost: cost in words, with the reason why vmap failed.
        differentiates: whether the step calls autograd, and so must record a graph.
    """

    method: str = field(default="training_step on batches of one", init=False)
    eval_batch_size: int | None = field(default=1, init=False)
    per_sample: PerSample = field(default="mean", init=False)

    step: Step
    cost: str
    differentiates: bool
    adds_up: bool = False
    adapted: Adaptation = AS_IT_IS

    def __call__(self, module: nn.Module, batch: Any) -> Float[Tensor, " example"]:
        """The loss of an example.

        Args:
            module: with the weights to evaluate, in eval mode.
            batch: a collated batch of one example.

        Returns:
            Its loss, shape [1], float32, or float64 if the step computes in it; without a graph.

        Raises:
            LossChangedError: the step returned no scalar.
        """
        with torch.set_grad_enabled(self.differentiates):
            try:
                return _at_least_float32(scalar_loss(self.step(module, batch)).detach().reshape(1))
            except NotSeparableError as cause:
                raise _changed(str(cause)) from cause

    def objective(self, module: nn.Module, batch: Any) -> Tensor:
        """What the step returns, or the mean of the losses that it adds up."""
        return _mean(self.step, module, batch, self.adds_up)

    def relative_weights(self, module: nn.Module, batch: Any) -> None:
        """None: all examples count alike, as was shown."""

    def reset_coefficients(self) -> None:
        """Do nothing: batches are not compared with earlier evaluations."""


def prove_singles(step: Step, module: nn.Module, batch_of: BatchOf, rows: Sequence[int]) -> VmappedLoss | SingleLoss:
    """Check that the loss of a batch is the mean or the sum of the losses of its examples alone.

    Arguments as for `derive_loss`; the module in eval mode.

    Returns:
        The vmapped loss if it agrees with the batches of one, otherwise the loss of one example at a time.

    Raises:
        NotSeparableError: the step fails on a batch of one, its loss there is constant or not finite, or the loss of a
            batch is neither the mean nor the sum.
    """
    noisy = at_perturbed_weights(step, module)
    given, other = (_Trial.run(s, module, batch_of, rows) for s in (step, noisy))
    given_scale = max(given.scale(), other.scale())  # small losses are dominated by rounding
    if not (given.distinguishes_rows() or other.distinguishes_rows()):
        raise NotSeparableError(equal_losses(rows, given.alone))
    kinds = given.matching_reductions(given_scale) & other.matching_reductions(other.scale())
    if not kinds:
        wrong = other if given.matching_reductions(given_scale) else given
        raise NotSeparableError(wrong.coupling(rows))
    adds_up = "mean" not in kinds
    if adds_up:
        _check_count(batch_of, rows)
    found: ExampleForm | str = "its weights are sharded"
    if not is_sharded(module):
        with _fields_put_back(module):
            trials = ((step, given, given_scale), (noisy, other, other.scale()))
            found = _vmapped(module, batch_of, rows, trials)
    if isinstance(found, ExampleForm):
        return VmappedLoss(step, found, adds_up)
    cost = f"one forward pass for each example, since vmap fails ({found}); a loss_fn avoids them"
    single = batch_of(rows[:1])
    return SingleLoss(step, cost, needs_graph(lambda: scalar_loss(step(module, single))), adds_up)


@dataclass(frozen=True)
class _Trial:
    """The step on each example alone, on all of them, and on a half.

    Attributes:
        alone: losses, shape [row], float64.
        parts: (the loss of a batch, the losses alone of its examples).
        rounding: relative rounding error of losses.
    """

    alone: Tensor
    parts: tuple[tuple[float, Tensor], ...]
    rounding: float

    @classmethod
    def run(cls, step: Step, module: nn.Module, batch_of: BatchOf, rows: Sequence[int]) -> "_Trial":
        with torch.enable_grad(), AutocastTypes() as autocast:
            alone = torch.stack([_attempt(step, module, batch_of, [row]) for row in rows]).double()
            bad = [row for row, value in zip(rows, alone.tolist(), strict=True) if not math.isfinite(value)]
            if bad:
                raise NotSeparableError(f"the loss of example {bad[0]} is not finite in a batch of one")
            sizes = {len(rows), (len(rows) + 1) // 2}
            parts = [(float(_attempt(step, module, batch_of, rows[:size])), alone[:size]) for size in sorted(sizes)]
        types = float_types(module) | autocast.types
        return cls(alone, tuple(parts), max(rounding(dtype, alone.device) for dtype in types or {torch.float32}))

    def scale(self) -> float:
        """Mean size of the losses."""
        return float(self.alone.abs().mean())

    def distinguishes_rows(self) -> bool:
        return losses_differ(self.alone, self.rounding * self.scale())

    def matching_reductions(self, scale: float) -> set[str]:
        """Which of "mean" and "sum" of the single losses gives the loss of each batch, up to rounding at this scale."""

        def near(loss: float, expected: Tensor, size: int) -> bool:
            return abs(loss - float(expected)) <= self.rounding * scale * size

        means = all(near(loss, alone.mean(), 1) for loss, alone in self.parts)
        sums = all(near(loss, alone.sum(), len(alone)) for loss, alone in self.parts)
        return {name for name, right in (("mean", means), ("sum", sums)) if right}

    def coupling(self, rows: Sequence[int]) -> str:
        """A sentence about how the loss of a batch differs from the losses of its examples."""
        found = "; ".join(
            f"of a batch of {list(rows[: len(alone)])} it is {loss:.6g}, alone their losses have the mean "
            f"{float(alone.mean()):.6g} and the sum {float(alone.sum()):.6g}"
            for loss, alone in self.parts
        )
        return (
            f"the loss couples the examples of a batch, or divides them unequally: {found}. Roots of means, "
            "hard-example mining, statistics of the batch and means over all tokens do so"
        )

    def difference(self, found: Tensor, scale: float) -> float | None:
        """Largest difference from the losses alone; None if rounding at this scale explains it."""
        largest = float((found.double() - self.alone).abs().max())
        return None if largest <= self.rounding * scale else largest


def _attempt(step: Step, module: nn.Module, batch_of: BatchOf, rows: Sequence[int]) -> Tensor:
    where = f"a batch of one, example {rows[0]}" if len(rows) == 1 else f"a batch of the examples {list(rows)}"
    try:
        return scalar_loss(step(module, batch_of(rows))).detach()
    except NotSeparableError as reason:
        raise NotSeparableError(f"on {where}: {reason}") from reason
    except Exception as cause:
        raise_unrelated(cause)
        raise NotSeparableError(f"training_step raised {type(cause).__name__} on {where}: {cause}") from cause


def _check_count(batch_of: BatchOf, rows: Sequence[int]) -> None:
    """Refuse sums over batches whose number of examples cannot be told, and so their means."""
    for some in (rows, rows[:1]):
        if (found := examples_in(batch_of(some))) != len(some):
            raise NotSeparableError(
                f"the loss adds up the losses of examples, and L(w) is their mean, but a batch of {len(some)} examples "
                f"holds tensors of length {found}"
            )


def _mean(step: Step, module: nn.Module, batch: Any, adds_up: bool) -> Tensor:
    loss = scalar_loss(step(module, batch))
    return loss / examples_in(batch) if adds_up else loss


def _vmapped(
    module: nn.Module, batch_of: BatchOf, rows: Sequence[int], trials: Sequence[tuple[Step, _Trial, float]]
) -> ExampleForm | str:
    """The form of a batch where vmap gives the losses of single examples; else why it does not."""
    batch = batch_of(rows)
    try:
        form, *_ = [ExampleForm.of(batch, batch_of([row]), len(rows)) for row in rows]
        for step, trial, scale in trials:
            apart = trial.difference(VmappedLoss(step, form).unchecked(module, batch), scale)
            if apart is not None:
                return f"it differs from them by {apart:.3g}"
        # vmap accepts a tensor that the step stored under an earlier vmap; without vmap that is an error.
        with torch.no_grad():
            trials[0][0](module, batch_of(rows[:1]))
    except NotSeparableError as cause:
        return shorten(str(cause), 160, placeholder=" ...")
    except Exception as cause:
        return shorten(f"{type(cause).__name__}: {cause}", 160, placeholder=" ...")
    return form


@contextmanager
def _fields_put_back(module: nn.Module) -> Generator[None]:
    """Undo, at exit, assignments to fields and buffers of the module's parts, and changes of their lists.

    Tensors that a step stores under vmap are unusable outside: in the state of a metric they make the next step fail.
    """
    tables: list[dict[str, Any]] = []
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):  # its tables are not dictionaries
            continue
        tables += [part.__dict__, cast("dict[str, Any]", part._buffers)]
    before = [(table, dict(table)) for table in tables]
    lists = [
        (value, list(cast("list[Any]", value))) for _, kept in before for value in kept.values() if _is_list(value)
    ]
    try:
        yield
    finally:
        for table, kept in before:
            for name in table.keys() - kept.keys():
                del table[name]
            table.update(kept)
        for value, kept in lists:
            value[:] = kept


def _is_list(value: object) -> bool:
    return type(value) is list


def _at_least_float32(losses: Tensor) -> Tensor:
    return losses if losses.dtype == torch.float64 else losses.float()


def _changed(reason: str) -> LossChangedError:
    return LossChangedError(
        f"the per-example losses of training_step held when they were checked, but not on this batch: {reason}. "
        "Pass loss_fn(module, batch) -> Tensor[batch] to the callback"
    )
