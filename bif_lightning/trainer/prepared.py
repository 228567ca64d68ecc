"""What the hooks of a module make of a batch on its way to the device.

Prepared batches of the measured examples are kept. So the hooks must not use weights that chains move, and where they
give other batches than at an earlier snapshot (a schedule, running statistics), these are prepared anew.
"""

from collections.abc import Callable, Sequence

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from bif_lightning.data.dataset import Batch, copied, digest
from bif_lightning.losses.derived.proof import at_perturbed_weights
from bif_lightning.losses.problem import Problem, eval_mode
from bif_lightning.model.sharded import is_sharded
from bif_lightning.rng import seed_global, unaltered_generators
from bif_lightning.sampling.context import device_of

_KEPT = ("train_batches", "query_batches", "train_singles", "query_singles")


class Preparation:
    """A few collated examples, and what the hooks now make of them.

    Args:
        module: whose hooks are called, in evaluation mode.
        batches: collated, not yet prepared.
        prepare: calls the hooks.
    """

    def __init__(self, module: nn.Module, batches: Sequence[Batch], prepare: Callable[[Batch], Batch]) -> None:
        self.module, self.batches, self.prepare = module, batches, prepare
        self._before = self._result()

    def changed(self) -> bool:
        """Whether the hooks give other batches than at the last call, or at the beginning."""
        before, self._before = self._before, self._result()
        return before != self._before

    def refuse_moved_weights(self, params: Sequence[str] | None) -> None:
        """Refuse hooks that compute with weights that chains move.

        Args:
            params: name patterns of the parameters to sample; None for all trainable ones.

        Raises:
            MisconfigurationException: they do.
        """
        if is_sharded(self.module):  # all ranks would have to make the same calls
            return
        with eval_mode(self.module):
            moved = at_perturbed_weights(lambda own, batch: self._result(), self.module, params)
            found = moved(self.module, None)
        if found != self._before and self._result() == self._before:
            raise MisconfigurationException(
                "a hook that prepares batches (on_before_batch_transfer, transfer_batch_to_device or "
                "on_after_batch_transfer) computes with weights that chains move, but batches are prepared once for "
                "all chains: do that computation in training_step, or leave these weights out by params"
            )

    def _result(self) -> list[str]:
        """A hash of each batch as the hooks prepare it, with the global generators in one state."""
        device = device_of(self.module)
        with unaltered_generators(device), eval_mode(self.module):
            seed_global(device, 0)
            return [digest(self.prepare(copied(batch))) for batch in self.batches]


def forget_prepared(problem: Problem) -> None:
    """Let a problem read its measured examples again, with the global generators in the state of the first time."""
    for name in _KEPT:
        vars(problem).pop(name, None)
    problem.loaded = False
