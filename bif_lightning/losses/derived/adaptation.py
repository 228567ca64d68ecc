"""In which other way than as it is a training step is called, so that losses can be derived from it."""

from collections.abc import Callable
from dataclasses import dataclass

from bif_lightning.losses.derived.intercept import Step


def _as_it_is(step: Step) -> Step:
    return step


@dataclass(frozen=True)
class Adaptation:
    """A way to call a training step.

    Attributes:
        words: for dumps and notes; "" where the step is called as it is.
        step: makes the adapted step of a step.
    """

    words: str = ""
    step: Callable[[Step], Step] = _as_it_is


AS_IT_IS = Adaptation()
"""The step is called as it is."""
