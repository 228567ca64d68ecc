"""Step, epoch and logged metrics of a training run at a snapshot."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bif_lightning.archive.write.dump import plain
from bif_lightning.trainer.support import loss_scale_of


@dataclass(frozen=True)
class TrainingPosition:
    """A point in a training run.

    Attributes:
        step: global training step.
        epoch: epoch, counted from 0.
        metrics: last logged values, such as the validation loss.
        hyperparameters: hyperparameters of the module, as plain values.
        loss_scale: loss scale of training in float16.
        epoch_known: whether the epoch is known, besides the step.
    """

    step: int
    epoch: int
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    hyperparameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    loss_scale: float = 1.0
    epoch_known: bool = True


@contextmanager
def at_position(trainer: Any, moment: TrainingPosition) -> Generator[None]:
    """Let a Trainer say that its training is at this point: `current_epoch` and `global_step`, which losses may use."""
    epochs, batches = trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_loop
    steps = batches.automatic_optimization.optim_progress.optimizer.step.total
    by_hand = batches.manual_optimization.optim_step_progress.total
    placed = ((epochs, moment.epoch), (steps, moment.step), (by_hand, moment.step))
    before = [(progress, progress.completed) for progress, _ in placed]
    try:
        for progress, count in placed:
            progress.completed = count
        yield
    finally:
        for progress, count in before:
            progress.completed = count


def now(trainer: Any, module: Any) -> TrainingPosition:
    """The current position of a fit. It reads the hyperparameters, which may fill caches of theirs."""
    # Reading `trainer.callback_metrics` would compute and cache metrics before training does.
    logged = trainer._logger_connector._callback_metrics
    metrics = {name: float(value) for name, value in logged.items() if value.numel() == 1}
    hyperparameters = {str(name): _readable(module.hparams, name) for name in getattr(module, "hparams", ())}
    return TrainingPosition(
        trainer.global_step, trainer.current_epoch, metrics, hyperparameters, loss_scale_of(trainer)
    )


def _readable(values: Any, name: Any) -> Any:
    try:
        return plain(values[name])
    except Exception as error:  # a configuration refuses to be read where a value is missing
        return f"<{type(error).__name__}>"
