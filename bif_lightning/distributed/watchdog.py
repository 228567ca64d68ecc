"""Sections of work in which ranks exchange heartbeats and errors, and end together."""

import logging
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from bif_lightning.distributed.threads import Progress
from bif_lightning.exceptions import OutOfStepError, PeerFailedError

_log = logging.getLogger(__name__)
_BEAT_SECONDS = 1.0
_WORD_SECONDS = 60.0
_LOCKSTEP_PATIENCE = 60.0
_FAREWELL_SECONDS = 10.0


class CollectiveSection:
    """One section of work of all ranks.

    Args:
        what: description, for messages.
        rank, world_size, patience, lockstep: see `ranks.Ranks`.
    """

    def __init__(self, what: str, rank: int, world_size: int, patience: float, *, lockstep: bool) -> None:
        self.what, self.rank, self.world_size = what, rank, world_size
        self.patience, self.lockstep = patience, lockstep
        self._beaten = 0.0
        self._store: Any = None if world_size == 1 else dist.distributed_c10d._get_default_store()
        # Counted in the store, which is new with each process group, so that all ranks number their sections alike.
        with self._reaching_store():
            self._number = 0 if self._store is None else self._store.add(f"bif/meetings/{rank}", 1)

    def beat(self, progress: str) -> None:
        """Send a heartbeat, at most once a second, and check whether another rank failed.

        Raises:
            PeerFailedError: one did.
            OutOfStepError: the process that holds the store has ended.
        """
        now = time.monotonic()
        if self._store is None or now - self._beaten < _BEAT_SECONDS:
            return
        self._beaten = now
        with self._reaching_store():
            self._store.set(self._key("beat", self.rank), progress)
            # In lockstep all ranks must leave at the same point, so that errors wait for the end.
            if not self.lockstep and self._store.check([self._key("failed")]):
                raise self._peers_failed(self._failures(self._others()))

    def watched(self, progress: Progress | None) -> Progress:
        """The same progress function, which also sends a heartbeat at every step."""

        def show(done: int, total: int) -> None:
            self.beat(f"step {done} of {total}")
            if progress is not None:
                progress(done, total)

        return show

    def fail(self, error: BaseException) -> None:
        """Report an error to the others, and wait for them unless the process ends at once.

        Raises:
            OutOfStepError: from `error`, if the others do not finish.
        """
        if self._store is None:
            return
        first = str(error).strip().splitlines()[:1]
        report = f"{type(error).__name__}\n{first[0] if first else ''}"
        try:
            self._store.set(self._key("end", self.rank), report)
            if not isinstance(error, PeerFailedError):
                self._store.set(self._key("failed"), b"1")
            if isinstance(error, Exception):
                self._wait(error)
            if isinstance(error, Exception) or self.rank:
                self._farewell()
        except dist.DistError:
            # The store has gone, and `error` says more than that.
            _log.warning("%s: rank %d cannot report its error to the others", self.what, self.rank)

    def end(self) -> None:
        """Report that this rank is done, and raise if another one failed."""
        if self._store is None:
            return
        with self._reaching_store():
            self._store.set(self._key("end", self.rank), b"\n")
            self._wait(None)
            failures = self._failures(self._others())
            self._farewell()
        if failures:
            raise self._peers_failed(failures)

    @contextmanager
    def _reaching_store(self) -> Generator[None]:
        try:
            yield
        except dist.DistError as error:
            raise OutOfStepError(
                f"{self.what}: the store of the process group, which lives in rank 0 or its launcher, is out of reach "
                f"({error}). That process has ended; look at its log. Training cannot go on without it"
            ) from error

    def _farewell(self) -> None:
        """Keep rank 0 until all others have read its report, since the store may end with it."""
        if self.rank:
            self._store.set(self._key("left", self.rank), b"1")
            return
        ends, others = time.monotonic() + _FAREWELL_SECONDS, [self._key("left", rank) for rank in self._others()]
        while not self._store.check(others) and time.monotonic() < ends:
            time.sleep(0.001)

    def _wait(self, error: BaseException | None) -> None:
        """Wait until every rank has finished, as long as the others make progress."""
        missing, seen, pause = self._others(), dict[int, bytes](), 0.001
        # In lockstep a rank that fails alone leaves the others in a collective, until its process ends.
        alone = error is not None and self.lockstep
        patience = min(self.patience, _LOCKSTEP_PATIENCE) if alone else self.patience
        changed = said = time.monotonic()
        while missing := [rank for rank in missing if not self._store.check([self._key("end", rank)])]:
            time.sleep(pause)
            pause, now = min(pause * 1.5, 0.1), time.monotonic()
            beats = {rank: self._beat_of(rank) for rank in missing}
            if beats != seen:
                seen, changed = beats, now
            if now - said > _WORD_SECONDS:
                said = now
                _log.info("rank %d waits for %s", self.rank, self._stand(beats))
            if now - changed > patience:
                raise OutOfStepError(
                    f"{self.what}: no progress for {patience:.0f} s of {self._stand(beats)}. They "
                    "hang, or lost their process; look at their logs. Training cannot go on without them"
                ) from error

    def _others(self) -> list[int]:
        return [rank for rank in range(self.world_size) if rank != self.rank]

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
