"""Snapshots taken from saved weights, where a fit would begin: which are due, who does them, what became of them."""

import json
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_warn

from bif_lightning.archive.index import dump_paths, read_index
from bif_lightning.archive.schema import dump_name
from bif_lightning.claims import Claims
from bif_lightning.config import SGLD, Pairs
from bif_lightning.forecast import Forecast
from bif_lightning.placement import Placement
from bif_lightning.settled import Settled
from bif_lightning.stage import placement_of
from bif_lightning.trainer.adapter import Request
from bif_lightning.trainer.checkpoints import Saved, find_checkpoints, in_order, load_weights, look_at
from bif_lightning.trainer.exchange import ChainExchange
from bif_lightning.trainer.failures import is_fatal
from bif_lightning.trainer.opening import Wanted, check_same, open_session
from bif_lightning.trainer.outputs import check_unused
from bif_lightning.trainer.session import Session, say
from bif_lightning.trainer.snapshots import Left, has_ended, left_by

_POLL_SECONDS = 1.0
_CLAIMS, _CHAINS = "claims", "chains"


@dataclass(frozen=True)
class Attributed:
    """What became of the checkpoints.

    Attributes:
        directory: of the dumps; `open_run` reads them.
        written: steps whose dumps were written now.
        present: steps whose dumps others wrote, or were there already.
        failed: why a checkpoint has no dump, by its path.
        expected: what each was forecast to take.
    """

    directory: Path
    written: tuple[int, ...] = ()
    present: tuple[int, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict[str, str])
    expected: Forecast | None = None

    def __str__(self) -> str:
        """What was done, a line each."""
        lines = [f"{len(self.written)} dumps written, {len(self.present)} were there already: {self.directory}"]
        if self.expected is not None:
            lines.append(f"A checkpoint takes {self.expected}")
        lines += [f"No dump of {path}: {why}" for path, why in self.failed.items()]
        return "\n".join(lines)


@dataclass
class Source:
    """Where saved weights come from.

    Args:
        paths: checkpoints, and folders of them.
        ends: a folder in which the end of a training run is told; None where all are there from the start.
        idle: seconds without anything to do after which no more are waited for.
    """

    paths: Sequence[str | Path]
    ends: Path | None = None
    idle: float | None = None
    failed: dict[str, str] = field(default_factory=dict[str, str])
    _known: dict[Path, Saved] = field(default_factory=dict[Path, Saved])

    def look(self) -> tuple[list[Saved], bool]:
        """All that are there, in the order of their steps, and whether more may come.

        Raises:
            ValueError: two of one step.
        """
        over = self.ends is None or has_ended(self.ends)  # asked first: the last snapshot comes before the end
        try:
            paths = find_checkpoints(self.paths)
        except FileNotFoundError:
            if self.ends is None:
                raise
            paths = []
        self._known = {path: saved for path, saved in self._known.items() if path in paths}
        for path in paths:
            if path not in self._known and str(path) not in self.failed:
                self._look_at(path)
        return in_order(self._known.values()), not over

    def _look_at(self, path: Path) -> None:
        try:
            self._known[path] = look_at(path)
        except (ValueError, OSError) as error:
            self.fail(path, error)

    def fail(self, path: Path, error: Exception) -> None:
        """Keep why a checkpoint has no dump; it is not tried again."""
        self.failed[str(path)] = str(error)
        rank_zero_warn(f"no dump of {path}: {error}")


