"""The schedule of snapshots by steps and epochs, and when training ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer

from bif_lightning.data.rows import rows_of, whole_number

NUM_SNAPSHOTS = 8
"""Snapshots of a training where nothing says when; docs/concepts/whole_training.md has the reasons."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps and epochs at which snapshots are due. Steps are optimizer steps (`global_step`); epochs count from 1.

    With several optimizers a batch advances the step by more than one, and gradient accumulation repeats it. Therefore
    a snapshot is due when a step is *crossed*.

    Without an interval, it is `num_snapshots` = 8 in a training whose number of steps is known before it starts, and
    every_n_epochs = 1 in others (see `of_training`).

    Args:
        every_n_train_steps: snapshots at every multiple.
        every_n_epochs: snapshots at the end of every n-th epoch.
        at_steps: snapshots at these steps, often log-spaced.
        num_snapshots: number of snapshots over the whole training, evenly spaced in √t, so most are early: at
            T·(k/K)², k = 1 … K, with T the total number of steps (see `over`).
        at_start: a snapshot before the first batch.
        at_end: a snapshot after the last batch.

    Raises:
        MisconfigurationException: two intervals are given, or a number is out of range.
    """

    every_n_train_steps: int | None = None
    every_n_epochs: int | None = None
    at_steps: Sequence[int] | None = None
    num_snapshots: int | None = None
    at_start: bool = False
    at_end: bool = True
    _snapshot_steps: tuple[int, ...] = ()

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
            if (value := rhythms[name]) is not None:
                object.__setattr__(self, name, _whole(value, name, 1))
        if self.at_steps is not None:
            object.__setattr__(self, "at_steps", _steps(self.at_steps))

    def over(self, steps: float) -> "Schedule":
        """The schedule for a training of this many optimizer steps, which `num_snapshots` needs.

        >>> [step for step in range(1, 65) if Schedule(num_snapshots=4).over(64).crossed(step - 1, step)]
        [4, 16, 36, 64]
        >>> [step for step in range(1, 65) if Schedule().over(64).crossed(step - 1, step)]
        [1, 4, 9, 16, 25, 36, 49, 64]

        Raises:
            MisconfigurationException: the training has no end.
        """
        if not self.is_spread:
            return self
        count = self.num_snapshots or NUM_SNAPSHOTS
        if 0 <= steps < math.inf:
            at = tuple(max(1, round(steps * (k / count) ** 2)) for k in range(1, count + 1))
            return replace(self, _snapshot_steps=at)
        if self.num_snapshots is None:
            return replace(self, _snapshot_steps=())
        raise MisconfigurationException(
            f"num_snapshots is {count}, but the number of training steps is unknown: give the Trainer max_steps, or "
            "max_epochs with a loader that has a length; or give the callback at_steps or every_n_train_steps"
        )

    @property
    def is_spread(self) -> bool:
        """Whether snapshots are spread over the training, if its number of steps is known."""
        return all(each is None for each in (self.every_n_train_steps, self.every_n_epochs, self.at_steps))

    def starts(self) -> bool:
        """Whether a snapshot is due before the first batch."""
        return self.at_start or 0 in (self.at_steps or ())

    def crossed(self, before: int, step: int) -> bool:
        """Whether a snapshot became due between two steps."""
        if self.every_n_train_steps is not None:
            return step // self.every_n_train_steps > before // self.every_n_train_steps
        return any(before < due <= step for due in self.at_steps or self._snapshot_steps)

    def epoch_ends(self, epochs: int) -> bool:
        """Whether a snapshot is due at the end of this many epochs."""
        if self._snapshot_steps or any(rhythm is not None for rhythm in (self.every_n_train_steps, self.at_steps)):
            return False
        return epochs % (self.every_n_epochs or 1) == 0


def of_training(schedule: Schedule, trainer: Any) -> Schedule:
    """A schedule in a training that starts now.

    The number of steps is that of the whole training, also of one that is resumed: a run that was interrupted takes the
    snapshots of one that was not. Where it is resumed with another max_epochs, the moments that are still to come are
    those of the new length.

    Raises:
        MisconfigurationException: `num_snapshots` is given, and the training has no end.
    """
    if not schedule.is_spread:
        return schedule
    guessed = schedule.num_snapshots is None and _steps_are_guessed(trainer)
    return schedule.over(math.inf if guessed else trainer.estimated_stepping_batches)


def _steps_are_guessed(trainer: Any) -> bool:
    """Whether a batch may advance the step by another number than the Trainer counts with."""
    schedulers = [each for each in trainer.callbacks if isinstance(each, GradientAccumulationScheduler)]
    return not trainer.lightning_module.automatic_optimization or any(len(each.scheduling) > 1 for each in schedulers)


def _whole(value: object, name: str, least: int) -> int:
    found = whole_number(value)
    if found is None or found < least:
        raise MisconfigurationException(f"{name} is {value!r}; it must be a whole number, {least} or above")
    return found


def _steps(steps: Any) -> tuple[int, ...]:
    try:
        found = rows_of(steps)
    except ValueError:  # whole numbers in floating point, as np.logspace gives them
        found = None
    if found is None or found.mask is not None or min(found.indices, default=0) < 0:
        raise MisconfigurationException(
            f"at_steps is {list(steps)!r}; it must hold whole numbers, 0 or above, such as np.unique(steps.astype(int))"
        )
    return found.indices


def is_extra_epoch(trainer: Any) -> bool:
    """Whether this epoch only updates BatchNorm for averaged weights (StochasticWeightAveraging's last)."""
    return bool(getattr(trainer.fit_loop, "_skip_backward", False))


def is_last_epoch(trainer: Any) -> bool:
    """Whether training ends with this epoch, as far as known at its end."""
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
    """Names of the Trainer's parts that depend on wall time, which snapshots add to."""
    by_time = getattr(trainer, "_val_check_time_interval", None) is not None
    found = ["val_check_interval"] if by_time else list[str]()
    for callback in trainer.callbacks:
        name = type(callback).__name__
        if name == "Timer" or getattr(callback, "_train_time_interval", None) is not None:
            found.append(name)
    return found
