"""Which process does what, and how they exchange results.

Chains are independent, so where every rank holds the whole model (one device, DDP) each runs some of the chains:
chain c on rank c mod world size. Where the ranks hold one model in shards (FSDP2, tensor parallel) they walk every
chain together, in *lockstep*, and divide the examples of each batch among the data-parallel ones.

One rank is the case without communication, not a case of its own.
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
    """What a chain left behind."""

    @property
    def chain(self) -> int: ...


T = TypeVar("T")
ChainOutcome = TypeVar("ChainOutcome", bound=OfChain)


@dataclass(frozen=True)
class BatchShard:
    """The examples of one batch divided over the data-parallel ranks of a model in shards.

    Attributes:
        part, parts: this rank's share and how many there are.
        group: of the ranks with the other shares; None for the default one.
    """

    part: int = 0
    parts: int = 1
    group: Any = None

    def rows(self, indices: Tensor) -> tuple[Tensor, float]:
        """This rank's examples, and the weight w with which its mean loss enters: mean = (1/parts)·Σ w·mean_part.

        Every rank gets at least one example, since all must make the same passes: with weight 0 if it has none.
        """
        if self.parts == 1:
            return indices, 1.0
        own = indices[self.part :: self.parts]
        return (own if len(own) else indices[:1]), self.parts * len(own) / len(indices)

    def gathered(self, values: Tensor) -> list[Tensor]:
        """The values of every part, in order; all of one shape. Collective."""
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
        patience: seconds that ranks wait for one that shows no progress: the time-out of the process group.
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

        Whole outcomes travel, not sums: adding floats across ranks would depend on their number.
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
        """Work that all ranks do, or none: at its end they learn of each other's errors. Collective.

        They talk through the store of the process group and not by collectives, so that a rank whose work ends early
        by an error can tell those that are still at theirs.

        Raises:
            PeerFailedError: another rank failed, and this one did not.
            OutOfStepError: a rank did not come to the end within `patience` seconds without progress, or the process
                that holds the store ended.
        """
        meeting = CollectiveSection(what, self.rank, self.world_size, self.patience, lockstep=self.lockstep)
        try:
            yield meeting
        except BaseException as error:
            meeting.fail(error)
            raise
        meeting.end()


def current_ranks(*, lockstep: bool = False) -> Ranks:
    """Of the default process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size(), lockstep, _time_out())
    return Ranks()


def _time_out() -> float:
    """Seconds that collectives of the default process group wait, as whoever made it wanted."""
    group = dist.distributed_c10d._get_default_group()
    options = group._get_backend(group._device_types[0]).options
    return options._timeout.total_seconds()
