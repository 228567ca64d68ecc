"""Losses that fail in evaluation mode only: models that return something else there, and what to do with them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from bif_lightning.losses.derived.intercept import Step
from bif_lightning.losses.problem import eval_mode
from bif_lightning.model.devices import raise_unrelated
from bif_lightning.model.functional import FunctionalBackend
from bif_lightning.model.sharded import is_sharded
from bif_lightning.model.weights import every_supported

_MOST_TRIED: Final = 64


@dataclass(frozen=True)
class TrainingPart:
    """The smallest part of a module that has to be in training mode, so that a function does not fail.

    Attributes:
        path: of the part in the module; "" for the module itself.
        error: of the function in evaluation mode.
    """

    path: str
    error: Exception

    @property
    def name(self) -> str:
        """The part as people write it."""
        return f"module.{self.path}" if self.path else "module"

    @property
    def words(self) -> str:
        """What `switched` does."""
        return (
            f"{self.name} in training mode (its layers of torch.nn in evaluation mode), since it returns something "
            "else in evaluation mode"
        )

    def switched(self, step: Step) -> Step:
        """The step with this part in training mode, except for layers of torch.nn and others that normalize or drop.

        So the losses of examples stay independent of each other, and are not random.
        """

        def call(module: nn.Module, batch: Any) -> object:
            parts = [part for part in module.get_submodule(self.path).modules() if not _is_layer(part)]
            flags = [(part, part.training) for part in parts]
            try:
                for part in parts:
                    part.training = True
                return step(module, batch)
            finally:
                for part, flag in flags:
                    part.training = flag

        return call

    def message(self, name: str) -> str:
        """What to pass instead of a function of this name."""
        return (
            f"in evaluation mode, in which chains run, {name} raised {type(self.error).__name__}: {self.error}. With "
            f"{self.name} in training mode it does not: that part returns something else in evaluation mode, as "
            "detectors and networks with auxiliary heads do. Pass a loss_fn that puts it into training mode and back. "
            "A BatchNorm in it would make losses depend on other examples, and a dropout on chance: keep those in "
            "evaluation mode:\n\n"
            "def loss_fn(module, batch):\n"
            f"    {self.name}.train()\n"
            "    try:\n"
            "        return ...  # the loss of each example, shape [batch], for instance of batches of one\n"
            "    finally:\n"
            f"        {self.name}.eval()\n\n"
            "BIFCallback(..., loss_fn=loss_fn)"
        )


def part_to_train(function: Callable[[nn.Module, Any], object], module: nn.Module, batch: Any) -> TrainingPart | None:
    """The part with which a function of a module and a batch fails in evaluation mode and not in training mode, if any.

    It runs on a copy of weights and buffers, with the train flags of the module restored afterwards.

    Args:
        function: `training_step` or a loss_fn.
        module: outside `eval_mode`.
        batch: that it failed on.
    """
    if is_sharded(module) or not (names := every_supported(module)):
        return None
    backend = FunctionalBackend(module, names, twins=False)

    def fails(parts: Iterable[nn.Module]) -> Exception | None:
        with eval_mode(module), torch.enable_grad():
            for each in parts:
                each.training = True
            try:  # bound here, since what is bound keeps the flags of that moment
                backend.bind(backend.weights(tracked=False)).call(lambda own: function(own, batch))
            except Exception as error:
                raise_unrelated(error)
                return error
        return None

    error = fails(())
    if error is None:
        return None
    # The smallest part that is enough; a BatchNorm in training mode may fail, too.
    parts = {path: list(part.modules()) for path, part in module.named_modules()}
    sizes = {path: len(inside) for path, inside in parts.items()}
    paths = [*sorted(parts, key=sizes.__getitem__)[:_MOST_TRIED], ""]
    without = {path: [part for part in parts[path] if not _is_layer(part)] for path in paths}
    trials = ((path, chosen[path]) for chosen in (without, parts) for path in paths if chosen[path])
    found = next((path for path, chosen in trials if fails(chosen) is None), None)
    return None if found is None else TrainingPart(found, error)


def _is_layer(part: nn.Module) -> bool:
    return type(part).__module__.startswith("torch.nn.") or isinstance(part, _NormBase | _DropoutNd)
