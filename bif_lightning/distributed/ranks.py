"""Division of chains and batches over ranks, and the exchange of results.

Chains are independent. Where every rank holds the whole model (one device, DDP), each runs some of the chains: chain c
on rank c mod world size. Where the ranks hold one model in shards (FSDP2, tensor parallel), they run every chain
together, in *lockstep*, and the data-parallel ranks divide the examples of each batch.

A single rank runs the same code without communication.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from bif_lightning.distributed.watchdog import CollectiveSection

_PATIENCE = 1800.0


class OfChain(Protocol):
    """The outcome of a chain."""

    @property
    def chain(self) -> int: ...


T = TypeVar("T")
ChainOutcome = TypeVar("ChainOutcome", bound=OfChain)


@dataclass(frozen=True)
class BatchShard:
    """The examples of one batch divided over the data-parallel ranks of a model in shards.

    Attributes:
        part, parts: number of this rank's share, and of all shares.
        group: process group of the ranks with the other shares; None for the default one.
    """

    part: int = 0
    parts: int = 1
    group: Any = None

    def rows(self, indices: Tensor) -> tuple[Tensor, float]:
        """This rank's examples, and the weight w with which its mean loss enters: mean = (1/parts)·Σ w·mean_part.

        Every rank gets at least one example, with weight 0 if it has none, since all must make the same passes.
        """
        if self.parts == 1:
            return indices, 1.0
        own = indices[self.part :: self.parts]
        return (own if len(own) else indices[:1]), self.parts * len(own) / len(indices)

    def gathered(self, values: Tensor) -> list[Tensor]:
        """Values of all parts, in order; all must have the same shape. Collective."""
        if self.parts == 1:
            return [values]
        everyone = [torch.empty_like(values) for _ in range(self.parts)]
        dist.all_gather(everyone, values.contiguous(), group=self.group)
        return everyone


@dataclass(frozen=True)
class Ranks:
    """One process among `world_size`.

    Attributes:
        lockstep: the ranks hold one model in shards and run every chain together.
        patience: seconds that ranks wait for one without progress: the time-out of the process group.
    """

    rank: int = 0
    world_size: int = 1
    lockstep: bool = False
    patience: float = field(default=_PATIENCE, compare=False)

    def mine(self, num_chains: int) -> list[int]:
        """Chains of this rank, ascending."""
        return list(range(num_chains)) if self.lockstep else list(range(self.rank, num_chains, self.world_size))

    def gather_chains(self, outcomes: Sequence[ChainOutcome]) -> list[ChainOutcome]:
        """The outcomes of all ranks, by chain, the same on every rank. Collective.

        It sends outcomes instead of sums, since a sum of floats over ranks would depend on their number.
        """
        everyone: list[Sequence[ChainOutcome]] = [outcomes] if self.lockstep else self.all_gather(outcomes)
        return sorted((outcome for part in everyone for outcome in part), key=lambda outcome: outcome.chain)

    def all_gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order. Collective."""
        if self.world_size == 1:
            return [value]
        everyone: list[T | None] = [None] * self.world_size
        dist.all_gather_object(everyone, value)
        return cast(list[T], everyone)

    def gather(self, value: T) -> list[T] | None:
        """The values of all ranks, in their order, on rank 0; None elsewhere. Collective."""
        if self.world_size == 1:
            return [value]
        room: list[T | None] = [None] * self.world_size
        everyone = room if self.rank == 0 else None
        dist.gather_object(value, everyone, dst=0)
        return cast("list[T] | None", everyone)

    def broadcast(self, value: T) -> T:
        """Rank 0's value. Collective."""
        if self.world_size == 1:
            return value
        held: list[T | None] = [value if self.rank == 0 else None]
        dist.broadcast_object_list(held, src=0)
        return cast(T, held[0])

    @contextmanager
    def collective(self, what: str) -> Generator[CollectiveSection]:
        """Work that succeeds on all ranks or fails on all: at its end they exchange their errors. Collective.

        It communicates through the store of the process group instead of by collectives, so that a rank that fails
        early can inform those that still work.

        Raises:
            PeerFailedError: another rank failed, and this one did not.
            OutOfStepError: a rank made no progress for `patience` seconds, or the process with the store ended.
        """
        section = CollectiveSection(what, self.rank, self.world_size, self.patience, lockstep=self.lockstep)
        try:
            yield section
        except BaseException as error:
            section.fail(error)
            raise
        section.end()


def current_ranks(*, lockstep: bool = False) -> Ranks:
    """The ranks of the default process group; a single rank without one."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size(), lockstep, _time_out())
    return Ranks()


def _time_out() -> float:
    """Time-out of collectives of the default process group, in seconds."""
    group = dist.distributed_c10d._get_default_group()
    # Backends beside gloo, NCCL and XCCL have no options.
    options = getattr(group._get_backend(group._device_types[0]), "options", None)
    return _PATIENCE if options is None else options._timeout.total_seconds()
