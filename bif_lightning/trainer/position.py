"""Step, epoch and logged metrics of a training run at a snapshot."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bif_lightning.trainer.support import loss_scale_of


@dataclass(frozen=True)
class TrainingPosition:
    """A point in a training run.

    Attributes:
        step: global training step.
        epoch: counted from 0.
        metrics: values logged last, such as the validation loss.
        hyperparameters: of the module.
        loss_scale: of training in float16.
    """

    step: int
    epoch: int
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    hyperparameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    loss_scale: float = 1.0


def now(trainer: Any, module: Any) -> TrainingPosition:
    """The current position of a fit."""
    # Reading `trainer.callback_metrics` would compute and cache metrics before training does.
    logged = trainer._logger_connector._callback_metrics
    metrics = {name: float(value) for name, value in logged.items() if value.numel() == 1}
    hyperparameters = dict(getattr(module, "hparams", {}))
    return TrainingPosition(
        trainer.global_step, trainer.current_epoch, metrics, hyperparameters, loss_scale_of(trainer)
    )
