"""Draws kept as traces, or folded into moments as they come: one interface, the same numbers up to rounding."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.config import Chains
from bif_lightning.statistics.batches import batch_lengths as batch_lengths
from bif_lightning.statistics.draws import from_draws
from bif_lightning.statistics.moments import Moments, stack

TRACE_BYTES = 1 << 26
"""Traces that are no larger than this are kept in any case: 64 MB."""


def keeps_traces(chains: Chains, train: int, columns: int, item: int = 4) -> bool:
    """Whether traces are kept: as asked for, or where they are small, or take no more memory than moments."""
    if chains.storage != "auto":
        return chains.storage == "traces"
    size = trace_bytes(chains, train, columns, item)
    return size <= TRACE_BYTES or size <= moment_bytes(chains, train, columns)


def trace_bytes(chains: Chains, train: int, columns: int, item: int = 4) -> int:
    """Memory of all traces: C·T·(n + p) numbers of `item` bytes."""
    return item * chains.num_chains * chains.num_draws * (train + columns)


def moment_bytes(chains: Chains, train: int, columns: int) -> int:
    """Memory of all co-moments: one n x p matrix of float64 for each batch of draws."""
    return 8 * chains.num_chains * len(batch_lengths(chains)) * train * columns


@dataclass
class ChainTrace:
    """What one chain left behind, draw by draw.

    Attributes:
        chain: its index.
        lengths: draws in each batch of consecutive draws.
        traces: whether every draw is kept.
        train, columns: the draws (all of them, or those of the batch under way).
        parts: moments of each finished batch, where traces are not kept.
        loss, distance: mean train loss and ‖w − w*‖ at each draw.
        coordinates: of the chain and of its surrogate at each draw, where there is one (`sampling.controlled`).
    """

    chain: int
    lengths: Sequence[int]
    traces: bool
    train: list[Tensor] = field(default_factory=list[Tensor])
    columns: list[Tensor] = field(default_factory=list[Tensor])
    parts: list[Moments] = field(default_factory=list[Moments])
    loss: list[float] = field(default_factory=list[float])
    distance: list[float] = field(default_factory=list[float])
    coordinates: list[Tensor] = field(default_factory=list[Tensor])

    def push(self, train: Float[Tensor, " train"], columns: Float[Tensor, " column"]) -> None:
        """Take in one draw."""
        self.train.append(train.cpu())
        self.columns.append(columns.cpu())
        if not self.traces and len(self.train) == self.lengths[len(self.parts)]:
            self.parts.append(from_draws(torch.stack(self.train), torch.stack(self.columns)))
            self.train.clear()
            self.columns.clear()

    def seal(self) -> None:
        """All draws are in: lay the traces out as one block each."""
        if self.traces:
            self.train, self.columns = [torch.stack(self.train)], [torch.stack(self.columns)]

    def moments(self, rows: slice) -> Moments:
        """Moments [batch] of some rows of the train set against all columns."""
        if not self.traces:
            return stack([part.rows(rows) for part in self.parts])
        train = self.train[0][:, rows].split(list(self.lengths))
        columns = self.columns[0].split(list(self.lengths))
        return stack([from_draws(t, c) for t, c in zip(train, columns, strict=True)])
