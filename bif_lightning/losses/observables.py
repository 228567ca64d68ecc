"""Observables of the query set, which chains measure at every draw in addition to per-example losses."""

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric

from bif_lightning.data.dataset import Batch
from bif_lightning.data.tensors import plain_tensor
from bif_lightning.distributed.ranks import BatchShard

LossFn = Callable[[nn.Module, Batch], Tensor | tuple[Tensor, Tensor]]
"""(module, batch) -> the loss of each example, [batch], or of each token, [batch, token], optionally with a mask of the
same shape that is False for tokens without a loss. The loss of an example is the sum over its tokens."""

ExampleLoss = Callable[[nn.Module, Batch], Tensor]
"""A `LossFn` that returns one tensor, 0 for tokens without a loss."""

Batches = Sequence[tuple[Batch, int]]
"""Batches of a fixed set, in order, each with its number of examples."""


class DividedBatches(list[tuple[Batch, int]]):
    """Batches divided among the data-parallel ranks of a sharded model: batch b on rank b mod their number.

    All ranks make the same number of forward passes and get all values. Code that iterates over this list, such as a
    metric, sees every batch on every rank.
    """

    def __init__(self, batches: Sequence[tuple[Batch, int]], split: BatchShard) -> None:
        super().__init__(batches)
        self.split = split
        self._rounds = -(-len(batches) // split.parts)

    @property
    def own(self) -> list[tuple[Batch, int]]:
        """This rank's batches; the last one is repeated if other ranks have one batch more."""
        mine = [self.split.part + r * self.split.parts for r in range(self._rounds)]
        return [self[min(index, len(self) - 1)] for index in mine]

    def assembled(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The values [example, ...] of all batches, in order, from those of `own` on every rank. Collective.

        All values have the same shape except for the number of examples.
        """
        size = max(count for _, count in self)
        lacking = [value.new_zeros(size - len(value), *value.shape[1:]) for value in values]
        parts = self.split.gathered(torch.stack([torch.cat(pair) for pair in zip(values, lacking, strict=True)]))
        return [parts[b % self.split.parts][b // self.split.parts, :count] for b, (_, count) in enumerate(self)]


# Each subscript makes a new type, and LightningCLI compares signatures, so these types are created once.
QueryLosses = Float[Tensor, " query"]
Columns = Float[Tensor, " column"]


class Observable(Protocol):
    """A quantity φ of the query set, measured at every draw in addition to the losses.

    Any class with these members is an observable. Its influence is B[i, j] = −Cov(l_i, φ_j), in nat x `unit`.
    `PerExample`, `GroupMean` and `MetricValue` cover common cases.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class WorstLoss:
    ...     name: str = "worst_loss"
    ...     unit: str = "nat"
    ...     def columns(self, num_queries):
    ...         return ("max",)
    ...     def measure(self, module, batches, losses):
    ...         return losses.max().reshape(1)
    >>> observable: Observable = WorstLoss()
    >>> observable.measure(nn.Identity(), [], torch.tensor([0.5, 2.0, 1.0]))
    tensor([2.])
    """

    @property
    def name(self) -> str:
        """Name in dumps and plots: letters, digits and underscores, beginning with a letter."""
        ...

    @property
    def unit(self) -> str:
        """Unit of the values, "1" for dimensionless numbers."""
        ...

    def columns(self, num_queries: int) -> tuple[str, ...] | None:
        """Names of the values, or None for one value for each query example.

        Raises:
            ValueError: the observable does not fit a query set of this size.
        """
        ...

    def measure(self, module: nn.Module, batches: Batches, losses: QueryLosses) -> Columns:
        """Values at the module's current weights; `losses` are the query losses at these weights."""
        ...


@dataclass(frozen=True)
class PerExample:
    """An observable with one value for each query example, such as a logit difference.

    Args:
        name: name in dumps and plots.
        function: (module, batch) -> Tensor[batch].
        unit: unit of the values.

    >>> def margin(module, batch):
    ...     x, y = batch
    ...     logits = module(x)
    ...     return logits.gather(1, y[:, None])[:, 0] - logits.mean(1)
    >>> observable = PerExample("margin", margin)
    >>> batch = torch.eye(2), torch.tensor([0, 0])
    >>> observable.measure(nn.Identity(), [(batch, 2)], torch.zeros(2))
    tensor([ 0.5000, -0.5000])
    """

    name: str
    function: Callable[[nn.Module, Batch], Tensor]
    unit: str = "1"

    def columns(self, num_queries: int) -> tuple[str, ...] | None:
        """None, since there is one value for each query example."""
        return

    def measure(self, module: nn.Module, batches: Batches, losses: QueryLosses) -> Columns:
        """One value for each query example."""
        return per_example(self.function, module, batches, self.name)


@dataclass(frozen=True)
class GroupMean:
    """Mean over groups of query examples, of their losses or of any per-example function.

    Args:
        name: name in dumps and plots.
        groups: group of each query example, in order. Each group is a column; columns are sorted by the group as text.
        function: (module, batch) -> Tensor[batch]; None for the loss.
        unit: unit of the values.

    >>> observable = GroupMean("loss_by_class", groups=["cat", "dog", "cat"])
    >>> observable.columns(3)
    ('cat', 'dog')
    >>> observable.measure(nn.Identity(), [], torch.tensor([1.0, 5.0, 3.0]))
    tensor([2., 5.])
    """

    name: str
    groups: Sequence[Hashable]
    function: Callable[[nn.Module, Batch], Tensor] | None = None
    unit: str = "nat"

    def columns(self, num_queries: int) -> tuple[str, ...] | None:
        """The groups, as text, sorted."""
        return self._names(num_queries)

    def measure(self, module: nn.Module, batches: Batches, losses: QueryLosses) -> Columns:
        """The mean of each group."""
        values = losses if self.function is None else per_example(self.function, module, batches, self.name)
        names = self._names(len(values))
        member = torch.tensor([names.index(str(group)) for group in self.groups], device=values.device)
        total = torch.zeros(len(names), dtype=values.dtype, device=values.device).index_add_(0, member, values)
        return total / torch.bincount(member, minlength=len(names))

    def _names(self, num_queries: int) -> tuple[str, ...]:
        if len(self.groups) != num_queries:
            raise ValueError(
                f"observable {self.name!r}: {len(self.groups)} groups for {num_queries} query examples; give "
                "the group of every query example, in order"
            )
        return tuple(sorted({str(group) for group in self.groups}))


@dataclass(frozen=True)
class MetricValue:
    """The value of a torchmetrics metric over the whole query set, such as its accuracy.

    Args:
        name: name in dumps and plots.
        metric: the metric; each measurement uses a copy.
        function: (module, batch) -> the arguments of the metric's method `update`.
        unit: unit of the value.

    >>> from torchmetrics.classification import MulticlassAccuracy
    >>> accuracy = MulticlassAccuracy(num_classes=2, average="micro")
    >>> observable = MetricValue("accuracy", accuracy, lambda module, batch: (module(batch[0]), batch[1]))
    >>> batch = torch.eye(2), torch.tensor([0, 0])
    >>> observable.measure(nn.Identity(), [(batch, 2)], torch.zeros(2))
    tensor([0.5000])
    """

    name: str
    metric: Metric
    function: Callable[[nn.Module, Batch], tuple[Any, ...]]
    unit: str = "1"

    def columns(self, num_queries: int) -> tuple[str, ...] | None:
        """One column, named after the metric's class."""
        return (type(self.metric).__name__,)

    def measure(self, module: nn.Module, batches: Batches, losses: QueryLosses) -> Columns:
        """Value of the metric over all batches."""
        metric = copy.deepcopy(self.metric).to(losses.device)
        metric.reset()
        for batch, _ in batches:
            metric.update(*self.function(module, batch))
        value = metric.compute()
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(
                f"observable {self.name!r}: {type(self.metric).__name__} computes {value!r}, not one number; "
                "choose an average, or wrap it in a metric with one value"
            )
        return value.reshape(1).to(losses.dtype)


def per_example(
    function: Callable[[nn.Module, Batch], Tensor], module: nn.Module, batches: Batches, name: str
) -> Float[Tensor, " example"]:
    """Values of a per-example function over a fixed set, tokens summed.

    Raises:
        ValueError: the function does not return one value, or one row of tokens, for each example.
    """
    own = batches.own if isinstance(batches, DividedBatches) else batches
    values = [checked_rows(function(module, batch), count, name) for batch, count in own]
    return torch.cat(batches.assembled(values) if isinstance(batches, DividedBatches) else values)


def mean_of(losses: Tensor) -> Tensor:
    """Mean over examples of their losses, [batch] or [batch, token] (tokens of an example summed)."""
    if not isinstance(losses, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        found = type(losses).__name__
        raise ValueError(f"loss_fn: {found} for a batch of examples; return one value for each example, [batch]")
    losses = plain_tensor(losses)
    return losses.sum(1).mean() if losses.dim() == 2 else losses.mean()


def checked_rows(values: Any, count: int, name: str) -> Float[Tensor, " example"]:
    """A value for each example of a batch, tokens summed, in float32 or float64.

    Raises:
        ValueError: there is not one value, or one row of tokens, for each example.
    """
    if not isinstance(values, Tensor) or values.dim() == 0 or values.shape[0] != count or values.dim() > 2:
        found = f"shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"{name}: {found} for a batch of {count} examples; return one value for each example, [batch] or "
            "[batch, token], for example torch.nn.functional.cross_entropy(logits, y, reduction='none')"
        )
    values = plain_tensor(values.detach())
    rows = values.sum(1) if values.dim() == 2 else values
    return rows if rows.dtype == torch.float64 else rows.float()
