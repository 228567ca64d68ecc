"""Per-example losses from one run of the training step on a batch, with the checks that justify them.

`capture` finds the terms of the step's loss, `check_sum` requires that they add up to it with coefficients that do not
depend on the network, `split` divides them among the examples, and `disagreement` requires that each example in a batch
of one has the loss of its row. All but the last are checked again on every batch.

`check_sum` compares Σ_k c_k r_k with L, and so refuses a loss with other parts (a hand-written penalty, a square root)
instead of truncating it. This equality does not detect a coefficient that depends on the network, such as that of the
larger of two losses. Therefore `KeptCoefficients` compares c with its value for the same batch at earlier draws.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bif_lightning.exceptions import LossChangedError
from bif_lightning.losses.derived.adaptation import AS_IT_IS, Adaptation
from bif_lightning.losses.derived.batch_size import BatchOf
from bif_lightning.losses.derived.intercept import (
    Captured,
    NotSeparableError,
    Step,
    Term,
    averaged,
    capture,
    scalar_loss,
)
from bif_lightning.losses.derived.proof import (
    at_perturbed_weights,
    disagreement,
    equal_losses,
    float_types,
    losses_differ,
    rounding,
)
from bif_lightning.losses.derived.reduction import PerSample, Rule, calls_of, consistent_rules, relative_weights, split
from bif_lightning.model.devices import raise_unrelated

Coefficients = Sequence[Tensor | None]
"""c of each term; None if the term does not enter the loss."""

_TOLERANCE: Final = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def check_sum(captured: Captured, kept: Coefficients | None = None) -> bool:
    """Require L = Σ_k c_k r_k, with the loss's own coefficients and with kept ones.

    Args:
        captured: a loss and its terms.
        kept: coefficients of the same terms for the same batch at other weights; None for no comparison.

    Returns:
        Whether the loss is finite; if not, nothing is checked.

    Raises:
        NotSeparableError: the terms do not add up, or a coefficient changed.
    """
    used = [term for term in captured.terms if term.coefficients is not None]
    parts = torch.cat([_products(term).flatten() for term in used])
    moves = [] if kept is None else [_moved(term, c) for term, c in zip(captured.terms, kept, strict=True)]
    # One transfer, so that a GPU waits once for each batch.
    numbers = torch.stack([captured.loss.double(), parts.sum(), parts.abs().sum(), *moves]).tolist()
    loss, total, scale = numbers[:3]
    if not (math.isfinite(loss) and math.isfinite(scale)):  # the sampler detects and names a diverged chain
        return False
    tolerance = _TOLERANCE[captured.loss.dtype] * max(scale, abs(loss))
    if abs(total - loss) > tolerance:
        names = ", ".join(term.call.name for term in used)
        raise NotSeparableError(
            f"training_step returned {loss:.7g}, but the losses that it called ({names}) add up to {total:.7g} with "
            "their coefficients: a part of the loss is written by hand, or the loss is not a weighted "
            "sum of them",
            [term.call for term in used],
        )
    for k, moved in enumerate(numbers[3:]):
        if not moved <= tolerance:
            raise _other_weight(captured.terms[k], moved, loss)
    return True


class KeptCoefficients:
    """The coefficients of each batch at its first evaluation.

    They must depend on the batch (its classes, its tokens) and not on the network's weights. Then every draw of every
    chain has the same coefficients, and the check of the first holds for all. Thread-safe. Batches are identified by
    object identity, and are kept alive because ids could be reused otherwise. Pass the same batch objects at every
    draw, and clear between snapshots.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: dict[int, tuple[Any, Coefficients]] = {}

    def __len__(self) -> int:
        """Number of batches whose coefficients are kept."""
        return len(self._kept)

    def clear(self) -> None:
        """Forget all batches; the next evaluation of each sets its coefficients."""
        with self._lock:
            self._kept.clear()

    def check(self, batch: Any, captured: Captured) -> None:
        """Run `check_sum` with the coefficients kept for this batch; keep the current ones if there are none.

        Raises:
            NotSeparableError: see `check_sum`.
        """
        with self._lock:
            _, kept = self._kept.get(id(batch), (batch, None))
        finite = check_sum(captured, kept)
        if kept is not None or not finite:
            return
        own = coefficients_of(captured)
        with self._lock:
            _, first = self._kept.setdefault(id(batch), (batch, own))
        if first is not own:  # another chain stored its coefficients in between
            check_sum(captured, first)


