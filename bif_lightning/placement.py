"""Which rank runs which chain, and the ordered gather. The only place that imports torch.distributed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch.distributed as dist

from bif_lightning.recorder import Record
from bif_lightning.result import Divergence

T = TypeVar("T", bound=Record | Divergence)


@dataclass(frozen=True)
class Placement:
    """One process among `world_size`; chain c runs on rank c mod world_size.

    One rank is the case without communication, not a case of its own.
    """

    rank: int = 0
    world_size: int = 1

    def mine(self, num_chains: int) -> list[int]:
        """Chains of this rank, ascending."""
        return list(range(self.rank, num_chains, self.world_size))

    def gather(self, outcomes: Sequence[T]) -> list[T]:
        """The outcomes of all ranks, by chain, the same on every rank. Collective.

        Whole outcomes travel, not sums: adding floats across ranks would depend on their number.
        """
        everyone: list[list[T] | None] = [list(outcomes)]
        if self.world_size > 1:
            everyone = [None] * self.world_size
            dist.all_gather_object(everyone, list(outcomes))
        gathered = [outcome for part in cast(list[list[T]], everyone) for outcome in part]
        return sorted(gathered, key=lambda outcome: outcome.chain)


def current_placement() -> Placement:
    """Of the default process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        return Placement(dist.get_rank(), dist.get_world_size())
    return Placement()
