"""What is measured at every draw: per-example losses, and any other observable of the query set."""

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric

from bif_lightning.data.dataset import Batch
from bif_lightning.distributed.ranks import BatchShard

LossFn = Callable[[nn.Module, Batch], Tensor | tuple[Tensor, Tensor]]
"""(module, batch) -> the loss of each example, [batch], or of each token, [batch, token], maybe with a mask of the same
shape that is False where a token has none. An example's loss is then the sum over its tokens."""

ExampleLoss = Callable[[nn.Module, Batch], Tensor]
"""The same as one tensor, absent tokens 0."""

Batches = Sequence[tuple[Batch, int]]
"""Batches of a fixed set, in order, each with its number of examples."""


class DividedBatches(list[tuple[Batch, int]]):
    """Batches that data-parallel ranks of one model measure together: batch b on rank b mod their number.

    All make equally many passes, and all get all values. What does not know of the division, such as a metric, goes
    over every batch on every rank, which is as right.
    """

    def __init__(self, batches: Sequence[tuple[Batch, int]], split: BatchShard) -> None:
        super().__init__(batches)
        self.split = split
        self._rounds = -(-len(batches) // split.parts)

    @property
    def own(self) -> list[tuple[Batch, int]]:
        """This rank's batches; one again where it has one less than others."""
        mine = [self.split.part + r * self.split.parts for r in range(self._rounds)]
        return [self[min(index, len(self) - 1)] for index in mine]

    def assembled(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The values [example, ...] of all batches, in order, from those of `own` on every rank. Collective.

        Of one shape, but for the number of examples.
        """
        size = max(count for _, count in self)
        lacking = [value.new_zeros(size - len(value), *value.shape[1:]) for value in values]
        parts = self.split.gathered(torch.stack([torch.cat(pair) for pair in zip(values, lacking, strict=True)]))
        return [parts[b % self.split.parts][b // self.split.parts, :count] for b, (_, count) in enumerate(self)]


# Named once: every subscript makes a new type, and who compares signatures (as LightningCLI does) sees another one.
QueryLosses = Float[Tensor, " query"]
Columns = Float[Tensor, " column"]


class Observable(Protocol):
    """A quantity phi of the query set, measured at every draw beside the losses."""

    @property
    def name(self) -> str:
        """Its name in dumps and plots: a word, no dots or slashes."""
        ...

    @property
    def unit(self) -> str:
        """Its unit, "1" for a pure number."""
        ...

    def columns(self, num_queries: int) -> tuple[str, ...] | None:
        """A name for each of its values, or None where it has one for each query example.

        Raises:
            ValueError: it does not fit a query set of this size.
        """
        ...

    def measure(self, module: nn.Module, batches: Batches, losses: QueryLosses) -> Columns:
        """Its values at the module's present weights; `losses` are those of the query examples there."""
        ...


@dataclass(frozen=True)
class PerExample:
    """An observable with one value for each query example, such as a logit difference.

    Args:
        name: in dumps and plots.
        function: (module, batch) -> Tensor[batch].
        unit: of the values.
    """

    name: str
    function: Callable[[nn.Module, Batch], Tensor]
    unit: str = "1"

    def columns(self, num_queries: int) -> tuple[str, ...] | None:
        """None: one value for each query example."""
        return

    def measure(self, module: nn.Module, batches: Batches, losses: QueryLosses) -> Columns:
        """One value for each query example."""
        return per_example(self.function, module, batches, self.name)


@dataclass(frozen=True)
class GroupMean:
    """Mean over groups of query examples, of their losses or of any per-example function.

    Args:
        name: in dumps and plots.
        groups: the group of each query example, in order; a column for each, sorted by its text.
        function: (module, batch) -> Tensor[batch]; None for the loss.
        unit: of the values.
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
        name: in dumps and plots.
        metric: its state is never touched; each measurement works on a copy.
        function: (module, batch) -> the arguments of `metric.update`.
        unit: of the value.
    """

    name: str
    metric: Metric
    function: Callable[[nn.Module, Batch], tuple[Any, ...]]
    unit: str = "1"

    def columns(self, num_queries: int) -> tuple[str, ...] | None:
        """One column, of the metric's own name."""
        return (type(self.metric).__name__,)

    def measure(self, module: nn.Module, batches: Batches, losses: QueryLosses) -> Columns:
        """The metric over all batches."""
        metric = copy.deepcopy(self.metric)
        metric.reset()
        for batch, _ in batches:
            metric.update(*self.function(module, batch))
        value = metric.compute()
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(
                f"observable {self.name!r}: {type(self.metric).__name__} computes {value!r}, not one number; "
                "choose an average, or wrap it in a metric of one value"
            )
        return value.reshape(1).to(losses.dtype)


def per_example(
    function: Callable[[nn.Module, Batch], Tensor], module: nn.Module, batches: Batches, name: str
) -> Float[Tensor, " example"]:
    """Values of a per-example function over a fixed set, tokens summed.

    Raises:
        ValueError: it does not return one value, or one row of tokens, for each example.
    """
    own = batches.own if isinstance(batches, DividedBatches) else batches
    values = [checked_rows(function(module, batch), count, name) for batch, count in own]
    return torch.cat(batches.assembled(values) if isinstance(batches, DividedBatches) else values)


def mean_of(losses: Tensor) -> Tensor:
    """Mean over examples of their losses, [batch] or [batch, token] (an example's is the sum of its tokens')."""
    if not isinstance(losses, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        found = type(losses).__name__
        raise ValueError(f"loss_fn: {found} for a batch of examples; return one value for each example, [batch]")
    return losses.sum(1).mean() if losses.dim() == 2 else losses.mean()


def checked_rows(values: Any, count: int, name: str) -> Float[Tensor, " example"]:
    """A value for each example of a batch, tokens summed, in float32 or float64.

    Raises:
        ValueError: it is not one value, or one row of tokens, for each of them.
    """
    if not isinstance(values, Tensor) or values.dim() == 0 or values.shape[0] != count or values.dim() > 2:
        found = f"shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"{name}: {found} for a batch of {count} examples; return one value for each example, [batch] or "
            "[batch, token], for example torch.nn.functional.cross_entropy(logits, y, reduction='none')"
        )
    values = values.detach()
    rows = values.sum(1) if values.dim() == 2 else values
    return rows if rows.dtype == torch.float64 else rows.float()
