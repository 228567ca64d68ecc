"""Which process does what, how they exchange results, and how they fail together.

Chains are independent, so where every rank holds the whole model (one device, DDP) each runs some of the chains:
chain c on rank c mod world size. Where the ranks hold one model in shards (FSDP2, tensor parallel) they walk every
chain together, in *lockstep*, and divide the examples of each batch among the data-parallel ones.

One rank is the case without communication, not a case of its own.
"""

import logging
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

_log = logging.getLogger(__name__)
_BEAT_SECONDS = 1.0
_WORD_SECONDS = 60.0
_PATIENCE = 1800.0
_LOCKSTEP_PATIENCE = 60.0


class OfChain(Protocol):
    """What a chain left behind."""

    @property
    def chain(self) -> int: ...


T = TypeVar("T")
Left = TypeVar("Left", bound=OfChain)


class PeerFailedError(RuntimeError):
    """Another rank failed, so this one gives up the same work.

    Attributes:
        kinds: names of the types of their errors.
    """

    def __init__(self, message: str, kinds: frozenset[str] = frozenset()) -> None:
        super().__init__(message)
        self.kinds = kinds


class OutOfStepError(RuntimeError):
    """The ranks no longer do the same: nothing that needs all of them, such as training, can go on."""


@dataclass(frozen=True)
class Split:
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
class Placement:
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

    def gather(self, outcomes: Sequence[Left]) -> list[Left]:
        """The outcomes of all ranks, by chain, the same on every rank. Collective.

        Whole outcomes travel, not sums: adding floats across ranks would depend on their number.
        """
        everyone: list[Sequence[Left]] = [outcomes] if self.lockstep else self.everywhere(outcomes)
        return sorted((outcome for part in everyone for outcome in part), key=lambda outcome: outcome.chain)

    def everywhere(self, value: T) -> list[T]:
        """The values of all ranks, in their order. Collective."""
        if self.world_size == 1:
            return [value]
        everyone: list[T | None] = [None] * self.world_size
        dist.all_gather_object(everyone, value)
        return cast(list[T], everyone)

    def to_first(self, value: T) -> list[T] | None:
        """The values of all ranks, in their order, on rank 0; None elsewhere. Collective."""
        if self.world_size == 1:
            return [value]
        room: list[T | None] = [None] * self.world_size
        everyone = room if self.rank == 0 else None
        dist.gather_object(value, everyone, dst=0)
        return cast("list[T] | None", everyone)

    def from_first(self, value: T) -> T:
        """Rank 0's value. Collective."""
        if self.world_size == 1:
            return value
        held: list[T | None] = [value if self.rank == 0 else None]
        dist.broadcast_object_list(held, src=0)
        return cast(T, held[0])

    @contextmanager
    def together(self, what: str) -> Generator["Meeting"]:
        """Work that all ranks do, or none: at its end they learn of each other's errors. Collective.

        They talk through the store of the process group and not by collectives, so that a rank whose work ends early
        by an error can tell those that are still at theirs.

        Raises:
            PeerFailedError: another rank failed, and this one did not.
            OutOfStepError: a rank did not come to the end within `patience` seconds without progress.
        """
        meeting = Meeting(self, what)
        try:
            yield meeting
        except BaseException as error:
            meeting.fail(error)
            raise
        meeting.end()