def coefficients_of(captured: Captured) -> Coefficients:
    """c of each term."""
    return [term.coefficients for term in captured.terms]


def _products(term: Term) -> Tensor:
    elements = term.call.elements.detach()
    return (torch.zeros_like(elements) if term.coefficients is None else term.coefficients * elements).double()


def _moved(term: Term, kept: Tensor | None) -> Tensor:
    """Σ_k |c_k − kept_k| |r_k|, the part of the loss with a changed coefficient; inf if the shapes differ."""
    elements = term.call.elements.detach()
    now, then = (torch.zeros_like(elements) if c is None else c for c in (term.coefficients, kept))
    if now.shape != then.shape:
        return elements.new_full((), math.inf, dtype=torch.float64)
    return ((now - then) * elements).abs().sum(dtype=torch.float64)


def _other_weight(term: Term, moved: float, loss: float) -> NotSeparableError:
    call = term.call
    return NotSeparableError(
        f"the weight that {call.name}(reduction={call.reduction!r}) has in the loss of this batch depends on the "
        f"network: it differs from that at other weights, which moves {moved:.3g} of a loss of {loss:.7g}. The "
        "larger of two losses, a threshold, or a factor that is computed or learned does so",
        (call,),
    )


@dataclass(frozen=True)
class CapturedLoss:
    """Per-example losses from one run of the training step on a batch; made by `prove_captured`.

    Attributes:
        step: the training step.
        rules: the reduction of each of its loss calls.
        size_of: the number of examples in a batch.
        per_sample: which loss of an example, see `reduction`.
    """

    method: str = field(default="captured from training_step", init=False)
    cost: str = field(default="one forward pass for each batch", init=False)
    eval_batch_size: int | None = field(default=None, init=False)

    step: Step
    rules: tuple[tuple[Rule, ...], ...]
    size_of: Callable[[Any], int]
    per_sample: PerSample
    adapted: Adaptation = AS_IT_IS
    _kept: KeptCoefficients = field(default_factory=KeptCoefficients, init=False, repr=False, compare=False)

    def __call__(self, module: nn.Module, batch: Any) -> Float[Tensor, " example"]:
        """The loss of each example alone.

        Args:
            module: with the weights to evaluate, in eval mode.
            batch: a collated batch, the same object at every draw.

        Returns:
            Losses, shape [batch], float32, or float64 if the step computes in it; without a graph.

        Raises:
            LossChangedError: the step's loss on this batch fails a check that it passed before.
        """
        count = self.size_of(batch)
        try:
            captured = capture(self.step, module, batch)
            losses = split(captured, count, self.rules, self.per_sample)
            self._kept.check(batch, captured)
        except NotSeparableError as reason:
            raise LossChangedError(
                "the per-example losses derived from training_step held when they were checked, but not on this "
                f"batch of {count}: {reason}. Pass loss_fn(module, batch) -> Tensor[batch] to the callback"
            ) from reason
        return losses

    @property
    def adds_up(self) -> bool:
        """Whether the step adds up losses of examples, in one of its terms or in all."""
        return ("sum",) in self.rules

    def objective(self, module: nn.Module, batch: Any) -> Tensor:
        """The step's loss with every sum over examples made a mean."""
        if not self.adds_up:
            return scalar_loss(self.step(module, batch))
        return averaged(self.step, module, batch, [rule == ("sum",) for rule in self.rules], self.size_of(batch))

    def relative_weights(self, module: nn.Module, batch: Any) -> Float[Tensor, " example"] | None:
        """How much the loss of each example counts in that of the batch (class weights, tokens), the most at 1.

        Raises:
            NotSeparableError: the terms of the loss weigh the examples in different ways.
        """
        return relative_weights(capture(self.step, module, batch), self.size_of(batch), self.rules)

    def reset_coefficients(self) -> None:
        """Forget the kept coefficients, so that the next evaluation of each batch sets them."""
        self._kept.clear()


