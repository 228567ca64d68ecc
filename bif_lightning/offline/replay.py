"""Takes snapshots of saved weights at the start of a fit: which are due, which worker takes them, and the results."""

import json
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from bif_lightning.archive.read.index import dump_paths, read_index
from bif_lightning.archive.schema import dump_name
from bif_lightning.distributed.leases import Leases
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.estimation.forecast import Forecast
from bif_lightning.exceptions import PreemptedError
from bif_lightning.offline.checkpoint_source import CheckpointSource
from bif_lightning.results.settings import ResolvedSettings
from bif_lightning.sampling.context import ranks_of
from bif_lightning.trainer.checkpoints import Checkpoint, load_weights
from bif_lightning.trainer.failures import is_fatal, is_full, is_preemption
from bif_lightning.trainer.interrupts import defer_interrupts
from bif_lightning.trainer.outputs import check_unused
from bif_lightning.trainer.problem import AttributionRequest
from bif_lightning.trainer.progress import OfflineProgress
from bif_lightning.trainer.session import Session, say
from bif_lightning.trainer.setup import SnapshotOptions, check_same, open_session
from bif_lightning.trainer.snapshot_files import RunManifest, left_by

_POLL_SECONDS = 1.0
_LEASES = "claims"


@dataclass(frozen=True)
class AttributionReport:
    """The outcome of each checkpoint.

    Attributes:
        directory: of the dumps; `open_run` reads them.
        written: steps whose dumps this call wrote.
        present: steps whose dumps existed or were written by other workers.
        failed: why a checkpoint has no dump, by its path.
        expected: what each was forecast to take.

    >>> from pathlib import Path
    >>> print(AttributionReport(Path("bif"), written=(100, 200), failed={"step=300.ckpt": "it is damaged"}))
    2 dumps written, 0 were there already: bif
    No dump of step=300.ckpt: it is damaged
    """

    directory: Path
    written: tuple[int, ...] = ()
    present: tuple[int, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict[str, str])
    expected: Forecast | None = None

    def __str__(self) -> str:
        """One line for each outcome."""
        lines = [f"{len(self.written)} dumps written, {len(self.present)} were there already: {self.directory}"]
        if self.expected is not None:
            lines.append(f"A checkpoint takes {self.expected}")
        lines += [f"No dump of {path}: {why}" for path, why in self.failed.items()]
        return "\n".join(lines)


