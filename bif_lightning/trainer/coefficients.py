"""The coefficients of a captured loss: they must account for all of it, and stay what they were at every draw.

`check_sum` compares Σ_k c_k r_k with L, so that a loss with parts that are no such sum (a hand-written penalty,
a square root) is refused and never cut short. That equality alone does not see a weight that depends on the
network: the larger of two losses adds up whichever of them it is. So `KeptCoefficients` compares with the c
that the same batch had before.
"""

import math
from collections.abc import Sequence
from threading import Lock
from typing import Any, Final

import torch
from torch import Tensor

from .capture import Captured, NotSeparableError, Term

Coefficients = Sequence[Tensor | None]
"""c of each term, None where it is no part of the loss."""

_TOLERANCE: Final = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def check_sum(captured: Captured, kept: Coefficients | None = None) -> bool:
    """Require L = Σ_k c_k r_k, with the loss's own coefficients and with kept ones.

    Args:
        captured: a loss and its terms.
        kept: coefficients of the same terms for the same batch at other weights; None for no comparison.

    Returns:
        Whether the loss is finite; if not, nothing is required.

    Raises:
        NotSeparableError: the terms do not add up, or one has another weight in the loss than it had.
    """
    used = [term for term in captured.terms if term.coefficients is not None]
    parts = torch.cat([_products(term).flatten() for term in used])
    moves = [] if kept is None else [_moved(term, c) for term, c in zip(captured.terms, kept, strict=True)]
    # One transfer, so that a GPU waits once for each batch.
    numbers = torch.stack([captured.loss.double(), parts.sum(), parts.abs().sum(), *moves]).tolist()
    loss, total, scale = numbers[:3]
    if not (math.isfinite(loss) and math.isfinite(scale)):  # a diverged chain is found and named by the sampler
        return False
    tolerance = _TOLERANCE[captured.loss.dtype] * max(scale, abs(loss))
    if abs(total - loss) > tolerance:
        names = ", ".join(term.call.name for term in used)
        raise NotSeparableError(
            f"training_step returned {loss:.7g}, but the losses that it called ({names}) add up to {total:.7g} with "
            "the coefficients that it gave them: a part of the loss is written by hand, or the loss is no weighted "
            "sum of theirs",
            [term.call for term in used],
        )
    for k, moved in enumerate(numbers[3:]):
        if not moved <= tolerance:
            raise _other_weight(captured.terms[k], moved, loss)
    return True


class KeptCoefficients:
    """For each batch, the coefficients that it had when it was first evaluated.

    They must belong to the batch (its classes, its tokens) and not to the network's weights: then every draw of
    every chain finds the same ones, and what was proved of the first holds for all. Serves chains on several
    threads. Batches are told apart by identity and are referenced, so that none can take the place of another:
    evaluate the same batch objects at every draw, and clear between snapshots.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: dict[int, tuple[Any, Coefficients]] = {}

    def __len__(self) -> int:
        """Number of batches whose coefficients are kept."""
        return len(self._kept)

    def clear(self) -> None:
        """Forget all batches: the next evaluation of each is its first again."""
        with self._lock:
            self._kept.clear()

    def check(self, batch: Any, captured: Captured) -> None:
        """`check_sum` with the coefficients kept for this batch; they are kept now if there are none.

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
        if first is not own:  # another chain was first, after this one had looked
            check_sum(captured, first)


def coefficients_of(captured: Captured) -> Coefficients:
    """c of each term."""
    return [term.coefficients for term in captured.terms]


def _products(term: Term) -> Tensor:
    elements = term.call.elements.detach()
    return (torch.zeros_like(elements) if term.coefficients is None else term.coefficients * elements).double()


def _moved(term: Term, kept: Tensor | None) -> Tensor:
    """Σ_k |c_k − kept_k| |r_k|: how much of the loss has another weight; inf if the elements are others."""
    elements = term.call.elements.detach()
    now, then = (torch.zeros_like(elements) if c is None else c for c in (term.coefficients, kept))
    if now.shape != then.shape:
        return elements.new_full((), math.inf, dtype=torch.float64)
    return ((now - then) * elements).abs().sum(dtype=torch.float64)


def _other_weight(term: Term, moved: float, loss: float) -> NotSeparableError:
    call = term.call
    return NotSeparableError(
        f"the weight that {call.name}(reduction={call.reduction!r}) has in the loss of this batch depends on the "
        f"network: it is not what it was at other weights, which moves {moved:.3g} of a loss of {loss:.7g}. The "
        "larger of two losses, a threshold, or a factor that is computed or learned does so",
        (call,),
    )