def prove_captured(
    step: Step,
    module: nn.Module,
    batch_of: BatchOf,
    rows: Sequence[int],
    *,
    per_sample: PerSample,
    size_of: Callable[[Any], int],
) -> CapturedLoss:
    """Split the training step's loss into the losses of the examples, and check these.

    Arguments as for `derive_loss`; the module in eval mode.

    Raises:
        NotSeparableError: it cannot be split, or a check fails.
    """
    batch = batch_of(rows)
    _check_sizes(size_of, batch, batch_of, rows)
    given = _Trial.run(step, module, batch, batch_of, rows)
    rules = consistent_rules(given.batch, given.singles)
    _prove(given, rules, step, module, batch, batch_of)
    split(given.batch, len(rows), rules, per_sample)
    return CapturedLoss(step, rules, size_of, per_sample)


def _check_sizes(size_of: Callable[[Any], int], batch: Any, batch_of: BatchOf, rows: Sequence[int]) -> None:
    for part, count in ((batch, len(rows)), (batch_of(rows[:1]), 1)):
        found = size_of(part)
        if found != count:
            raise NotSeparableError(f"size_of(batch) is {found} for a batch of {count} examples; pass another size_of")


def _prove(
    given: "_Trial", rules: Sequence[Sequence[Rule]], step: Step, module: nn.Module, batch: Any, batch_of: BatchOf
) -> None:
    perturbed = at_perturbed_weights(step, module)
    elsewhere = _attempt(perturbed, module, batch, "the batch with noise on the weights")
    _check_constant(given.batch, elsewhere)
    if given.unequal(rules, given.scale()) is None and given.distinguishes_rows():
        return
    # Small losses are dominated by rounding, and equal ones hide errors: then other weights decide and set the scale.
    other = _Trial.run(perturbed, module, batch, batch_of, given.rows)
    wrong = given.unequal(rules, max(given.scale(), other.scale())) or other.unequal(rules, other.scale())
    if wrong is None and not other.distinguishes_rows():
        wrong = equal_losses(given.rows, given.alone)
    if wrong is not None:
        raise NotSeparableError(wrong, calls_of(given.batch))


def _check_constant(given: Captured, elsewhere: Captured) -> None:
    called, then = ([call.name for call in calls_of(captured)] for captured in (given, elsewhere))
    if called != then:
        raise NotSeparableError(
            f"training_step called {', '.join(called)}, but {', '.join(then)} with noise on the weights",
            calls_of(given),
        )
    check_sum(elsewhere, coefficients_of(given))


@dataclass(frozen=True)
class _Trial:
    """The step on a batch and on each of its examples alone; `alone` is computed without `capture`."""

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
        return cls(rows, float_types(module), together, tuple(singles), torch.stack(alone))

    def scale(self) -> float:
        """Mean absolute loss; 0 if one is not finite."""
        mean = float(self.alone.abs().mean())
        return mean if math.isfinite(mean) else 0.0

    def unequal(self, rules: Sequence[Sequence[Rule]], scale: float) -> str | None:
        """Describe a row that differs from its example alone by more than rounding at this scale; None if all agree."""
        shares = split(self.batch, len(self.rows), rules)
        return disagreement(self.alone, shares, self.rows, self._rounding() * scale)

    def distinguishes_rows(self) -> bool:
        """Whether a row in the wrong place would be detected."""
        return losses_differ(self.alone, self._rounding() * self.scale())

    def _rounding(self) -> float:
        dtypes = self.dtypes | {call.precision for call in calls_of(self.batch)}
        return max(rounding(dtype, self.alone.device) for dtype in dtypes)


def _attempt(step: Step, module: nn.Module, batch: Any, where: str) -> Captured:
    try:
        captured = capture(step, module, batch)
        check_sum(captured)
    except NotSeparableError as reason:
        raise NotSeparableError(f"on {where}: {reason}", reason.calls) from reason
    except Exception as cause:
        raise_unrelated(cause)
        raise NotSeparableError(f"training_step raised {type(cause).__name__} on {where}: {cause}") from cause
    return captured


def _plain(step: Step, module: nn.Module, single: Any, captured: Captured) -> Tensor:
    with torch.enable_grad():  # a step may differentiate inside
        loss = scalar_loss(step(module, single)).detach().double()
    # If everything is ignored, torch's mean is 0/0; an example without a target has loss 0.
    empty = all(t.call.weights is not None and not bool(t.call.weights.any()) for t in captured.terms)
    return torch.zeros_like(loss) if empty and bool(loss.isnan()) else loss
