"""Estimates at saved weights: which checkpoints lack a dump, which worker takes them, and the report."""

import json
import time
from collections.abc import Generator, Mapping, Sequence
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
from bif_lightning.offline.dependence import EPOCH, dependence, refuse_unknown
from bif_lightning.offline.fit_start import NO_TRAINING
from bif_lightning.results.settings import ResolvedSettings
from bif_lightning.sampling.context import ranks_of
from bif_lightning.trainer.checkpoints import Checkpoint, load_weights
from bif_lightning.trainer.failures import is_fatal, is_full, is_preemption
from bif_lightning.trainer.interrupts import defer_interrupts
from bif_lightning.trainer.outputs import check_unused, update_integrated
from bif_lightning.trainer.position import at_position
from bif_lightning.trainer.problem import AttributionRequest
from bif_lightning.trainer.progress import OfflineProgress
from bif_lightning.trainer.session import Session, say
from bif_lightning.trainer.setup import SnapshotOptions, check_same, open_session
from bif_lightning.trainer.snapshot_files import RunManifest, read_manifest

_POLL_SECONDS = 1.0
_NAMED = 12  # most steps that a report names
_LEASES = "claims"


@dataclass(frozen=True)
class AttributionReport:
    """The outcome of each checkpoint.

    Attributes:
        directory: folder of the dumps; `open_run` reads them.
        written: steps whose dumps this call wrote.
        present: steps whose dumps existed or were written by other workers.
        failed: why a checkpoint has no dump, by its path.
        expected: forecast of the cost of each estimate.
        planned: after a dry run, steps whose dumps a run would write; None otherwise.

    >>> from pathlib import Path
    >>> print(AttributionReport(Path("bif"), written=(100, 200), failed={"step=300.ckpt": "it is damaged"}))
    2 dumps written, 0 already present: bif
    No dump of step=300.ckpt: it is damaged
    >>> print(AttributionReport(Path("bif"), present=(100,), planned=(200, 300)))
    2 dumps to write, of steps 200, 300; 1 already present: bif
    """

    directory: Path
    written: tuple[int, ...] = ()
    present: tuple[int, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict[str, str])
    expected: Forecast | None = None
    planned: tuple[int, ...] | None = None

    @property
    def expected_seconds_in_all(self) -> float | None:
        """After a dry run, how long one worker would take for all checkpoints; None if it is not known."""
        return None if self.planned is None or self.expected is None else len(self.planned) * self.expected.seconds

    def __str__(self) -> str:
        """One line for each outcome."""
        if self.planned is None:
            lines = [f"{len(self.written)} dumps written, {len(self.present)} already present: {self.directory}"]
        else:
            lines = [f"{_plan(self.planned)}; {len(self.present)} already present: {self.directory}"]
        if self.expected is not None:
            seconds = self.expected_seconds_in_all
            in_all = "" if seconds is None else f"; all of them take about {_duration(seconds)}"
            lines.append(f"A checkpoint takes {self.expected}{in_all}")
        lines += [f"No dump of {path}: {why}" for path, why in self.failed.items()]
        return "\n".join(lines)


def _plan(steps: Sequence[int]) -> str:
    shown = [str(step) for step in (steps if len(steps) <= _NAMED else (*steps[: _NAMED - 1], "...", steps[-1]))]
    of = f", of step{'s' * (len(steps) > 1)} {', '.join(shown)}" if steps else ""
    return f"{len(steps)} dump{'s' * (len(steps) != 1)} to write{of}"


def _duration(seconds: float) -> str:
    """Two digits, in the unit that suits: "85 s", "2.4 h".

    >>> _duration(85.2), _duration(600), _duration(8640)
    ('85 s', '10 min', '2.4 h')
    """
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}" if seconds >= 100 * size else f"{seconds / size:.2g} {unit}"
    return f"{seconds:.3g} s" if seconds >= 100 else f"{seconds:.2g} s"


