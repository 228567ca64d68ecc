"""Sources of saved weights: existing checkpoints, or snapshots that a training run is still writing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_warn

from bif_lightning.trainer.checkpoints import Checkpoint, find_checkpoints, in_order, inspect_checkpoint
from bif_lightning.trainer.snapshot_files import has_ended


@dataclass
class CheckpointSource:
    """A source of saved weights.

    Args:
        paths: checkpoints, and folders of them.
        ends: folder where the training run marks its end; None if all checkpoints exist from the start.
        idle: stop waiting after this many seconds without work; None waits for the end of training.
        failed: why a checkpoint has no dump, by its path.
    """

    paths: Sequence[str | Path]
    ends: Path | None = None
    idle: float | None = None
    failed: dict[str, str] = field(default_factory=dict[str, str])
    _known: dict[Path, Checkpoint] = field(default_factory=dict[Path, Checkpoint])

    def scan(self) -> tuple[list[Checkpoint], bool]:
        """Find all checkpoints so far, in the order of their steps, and whether more may appear.

        Raises:
            ValueError: two of them have the same step.
        """
        over = self.ends is None or has_ended(self.ends)  # checked first: the last snapshot precedes the end mark
        try:
            paths = find_checkpoints(self.paths)
        except FileNotFoundError:
            if self.ends is None:
                raise
            paths = []
        self._known = {path: saved for path, saved in self._known.items() if path in paths}
        for path in paths:
            if path not in self._known and str(path) not in self.failed:
                self._inspect(path)
        return in_order(self._known.values()), not over

    def _inspect(self, path: Path) -> None:
        try:
            self._known[path] = inspect_checkpoint(path)
        except (ValueError, OSError) as error:
            self.fail(path, error)

    def fail(self, path: Path, error: Exception) -> None:
        """Record why a checkpoint has no dump. It is not tried again."""
        self.failed[str(path)] = str(error)
        rank_zero_warn(f"no dump of {path}: {error}")
