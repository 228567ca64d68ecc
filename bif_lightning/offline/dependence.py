"""What of a training run the loss depends on, beyond weights and batch: saved weights may not tell it.

The position (step and epoch) is that of each checkpoint. Other things are found by changing them, and looking whether
the loss of a few examples changes.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch

from bif_lightning.data.dataset import Batch, copied, spread_rows
from bif_lightning.losses.problem import Problem, disable_compile, eval_mode
from bif_lightning.offline.hook_state import TRAINING_HOOKS, attributes_set, other_value
from bif_lightning.rng import seed_global
from bif_lightning.sampling.context import device_of
from bif_lightning.trainer.guard.guard import training_guard
from bif_lightning.trainer.problem import Attribution

EPOCH = "current_epoch"
LIMITS = (
    "max_epochs", "max_steps", "estimated_stepping_batches", "num_training_batches", "accumulate_grad_batches",
    "world_size",
)  # fmt: skip
HOOKS = ("on_train_start", "on_train_epoch_start", "on_train_batch_start")
RATE = "lr"

_EXAMPLES = 4
_MORE = (7, 1_000_000)
"""Changes of a number: some schedules change at each step, others where a number is large."""

_ATTRIBUTE = "self."


def dependence(trainer: Any, module: Any, attribution: Attribution) -> frozenset[str]:
    """Names of what the loss depends on: `EPOCH`, any of `LIMITS`, `RATE`, any of `HOOKS`, and attributes that a
    method sets while the module trains, as "self.x, which on_train_batch_end sets".

    Args:
        trainer, module: in a fit, at the position of a checkpoint.
        attribution: whose loss.
    """
    problem = attribution.problem
    with (
        training_guard(trainer, module, attribution.datasets),
        attribution.around(),
        disable_compile(),
        eval_mode(module),
        torch.enable_grad(),
    ):
        # Read once, and prepared at each change, since hooks on its way may look at the position too.
        batch = problem.training.batch(spread_rows(len(problem.training), _EXAMPLES))
        given = _Given.of(problem, module, batch)
        if given.differs(contextlib.nullcontext()):  # by chance, or from call to call
            return frozenset()
        found = {name for name, change in _changes(trainer, module) if given.differs(change)}
        for more in _MORE:  # where a hook would set other values than at the start
            with contextlib.suppress(Exception), _altered(trainer, module, more, EPOCH, "global_step"):
                later, prepared = _Given.of(problem, module, batch), problem.prepare(copied(batch))
                calls = [(name, _called(trainer, module, prepared, name)) for name in HOOKS]
                found |= {name for name, change in calls if later.differs(change)}
        return frozenset(found)


def _changes(trainer: Any, module: Any) -> Iterator[tuple[str, AbstractContextManager[None]]]:
    for name in (EPOCH, *LIMITS):
        for more in _MORE:
            yield name, _altered(trainer, module, more, name)
    yield RATE, _other_rates(trainer)
    saved = {*module.state_dict(), *attributes_set(module, ["on_load_checkpoint"])}
    for path, method in attributes_set(module, TRAINING_HOOKS).items():
        if path not in saved:
            yield f"{_ATTRIBUTE}{path}, which {method} sets", other_value(module, path)


def refuse_unknown(found: frozenset[str], *, limits_known: bool) -> None:
    """Refuse what no checkpoint tells.

    Args:
        found: by `dependence`.
        limits_known: whether the Trainer has the limits of the training.

    Raises:
        ValueError: which, and what to do.
    """
    if (limits := [name for name in LIMITS if name in found]) and not limits_known:
        raise ValueError(
            f"the loss depends on trainer.{limits[0]}, which saved weights do not tell: pass a Trainer with the limits "
            "of the training to bif_lightning.attribute or watch, trainer=L.Trainer(max_epochs=...)"
        )
    if RATE in found:
        raise ValueError(
            "the loss depends on the learning rate, which is not restored with saved weights: compute that factor from "
            "self.global_step in training_step, or keep it in a buffer, which checkpoints hold"
        )
    if hooks := [name for name in HOOKS if name in found]:
        raise ValueError(
            f"{hooks[0]} sets something that the loss depends on, and no training runs here that would call it: "
            f"{_REMEDY}"
        )
    if attributes := sorted(name for name in found if name.startswith(_ATTRIBUTE)):
        raise ValueError(f"the loss depends on {attributes[0]} in training, and no training runs here: {_REMEDY}")


_REMEDY = (
    "compute it in training_step from self.current_epoch or self.global_step, which are those of each checkpoint, keep "
    "it in a buffer, which checkpoints hold, or save and set it by on_save_checkpoint and on_load_checkpoint"
)


@dataclass(frozen=True)
class _Given:
    """The loss of a few examples."""

    problem: Problem
    module: Any
    batch: Batch
    loss: torch.Tensor

    @classmethod
    def of(cls, problem: Problem, module: Any, batch: Batch) -> "_Given":
        return cls(problem, module, batch, _loss(problem, module, batch))

    def differs(self, change: AbstractContextManager[None]) -> bool:
        """Whether the loss is another with a change."""
        with contextlib.suppress(Exception), change:  # what fails when it is changed tells nothing
            found = _loss(self.problem, self.module, self.batch)
            return not bool(torch.equal(found, self.loss) or (found.isnan() & self.loss.isnan()).all())
        return False


def _loss(problem: Problem, module: Any, batch: Batch) -> torch.Tensor:
    seed_global(device_of(module), 0)
    return problem.objective(module, problem.prepare(copied(batch))).detach()


class _Altered:
    """A Trainer of which some numbers are larger."""

    def __init__(self, trainer: Any, more: int, names: tuple[str, ...]) -> None:
        self.__dict__.update(_inner=trainer, _more=more, _names=names)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        return value + self._more if name in self._names and isinstance(value, int | float) else value


@contextmanager
def _altered(trainer: Any, module: Any, more: int, *names: str) -> Generator[None]:
    parts = [part for part in _lightning_modules(module) if "_trainer" in vars(part)]
    before = [(part, vars(part)["_trainer"]) for part in parts]
    try:
        for part in parts:
            vars(part)["_trainer"] = _Altered(trainer, more, names)
        yield
    finally:
        for part, kept in before:
            vars(part)["_trainer"] = kept


def _lightning_modules(module: Any) -> Iterator[Any]:
    return (part for part in module.modules() if isinstance(part, pl.LightningModule))


@contextmanager
def _other_rates(trainer: Any) -> Generator[None]:
    """Twice the learning rates, in the optimizers and as schedulers tell them."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    schedulers = [each for each in schedulers if hasattr(each, "_last_lr")]
    before = [group["lr"] for group in groups], [each._last_lr for each in schedulers]
    try:
        for group in groups:
            group["lr"] = group["lr"] * 2
        for each in schedulers:
            each._last_lr = [rate * 2 for rate in each._last_lr]
        yield
    finally:
        for group, rate in zip(groups, before[0], strict=True):
            group["lr"] = rate
        for each, rates in zip(schedulers, before[1], strict=True):
            each._last_lr = rates


@contextmanager
def _called(trainer: Any, module: Any, batch: Any, name: str) -> Generator[None]:
    """What a hook of the module does, undone by the guard around."""
    hook: Callable[..., Any] = getattr(module, name)
    if getattr(type(module), name) is not getattr(pl.LightningModule, name):
        with training_guard(trainer, module):
            saved = {path: value.detach().clone() for path, value in module.state_dict().items()}
            restored = attributes_set(module, ["on_load_checkpoint"])
            known = {name: value for name, value in vars(module).items() if name in restored}
            hook(*((batch, 0) if name == "on_train_batch_start" else ()))
            module.load_state_dict(saved)  # what checkpoints hold is theirs
            vars(module).update(known)
            yield
    else:
        yield
