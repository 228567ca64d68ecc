"""Numbers of the influence as columns of TensorBoard's HParams tab, where runs are compared by hyperparameters."""

from typing import Any, cast

from lightning.fabric.utilities.logger import _flatten_dict
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

COLUMNS = (
    "bif/llc", "bif/snapshot_loss", "bif/mean_abs_correlation", "bif/resolved_fraction", "bif/group_agreement",
    "bif/same_label_mean",
)  # fmt: skip
_OF_LIGHTNING = "hp_metric"
_EARLIER_HOOKS = ("prepare_data", "setup", "configure_model", "on_fit_start")


def declare_columns(trainer: Any, module: Any) -> None:
    """Write a description of the experiment that has these numbers as metrics, to each TensorBoardLogger.

    Call it before Lightning logs the hyperparameters: of the descriptions in a run, TensorBoard reads the first.
    Whoever logs hyperparameters with metrics of their own (`default_hp_metric=False`, or a call in an early hook of the
    module) keeps their description, and there is none without hyperparameters.
    """
    if not getattr(trainer, "enable_autolog_hparams", True) or any(_logs_in(module, hook) for hook in _EARLIER_HOOKS):
        return
    values = _hyperparameters(module, trainer.datamodule)
    for logger in trainer.loggers if values else ():
        writer = getattr(logger, "experiment", None)
        if isinstance(writer, SummaryWriter) and getattr(logger, "_default_hp_metric", False):
            metrics = dict.fromkeys((_OF_LIGHTNING, *COLUMNS), 0.0)  # their names alone are written
            described, *_ = hparams(logger._sanitize_params(_flatten_dict(values)), metrics)
            cast(Any, writer._get_file_writer()).add_summary(described)


def _logs_in(module: Any, hook: str) -> bool:
    code = getattr(getattr(type(module), hook, None), "__code__", None)
    return code is not None and "log_hyperparams" in code.co_names


def _hyperparameters(module: Any, datamodule: Any) -> dict[str, Any]:
    """What Lightning logs of them."""
    found: dict[str, Any] = {}
    for owner in (module, datamodule):
        if getattr(owner, "_log_hyperparams", False):
            found |= dict(owner.hparams_initial)
    return {name: value for name, value in found.items() if name != "_class_path"}