class OfflineRunner:
    """Estimates at all checkpoints of a source.

    Args:
        request, options: what to attribute, and how; as in the callback.
        directory: folder of the dumps.
        source: source of the weights.
        dry_run: forecast only.
        progress: display of the progress.
    """

    def __init__(
        self,
        request: AttributionRequest,
        options: SnapshotOptions,
        directory: Path,
        source: CheckpointSource,
        *,
        dry_run: bool,
        progress: OfflineProgress,
    ) -> None:
        self.request, self.options, self.directory, self.source = request, options, directory, source
        self.dry_run, self.progress = dry_run, progress
        self.leases = Leases(directory / _LEASES)
        self.seen, self.written = set[int](), list[int]()
        self.expected: Forecast | None = None
        self._session: Session | None = None
        self._stored_settings: Mapping[str, Any] | None = None
        self._depends_on = frozenset[str]()

    def result(self) -> AttributionReport:
        """The outcome of each checkpoint so far."""
        there = sorted(step for step in self.seen if self._has_dump(step) and step not in self.written)
        planned = tuple(sorted(self.seen.difference(there))) if self.dry_run else None
        failed = self.source.failed
        return AttributionReport(self.directory, tuple(self.written), tuple(there), failed, self.expected, planned)

    def run(self, trainer: Any, module: Any) -> None:
        """Write the missing dumps, until no further checkpoint can appear. Collective.

        Raises:
            ValueError: none of the checkpoints can be read, or the folder holds dumps of other data or settings.
        """
        ranks = ranks_of(module)
        with ranks.collective("looking at the folder"):
            self._check_folder()
        with self.progress.shown():
            self._work(trainer, module, ranks)
        if ranks.rank == 0 and not self.dry_run:
            update_integrated(self.directory)

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
            self._wait(trainer, ranks, anything=bool(due))

    def _wait(self, trainer: Any, ranks: Ranks, *, anything: bool) -> None:
        """Wait for new snapshots, or for other workers that process them."""
        if ranks.broadcast(trainer.received_sigterm):
            raise PreemptedError("SIGTERM was received")
        time.sleep(_POLL_SECONDS)
        if not anything and self.progress.pace.began is not None:
            self.progress.pace.idle += _POLL_SECONDS

    def _check_folder(self) -> None:
        """Check that the folder is unused or belongs to a run with the same settings."""
        manifest = read_manifest(self.directory)
        if manifest is None:
            check_unused(self.directory)
        else:
            check_same("settings", manifest.settings, _plain(self.options.settings))

    def _due(self) -> tuple[list[Checkpoint], bool]:
        saved, more = self.source.scan()
        if not saved and not more and not self.seen:
            failed = self.source.failed
            raise ValueError(
                f"none of {len(failed)} checkpoints can be read; the first error: {next(iter(failed.values()))}"
            )
        self.seen |= {each.step for each in saved}
        failed = self.source.failed
        due = [each for each in saved if str(each.path) not in failed and not self._has_dump(each.step)]
        self._show_progress()
        # Until "auto" has found settings that hold for later snapshots, take one snapshot at a time: it may find them.
        unresolved = self._unresolved()
        return due[:1] if unresolved else due, more or (unresolved and len(due) > 1)

    def _show_progress(self) -> None:
        if not self.dry_run:
            done = sum(self._has_dump(step) for step in self.seen)
            self.progress.count(done, max(done, len(self.seen) - len(self.source.failed)))

    def _dumps(self) -> list[Path]:
        return dump_paths(self.directory) if self.directory.is_dir() else []

    def _has_dump(self, step: int) -> bool:
        return (self.directory / dump_name(step)).is_file()

    def _attempt(self, trainer: Any, module: Any, ranks: Ranks, saved: Checkpoint) -> bool:
        """Whether this worker processed the checkpoint, even if it failed. Collective."""
        with defer_interrupts(), self._leased(ranks, saved) as mine:
            if not mine:
                return False
            try:
                self._load(module, saved)
                with at_position(trainer, saved.position):
                    session = self._open_session(trainer, module)
                    if self.dry_run:
                        return True
                    self._check_epoch(saved)
                    session.snapshot(trainer, module, saved.position)
            except (MisconfigurationException, _RefusedError):
                raise
            except (ValueError, OSError, RuntimeError) as error:
                if _ends_the_run(error):
                    raise
                self.source.fail(saved.path, error)
            else:
                self.written.append(saved.step)
            self._show_progress()
            return True

    @contextmanager
    def _leased(self, ranks: Ranks, saved: Checkpoint) -> Generator[bool]:
        """Acquire the lease on rank 0, for all ranks of this worker."""
        with ExitStack() as held:
            mine = self.dry_run
            with ranks.collective(f"acquiring step {saved.step}"):
                if ranks.rank == 0 and not self.dry_run:
                    mine = held.enter_context(self.leases.acquired(dump_name(saved.step)))
                    mine = mine and not self._has_dump(saved.step)
            yield ranks.broadcast(mine)

    def _load(self, module: Any, saved: Checkpoint) -> None:
        with ranks_of(module).collective(f"loading {saved.path.name}"):
            load_weights(module, saved.path)

    def _open_session(self, trainer: Any, module: Any) -> Session:
        """The session, opened after the first weights are loaded, since losses are proved at trained weights."""
        resolved = self._session.resolved if self._session else None
        if resolved is None:  # other workers may have found them since
            ranks = ranks_of(module)
            with ranks.collective("reading the resolved settings"):
                resolved = self._found_settings()
            resolved = ranks.broadcast(resolved)
        if self._session is None:
            manifest = read_manifest(self.directory)
            try:
                self._session = open_session(
                    trainer,
                    module,
                    self.request,
                    self.options,
                    None if self.dry_run else self.directory,
                    fresh=manifest is None,
                    data={} if manifest is None else manifest.data,
                    resolved=resolved,
                )
                # Workers that share a folder write dumps in any order: the sum over them is made at the end.
                self._session.outputs.integrates = False
                self._depends_on = dependence(trainer, module, self._session.attribution)
                refuse_unknown(self._depends_on, limits_known=trainer.max_steps != NO_TRAINING)
                self.expected = self._session.announce(trainer, module)
            except (ValueError, TypeError, OSError) as error:
                raise _RefusedError(str(error)) from error
            if manifest is None and not self.dry_run and ranks_of(module).rank == 0:
                RunManifest(self.options.settings, self._session.outputs.fingerprints).write(self.directory)
        self._session.resolved = resolved
        return self._session

    def _check_epoch(self, saved: Checkpoint) -> None:
        if EPOCH in self._depends_on and not saved.position.epoch_known:
            raise ValueError(
                "the loss depends on the epoch, and this checkpoint does not say of which it is: give checkpoints of "
                "Lightning, or add its epoch, as in torch.save({'state_dict': ..., 'global_step': ..., 'epoch': ...})"
            )

    def _unresolved(self) -> bool:
        return self.options.sampler in (None, "auto") and self._run_settings() is None

    def _run_settings(self) -> Mapping[str, Any] | None:
        """The settings that hold for the run, from the first dump that has such settings."""
        if self._stored_settings is None:
            stored = (json.loads(read_index(path).settings) for path in self._dumps())
            self._stored_settings = next((settings for settings in stored if settings.get("lasting", True)), None)
        return self._stored_settings

    def _found_settings(self) -> ResolvedSettings | None:
        """The settings that the run found, read from its dumps; None if the user gave them."""
        kept = self._run_settings() if self.options.sampler in (None, "auto") else None
        return ResolvedSettings.from_dict(kept) if kept is not None and kept.get("reasons") else None


class _RefusedError(ValueError):
    """The arguments are invalid for every checkpoint."""


def _ends_the_run(error: Exception) -> bool:
    """Whether the error would stop every other snapshot, too."""
    return is_fatal(error) or is_full(error) or is_preemption(error)


def _plain(values: Any) -> Any:
    return json.loads(json.dumps(values, default=str))