class Meeting:
    """One piece of common work: heartbeats, news of failures, and the end."""

    def __init__(self, placement: Placement, what: str) -> None:
        self.placement, self.what = placement, what
        self._beaten = 0.0
        self._store: Any = None if placement.world_size == 1 else dist.distributed_c10d._get_default_store()
        # Counted in the store, which is new where the process group is: all ranks number their meetings alike.
        self._number = 0 if self._store is None else self._store.add(f"bif/meetings/{placement.rank}", 1)

    def beat(self, progress: str) -> None:
        """Say that this rank is alive, about once a second, and listen whether another one failed.

        Raises:
            PeerFailedError: one did.
        """
        now = time.monotonic()
        if self._store is None or now - self._beaten < _BEAT_SECONDS:
            return
        self._beaten = now
        self._store.set(self._key("beat", self.placement.rank), progress)
        # In lockstep all must leave at the same point, so that news waits for the end.
        if not self.placement.lockstep and self._store.check([self._key("failed")]):
            raise self._peers_failed(self._failures(self._others()))

    def fail(self, error: BaseException) -> None:
        """Tell the others; wait for them, unless the process is to end at once.

        Raises:
            OutOfStepError: from `error`, if the others do not come.
        """
        if self._store is None:
            return
        first = str(error).strip().splitlines()[:1]
        report = f"{type(error).__name__}\n{first[0] if first else ''}"
        self._store.set(self._key("end", self.placement.rank), report)
        if not isinstance(error, PeerFailedError):
            self._store.set(self._key("failed"), b"1")
        if isinstance(error, Exception):
            self._wait(error)

    def end(self) -> None:
        """This rank is done; raise if another one failed."""
        if self._store is None:
            return
        self._store.set(self._key("end", self.placement.rank), b"\n")
        self._wait(None)
        if failures := self._failures(self._others()):
            raise self._peers_failed(failures)

    def _wait(self, error: BaseException | None) -> None:
        """Until every rank has ended, as long as the others make progress."""
        missing, seen, pause = self._others(), dict[int, bytes](), 0.001
        # In lockstep a rank that fails alone leaves the others in a collective, which only its end gets them out of.
        alone = error is not None and self.placement.lockstep
        patience = min(self.placement.patience, _LOCKSTEP_PATIENCE) if alone else self.placement.patience
        changed = said = time.monotonic()
        while missing := [rank for rank in missing if not self._store.check([self._key("end", rank)])]:
            time.sleep(pause)
            pause, now = min(pause * 1.5, 0.1), time.monotonic()
            beats = {rank: self._beat_of(rank) for rank in missing}
            if beats != seen:
                seen, changed = beats, now
            if now - said > _WORD_SECONDS:
                said = now
                _log.info("rank %d waits for %s", self.placement.rank, self._stand(beats))
            if now - changed > patience:
                raise OutOfStepError(
                    f"{self.what}: no progress for {patience:.0f} s of {self._stand(beats)}. They "
                    "hang, or lost their process; look at their logs. Training cannot go on without them"
                ) from error

    def _others(self) -> list[int]:
        return [rank for rank in range(self.placement.world_size) if rank != self.placement.rank]

    def _beat_of(self, rank: int) -> bytes:
        key = self._key("beat", rank)
        return self._store.get(key) if self._store.check([key]) else b""

    def _stand(self, beats: dict[int, bytes]) -> str:
        return ", ".join(f"rank {rank} ({beat.decode() or 'not heard of'})" for rank, beat in beats.items())

    def _failures(self, ranks: Sequence[int]) -> dict[int, tuple[str, str]]:
        found = dict[int, tuple[str, str]]()
        for rank in ranks:
            key = self._key("end", rank)
            if self._store.check([key]):
                kind, _, message = self._store.get(key).decode().partition("\n")
                if kind:
                    found[rank] = kind, message
        return found

    def _peers_failed(self, failures: dict[int, tuple[str, str]]) -> PeerFailedError:
        own = {rank: report for rank, report in failures.items() if report[0] != PeerFailedError.__name__} or failures
        said = "; ".join(f"rank {rank}: {kind}: {message}" for rank, (kind, message) in own.items())
        return PeerFailedError(f"{self.what}: {said}", frozenset(kind for kind, _ in own.values()))

    def _key(self, *parts: object) -> str:
        return "/".join(("bif", str(self._number), *map(str, parts)))


def current_placement(*, lockstep: bool = False) -> Placement:
    """Of the default process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        return Placement(dist.get_rank(), dist.get_world_size(), lockstep, _time_out())
    return Placement()


def _time_out() -> float:
    """Seconds that collectives of the default process group wait, as whoever made it wanted."""
    group = dist.distributed_c10d._get_default_group()
    options = group._get_backend(group._device_types[0]).options
    return options._timeout.total_seconds()
