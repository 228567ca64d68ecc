"""The schedule of snapshots by steps and epochs, and when training ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps and epochs at which snapshots are due. Steps are optimizer steps (`global_step`); epochs count from 1.

    With several optimizers a batch advances the step by more than one, and gradient accumulation repeats it. Therefore
    a snapshot is due when a step is *crossed*.

    Args:
        every_n_train_steps: at every multiple.
        every_n_epochs: at the end of every n-th epoch; 1 where no other interval is given.
        at_steps: at these steps, often log-spaced.
        num_snapshots: this many over the whole training, at equal distances of √t, which is dense at its
            beginning: at T·(k/K)², k = 1 … K, of T steps in all (see `over`).
        at_start: before the first batch.
        at_end: after the last one.

    Raises:
        MisconfigurationException: two intervals at once, or a number out of range.
    """

    every_n_train_steps: int | None = None
    every_n_epochs: int | None = None
    at_steps: Sequence[int] | None = None
    num_snapshots: int | None = None
    at_start: bool = False
    at_end: bool = True
    _moments: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        rhythms = {
            "every_n_train_steps": self.every_n_train_steps,
            "every_n_epochs": self.every_n_epochs,
            "at_steps": self.at_steps,
            "num_snapshots": self.num_snapshots,
        }
        given = [name for name, value in rhythms.items() if value is not None]
        if len(given) > 1:
            raise MisconfigurationException(f"{' and '.join(given)} are both given; choose one")
        for name in ("every_n_train_steps", "every_n_epochs", "num_snapshots"):
            if (value := rhythms[name]) is not None and not (type(value) is int and value >= 1):
                raise MisconfigurationException(f"{name} is {value!r}; it must be a whole number, 1 or above")
        steps = self.at_steps
        if steps is not None and not all(type(step) is int and step >= 0 for step in steps):
            raise MisconfigurationException(f"at_steps is {list(steps)!r}; it must hold whole numbers, 0 or above")

    def over(self, steps: float) -> "Schedule":
        """The same in a training of this many optimizer steps, which `num_snapshots` has to know.

        >>> [step for step in range(1, 65) if Schedule(num_snapshots=4).over(64).crossed(step - 1, step)]
        [4, 16, 36, 64]

        Raises:
            MisconfigurationException: the training has no end.
        """
        count = self.num_snapshots
        if count is None:
            return self
        if not 0 <= steps < math.inf:
            raise MisconfigurationException(
                f"num_snapshots is {count}, and how many steps this training has is not known: give the Trainer "
                "max_steps, or max_epochs with a loader that has a length, or the callback at_steps or "
                "every_n_train_steps"
            )
        return replace(self, _moments=tuple(max(1, round(steps * (k / count) ** 2)) for k in range(1, count + 1)))

    def starts(self) -> bool:
        """Whether a snapshot is due before the first batch."""
        return self.at_start or 0 in (self.at_steps or ())

    def crossed(self, before: int, step: int) -> bool:
        """Whether a snapshot became due between two steps."""
        if self.every_n_train_steps is not None:
            return step // self.every_n_train_steps > before // self.every_n_train_steps
        return any(before < due <= step for due in self.at_steps or self._moments)

    def epoch_ends(self, epochs: int) -> bool:
        """Whether a snapshot is due at the end of this many epochs."""
        if any(rhythm is not None for rhythm in (self.every_n_train_steps, self.at_steps, self.num_snapshots)):
            return False
        return epochs % (self.every_n_epochs or 1) == 0


def is_extra_epoch(trainer: Any) -> bool:
    """Whether this epoch only updates BatchNorm for averaged weights (StochasticWeightAveraging's last)."""
    return bool(getattr(trainer.fit_loop, "_skip_backward", False))


def is_last_epoch(trainer: Any) -> bool:
    """Whether training ends with this epoch, as far as is known at its end."""
    max_epochs, max_steps = trainer.max_epochs, trainer.max_steps
    by_epochs = max_epochs not in (None, -1) and trainer.current_epoch + 1 >= max_epochs
    by_steps = max_steps not in (None, -1) and trainer.global_step >= max_steps
    return bool(trainer.should_stop or by_epochs or by_steps)


def training_fraction(trainer: Any) -> float:
    """Fraction of the training that is done, 0 to 1, by whichever limit comes first.

    1 without a limit, since training may then end here. Early stopping is not predicted.
    """
    max_epochs, max_steps = trainer.max_epochs, trainer.max_steps
    done = list[float]()
    if max_epochs not in (None, -1):  # an epoch of unknown length counts as done
        within = min(1.0, (trainer.fit_loop.batch_idx + 1) / trainer.num_training_batches) or 1.0
        done.append((trainer.current_epoch + within) / max(max_epochs, 1))
    if max_steps not in (None, -1):
        done.append(trainer.global_step / max(max_steps, 1))
    for timer in (callback for callback in trainer.callbacks if isinstance(callback, Timer)):
        if (left := timer.time_remaining()) is not None:
            done.append(1 - left / max(left + timer.time_elapsed(), 1e-9))
    return min(1.0, max(done, default=1.0))


def averages_weights(trainer: Any) -> bool:
    """Whether a callback may have put averaged weights into the module by the end of training."""
    names = {base.__name__ for callback in trainer.callbacks for base in type(callback).__mro__}
    return bool(names & {"WeightAveraging", "EMAWeightAveraging", "StochasticWeightAveraging"})


def waits_for_the_clock(trainer: Any) -> list[str]:
    """Names of the Trainer's parts that act by wall time, which a snapshot shifts."""
    by_time = getattr(trainer, "_val_check_time_interval", None) is not None
    found = ["val_check_interval"] if by_time else list[str]()
    for callback in trainer.callbacks:
        name = type(callback).__name__
        if name == "Timer" or getattr(callback, "_train_time_interval", None) is not None:
            found.append(name)
    return found