class Replay:
    """The snapshots of one call.

    Args:
        request, wanted: what to attribute, and how; as of the callback.
        directory: of the dumps.
        source: of the weights.
        dry_run: forecast only.
    """

    def __init__(self, request: Request, wanted: Wanted, directory: Path, source: Source, *, dry_run: bool) -> None:
        self.request, self.wanted, self.directory, self.source = request, wanted, directory, source
        self.dry_run = dry_run
        self.claims = Claims(directory / _CLAIMS)
        self.seen, self.written = set[int](), list[int]()
        self.expected: Forecast | None = None
        self._session: Session | None = None
        self._spent = 0.0

    def result(self) -> Attributed:
        """What became of the checkpoints."""
        there = sorted(step for step in self.seen if self._has_dump(step) and step not in self.written)
        return Attributed(self.directory, tuple(self.written), tuple(there), self.source.failed, self.expected)

    def run(self, trainer: Any, module: Any) -> None:
        """Attribute whatever has no dump yet, until no more can come. Collective.

        Raises:
            ValueError: none of the checkpoints can be read, or the folder is of other data or settings.
        """
        placement, quiet_since, waiting = placement_of(module), time.monotonic(), False
        with placement.together("looking at the folder"):
            self._check_folder()
        while True:
            due, more = placement.from_first(self._due() if placement.rank == 0 else ([], False))
            if not due and not more:
                return
            done = sum(self._attempt(trainer, module, placement, saved, len(due)) for saved in due)
            if self.dry_run and self._session is not None:
                return
            if done:
                quiet_since, waiting = time.monotonic(), False
                continue
            if not waiting:
                say(trainer, f"BIF: waiting for {'others' if due else 'snapshots'} in {self.directory}; Ctrl-C stops")
            waiting, idle = True, time.monotonic() - quiet_since
            if placement.from_first(self.source.idle is not None and idle > self.source.idle):
                return
            time.sleep(_POLL_SECONDS)

    def _check_folder(self) -> None:
        """Whatever is due: a folder of another run, or of other settings, is not to be mixed with."""
        left = left_by(self.directory)
        if left is None:
            check_unused(self.directory)
        else:
            check_same("settings", left.settings, _plain(self.wanted.settings))

    def _due(self) -> tuple[list[Saved], bool]:
        saved, more = self.source.look()
        if not saved and not more and not self.seen:
            failed = self.source.failed
            raise ValueError(f"none of {len(failed)} checkpoints can be read; the first: {next(iter(failed.values()))}")
        self.seen |= {each.step for each in saved}
        failed = self.source.failed
        due = [each for each in saved if str(each.path) not in failed and not self._has_dump(each.step)]
        # Where "auto" has settled nothing yet, the first snapshot comes alone: it settles it for all.
        unsettled = self.wanted.sampler in (None, "auto") and not self._dumps()
        return due[:1] if unsettled else due, more or (unsettled and len(due) > 1)

    def _dumps(self) -> list[Path]:
        return dump_paths(self.directory) if self.directory.is_dir() else []

    def _has_dump(self, step: int) -> bool:
        return (self.directory / dump_name(step)).is_file()

    def _attempt(self, trainer: Any, module: Any, placement: Placement, saved: Saved, due: int) -> bool:
        """Whether something was done for this checkpoint here, if only to find that it fails. Collective."""
        with self._claimed(placement, saved) as mine:
            if not mine:
                return self._help(trainer, module, placement, saved)
            started = time.monotonic()
            try:
                self._load(module, saved)
                session = self._opened(trainer, module)
                if self.dry_run:
                    return True
                left = f", about {self._spent / len(self.written) * due:.0f} s left" if self.written else ""
                say(trainer, f"BIF {saved.path.name}: {due} to do{left}")
                exchange = self._exchange(saved, finishes=True) if self._shares(placement, session) else None
                session.snapshot(trainer, module, saved.moment, exchange)
            except (MisconfigurationException, _RefusedError):
                raise
            except (ValueError, OSError, RuntimeError) as error:
                if is_fatal(error):
                    raise
                self.source.fail(saved.path, error)
            else:
                self.written.append(saved.step)
                self._spent += time.monotonic() - started
                if exchange is not None:
                    exchange.clear()
            return True

    def _help(self, trainer: Any, module: Any, placement: Placement, saved: Saved) -> bool:
        """Run chains of a snapshot that another worker finishes; whether there were any."""
        unsettled = self.wanted.sampler in (None, "auto") and not self._dumps()
        if placement.world_size > 1 or unsettled or self._has_dump(saved.step):
            return False
        exchange = self._exchange(saved, finishes=False)
        try:
            self._load(module, saved)
            session = self._opened(trainer, module)
            if self._shares(placement, session):
                session.snapshot(trainer, module, saved.moment, exchange)
        except (MisconfigurationException, _RefusedError):
            raise
        except (ValueError, OSError):  # whoever finishes it meets the same, and says so
            return False
        return exchange.ran > 0

    def _exchange(self, saved: Saved, *, finishes: bool) -> ChainExchange:
        return ChainExchange(self.directory / _CHAINS / f"step={saved.step:09d}", self.claims, finishes)

    def _shares(self, placement: Placement, session: Session) -> bool:
        """Whether single chains are worth dividing: where they are what takes the time. Tokens stay where they were."""
        chains = session.sampler == "auto" or isinstance(session.sampler, SGLD | Pairs)
        return placement.world_size == 1 and chains and not self.request.per_token

    @contextmanager
    def _claimed(self, placement: Placement, saved: Saved) -> Generator[bool]:
        """Rank 0 claims for all of this worker's ranks."""
        if placement.rank or self.dry_run:
            yield placement.from_first(True)
            return
        with self.claims.claimed(dump_name(saved.step)) as mine:
            yield placement.from_first(mine and not self._has_dump(saved.step))

    def _load(self, module: Any, saved: Saved) -> None:
        with placement_of(module).together(f"loading {saved.path.name}"):
            load_weights(module, saved.path)

    def _opened(self, trainer: Any, module: Any) -> Session:
        """The session, made at the first weights: losses are proved at weights that they were trained at."""
        if self._session is None:
            left = left_by(self.directory)
            try:
                self._session = open_session(
                    trainer,
                    module,
                    self.request,
                    self.wanted,
                    None if self.dry_run else self.directory,
                    fresh=left is None,
                    data={} if left is None else left.data,
                    settled=self._settled(),
                )
                self.expected = self._session.announce(trainer, module)
            except (ValueError, TypeError, OSError) as error:
                raise _RefusedError(str(error)) from error
            if left is None and not self.dry_run and placement_of(module).rank == 0:
                Left(self.wanted.settings, self._session.outputs.fingerprints).write(self.directory)
        return self._session

    def _settled(self) -> Settled | None:
        """What the run settled on, as its dumps have it; only "auto" finds what it was not given, and is SGLD."""
        dumps = self._dumps() if self.wanted.sampler in (None, "auto") else []
        if not dumps:
            return None
        settings = json.loads(read_index(dumps[0]).settings)
        sampler = dict(settings["sampler"])
        kind = sampler.pop("kind")
        if kind != SGLD.__name__:
            return None
        return Settled.from_dict({"kind": kind, "sampler": sampler, "chains": settings["chains"], "reasons": ""})


class _RefusedError(ValueError):
    """The arguments cannot work at any checkpoint."""


def _plain(values: Any) -> Any:
    return json.loads(json.dumps(values, default=str))