class OfflineRunner:
    """The snapshots of one call.

    Args:
        request, wanted: what to attribute, and how; as of the callback.
        directory: of the dumps.
        source: of the weights.
        dry_run: forecast only.
        overview: where progress is shown.
    """

    def __init__(
        self,
        request: AttributionRequest,
        wanted: SnapshotOptions,
        directory: Path,
        source: CheckpointSource,
        *,
        dry_run: bool,
        overview: OfflineProgress,
    ) -> None:
        self.request, self.wanted, self.directory, self.source = request, wanted, directory, source
        self.dry_run, self.overview = dry_run, overview
        self.claims = Leases(directory / _LEASES)
        self.seen, self.written = set[int](), list[int]()
        self.expected: Forecast | None = None
        self._session: Session | None = None
        self._found: Mapping[str, Any] | None = None

    def result(self) -> AttributionReport:
        """The outcome of each checkpoint so far."""
        there = sorted(step for step in self.seen if self._has_dump(step) and step not in self.written)
        return AttributionReport(self.directory, tuple(self.written), tuple(there), self.source.failed, self.expected)

    def run(self, trainer: Any, module: Any) -> None:
        """Attribute whatever has no dump yet, until no more can come. Collective.

        Raises:
            ValueError: none of the checkpoints can be read, or the folder is of other data or settings.
        """
        ranks = ranks_of(module)
        with ranks.collective("looking at the folder"):
            self._check_folder()
        with self.overview.shown():
            self._work(trainer, module, ranks)

    def _work(self, trainer: Any, module: Any, ranks: Ranks) -> None:
        quiet_since, waiting = time.monotonic(), False
        while True:
            due, more = ranks.broadcast(self._due() if ranks.rank == 0 else ([], False))
            if not due and not more:
                return
            done = sum(self._attempt(trainer, module, ranks, saved) for saved in due)
            if self.dry_run and self._session is not None:
                return
            if done:
                quiet_since, waiting = time.monotonic(), False
                continue
            if not waiting:
                say(trainer, f"BIF: waiting for {'others' if due else 'snapshots'} in {self.directory}; Ctrl-C stops")
            waiting, idle = True, time.monotonic() - quiet_since
            if ranks.broadcast(self.source.idle is not None and idle > self.source.idle):
                return
            self._rest(trainer, ranks, anything=bool(due))

    def _rest(self, trainer: Any, ranks: Ranks, *, anything: bool) -> None:
        """Wait a moment, for snapshots or for others that work on them."""
        if ranks.broadcast(trainer.received_sigterm):
            raise PreemptedError("SIGTERM was received")
        time.sleep(_POLL_SECONDS)
        if not anything and self.overview.pace.began is not None:
            self.overview.pace.idle += _POLL_SECONDS

    def _check_folder(self) -> None:
        """Refuse a folder of another run or of other settings."""
        left = left_by(self.directory)
        if left is None:
            check_unused(self.directory)
        else:
            check_same("settings", left.settings, _plain(self.wanted.settings))

    def _due(self) -> tuple[list[Checkpoint], bool]:
        saved, more = self.source.look()
        if not saved and not more and not self.seen:
            failed = self.source.failed
            raise ValueError(f"none of {len(failed)} checkpoints can be read; the first: {next(iter(failed.values()))}")
        self.seen |= {each.step for each in saved}
        failed = self.source.failed
        due = [each for each in saved if str(each.path) not in failed and not self._has_dump(each.step)]
        self._tell()
        # Until "auto" has found settings that hold for later snapshots, take one at a time: the next may find them.
        unresolved = self._unresolved()
        return due[:1] if unresolved else due, more or (unresolved and len(due) > 1)

    def _tell(self) -> None:
        if not self.dry_run:
            done = sum(self._has_dump(step) for step in self.seen)
            self.overview.count(done, max(done, len(self.seen) - len(self.source.failed)))

    def _dumps(self) -> list[Path]:
        return dump_paths(self.directory) if self.directory.is_dir() else []

    def _has_dump(self, step: int) -> bool:
        return (self.directory / dump_name(step)).is_file()

    def _attempt(self, trainer: Any, module: Any, ranks: Ranks, saved: Checkpoint) -> bool:
        """Whether this worker processed the checkpoint, even if it failed. Collective."""
        with defer_interrupts(), self._claimed(ranks, saved) as mine:
            if not mine:
                return False
            try:
                self._load(module, saved)
                session = self._opened(trainer, module)
                if self.dry_run:
                    return True
                session.snapshot(trainer, module, saved.moment)
            except (MisconfigurationException, _RefusedError):
                raise
            except (ValueError, OSError, RuntimeError) as error:
                if _ends_all(error):
                    raise
                self.source.fail(saved.path, error)
            else:
                self.written.append(saved.step)
            self._tell()
            return True

    @contextmanager
    def _claimed(self, ranks: Ranks, saved: Checkpoint) -> Generator[bool]:
        """Rank 0 claims for all of this worker's ranks."""
        with ExitStack() as held:
            mine = self.dry_run
            with ranks.collective(f"claiming step {saved.step}"):
                if ranks.rank == 0 and not self.dry_run:
                    mine = held.enter_context(self.claims.claimed(dump_name(saved.step)))
                    mine = mine and not self._has_dump(saved.step)
            yield ranks.broadcast(mine)

    def _load(self, module: Any, saved: Checkpoint) -> None:
        with ranks_of(module).collective(f"loading {saved.path.name}"):
            load_weights(module, saved.path)

    def _opened(self, trainer: Any, module: Any) -> Session:
        """The session, opened at the first weights loaded: losses are proved at trained weights."""
        resolved = self._session.resolved if self._session else None
        if resolved is None:  # other workers may have found them since
            ranks = ranks_of(module)
            with ranks.collective("reading the settings that were found"):
                resolved = self._resolved()
            resolved = ranks.broadcast(resolved)
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
                    resolved=resolved,
                )
                self.expected = self._session.announce(trainer, module)
            except (ValueError, TypeError, OSError) as error:
                raise _RefusedError(str(error)) from error
            if left is None and not self.dry_run and ranks_of(module).rank == 0:
                RunManifest(self.wanted.settings, self._session.outputs.fingerprints).write(self.directory)
        self._session.resolved = resolved
        return self._session

    def _unresolved(self) -> bool:
        return self.wanted.sampler in (None, "auto") and self._kept() is None

    def _kept(self) -> Mapping[str, Any] | None:
        """The settings that the run keeps: those of the first dump whose settings hold for later ones."""
        if self._found is None:
            stored = (json.loads(read_index(path).settings) for path in self._dumps())
            self._found = next((settings for settings in stored if settings.get("lasting", True)), None)
        return self._found

    def _resolved(self) -> ResolvedSettings | None:
        """The settings that the run found, as its dumps have them; None where it was given them."""
        kept = self._kept() if self.wanted.sampler in (None, "auto") else None
        return ResolvedSettings.from_dict(kept) if kept is not None and kept.get("reasons") else None


class _RefusedError(ValueError):
    """The arguments cannot work at any checkpoint."""


def _ends_all(error: Exception) -> bool:
    """Whether the error would stop every other snapshot, too."""
    return is_fatal(error) or is_full(error) or is_preemption(error)


def _plain(values: Any) -> Any:
    return json.loads(json.dumps(values, default=str))
