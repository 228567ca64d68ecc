"""The files of one run that a reader may open, and a cache of what was read from them."""

import os
import stat
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from cachetools import LRUCache

from bif_lightning.archive.read.parts import Picked, read_parts
from bif_lightning.archive.schema import DUMP, SAMPLES_FILE
from bif_lightning.tensorboard.plugin.answers import RefusedError
from bif_lightning.tensorboard.plugin.parameters import Parameters

Kept = TypeVar("Kept")

QUANTITIES = ("correlation", "influence", "conditioned")
_ATTRS = ("verdict", "observables")
_SMALL: LRUCache[Hashable, tuple[Any, int]] = LRUCache(64 << 20, getsizeof=itemgetter(1))


@dataclass(frozen=True)
class RunFiles:
    """One run: its folder, and the name of the dump of each step, as the scan of the log folder found them."""

    folder: Path
    names: Mapping[int, str]

    @property
    def steps(self) -> list[int]:
        """The steps that have a dump, ascending."""
        return sorted(self.names)

    def dump(self, step: int) -> Path:
        """The dump of a step.

        Raises:
            RefusedError: 404 if the run has none, 422 if it is not a regular file (a link, for example).
        """
        name = self.names.get(step)
        if name is None:
            raise RefusedError(404, f"This run has no dump of step {step}; reload the list of runs.")
        return regular(self.folder / name)

    def samples(self) -> Path | None:
        """The samples file, if the run has one."""
        path = self.folder / SAMPLES_FILE
        return regular(path) if os.path.lexists(path) else None

    def step(self, parameters: Parameters, name: str = "step") -> int:
        """The step that a request asks for."""
        return parameters.number(name, 0, 10**15)


def regular(path: Path) -> Path:
    """The same path.

    Raises:
        RefusedError: 404 if the file does not exist, 422 if it is a link, a pipe or another special file.
    """
    try:
        mode = os.lstat(path).st_mode
    except OSError as error:
        raise RefusedError(404, f"{path.name} was removed; reload the list of runs.") from error
    if not stat.S_ISREG(mode):
        raise RefusedError(422, f"{path.name} is not a regular file, so it is not opened.")
    return path


def token(path: Path) -> str:
    """Identify the version of a file by inode, time and size."""
    found = os.stat(path, follow_symlinks=False)
    return f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"


def head(files: RunFiles, step: int) -> Picked:
    """Attributes of a dump, and the shapes of its matrices."""
    path = files.dump(step)
    return remembered(
        ("head", str(path), token(path)),
        lambda: read_parts(path, DUMP, attrs=_ATTRS, names=("chains/verdict", "settings_json"), matrices=QUANTITIES),
    )


def has(files: RunFiles, step: int, name: str) -> bool:
    """Whether the dump of a step has a dataset or group."""
    return name in read_parts(files.dump(step), DUMP, asked=(name,)).present


def remembered(key: Hashable, make: Callable[[], Kept], size: Callable[[Kept], int] = lambda _: 1 << 16) -> Kept:
    """Return a small value from the cache, computing it at most once; `size` estimates its bytes."""
    if key in _SMALL:
        return _SMALL[key][0]
    made = make()
    if (nbytes := size(made)) <= _SMALL.maxsize:
        _SMALL[key] = made, nbytes
    return made
