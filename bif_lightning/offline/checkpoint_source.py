"""Where saved weights come from: checkpoints that are there, or snapshots as a training run leaves them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_warn

from bif_lightning.trainer.checkpoints import Checkpoint, find_checkpoints, in_order, look_at
from bif_lightning.trainer.snapshot_files import has_ended


@dataclass
class CheckpointSource:
    """Where saved weights come from.

    Args:
        paths: checkpoints, and folders of them.
        ends: folder whose training run marks its end there; None if all weights exist from the start.
        idle: stop waiting after this many seconds without work; None waits for the end of the training.
    """

    paths: Sequence[str | Path]
    ends: Path | None = None
    idle: float | None = None
    failed: dict[str, str] = field(default_factory=dict[str, str])
    _known: dict[Path, Checkpoint] = field(default_factory=dict[Path, Checkpoint])

    def look(self) -> tuple[list[Checkpoint], bool]:
        """All weights found so far, in the order of their steps, and whether more may come.

        Raises:
            ValueError: two of them are of the same step.
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
        """Record why a checkpoint has no dump; it is not tried again."""
        self.failed[str(path)] = str(error)
        rank_zero_warn(f"no dump of {path}: {error}")
