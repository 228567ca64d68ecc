"""Losses and observables that write into their batch, as `batch.pop("labels")` and `x.div_(255)` do.

Training makes a new batch for each step. Here batches are kept for all draws, so such a function gets a copy.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bif_lightning.data.dataset import copied, digest
from bif_lightning.losses.observables import Batches, DividedBatches, Observable


class OwnBatches:
    """A function of a module and a batch, of a copy of the batch where it writes into it.

    Args:
        function: a training step or a loss. Whether it writes is found at the first call.

    >>> import torch
    >>> batch = {"x": torch.ones(2), "labels": torch.zeros(2)}
    >>> OwnBatches(lambda module, batch: batch.pop("labels"))(None, batch), sorted(batch)
    (tensor([0., 0.]), ['labels', 'x'])
    """

    def __init__(self, function: Callable[[nn.Module, Any], Any]) -> None:
        self.function, self.writes = function, False
        self._known = False

    def __call__(self, module: nn.Module, batch: Any) -> Any:
        """The function's result, and what it raises."""
        if self._known and not self.writes:
            return self.function(module, batch)
        own = tree_map(_own, batch)
        if self._known:
            return self.function(module, own)
        try:
            return self.function(module, own)
        finally:
            self.writes, self._known = digest(own) != digest(batch), True


class OwnBatchesOf:
    """An observable that gets copies of the batches where it writes into them.

    Args:
        inner: the observable. Whether it writes is found at the first measurement.
    """

    def __init__(self, inner: Observable) -> None:
        self.inner, self.writes = inner, False
        self._known = False

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def unit(self) -> str:
        return self.inner.unit

    def columns(self, num_queries: int) -> tuple[str, ...] | None:
        return self.inner.columns(num_queries)

    def measure(self, module: nn.Module, batches: Batches, losses: Tensor) -> Tensor:
        if self._known and not self.writes:
            return self.inner.measure(module, batches, losses)
        own: Batches = [(tree_map(_own, batch), count) for batch, count in batches]
        if isinstance(batches, DividedBatches):
            own = DividedBatches(own, batches.split)
        found = self.inner.measure(module, own, losses)
        if not self._known:
            self._known = True
            self.writes = any(digest(one) != digest(other) for one, other in zip(own, batches, strict=True))
        return found


def _own(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else copied(leaf)
