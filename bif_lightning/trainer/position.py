"""When in training a snapshot is, and what was known of the run then."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bif_lightning.trainer.support import loss_scale_of


@dataclass(frozen=True)
class TrainingPosition:
    """One moment of a training run.

    Attributes:
        step: global training step.
        epoch: counted from 0.
        metrics: what the training logged last, such as the validation loss.
        hyperparameters: of the module.
        loss_scale: of training in float16 at that moment.
    """

    step: int
    epoch: int
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    hyperparameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    loss_scale: float = 1.0


def now(trainer: Any, module: Any) -> TrainingPosition:
    """The present moment of a fit.

    `trainer.callback_metrics` would compute metrics that training has not asked for yet, and keep the results.
    """
    logged = trainer._logger_connector._callback_metrics
    metrics = {name: float(value) for name, value in logged.items() if value.numel() == 1}
    hyperparameters = dict(getattr(module, "hparams", {}))
    return TrainingPosition(
        trainer.global_step, trainer.current_epoch, metrics, hyperparameters, loss_scale_of(trainer)
    )
