"""Finds the runs below a log folder by the names of their files; no file is opened."""

import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from bif_lightning.archive.schema import DUMP_NAME, INTEGRATED_FILE, SAMPLES_FILE
from bif_lightning.tensorboard.plugin.run_files import RunFiles

SECONDS = 5.0
"""How long a scan is reused: TensorBoard asks every plugin at every reload."""
_MOST_RUNS = 10_000
_MOST_DEPTH = 12
_MOST_LINKS = 1_000


@dataclass(frozen=True)
class Dump:
    """A file of a run: its name, and a token that changes whenever it is replaced."""

    name: str
    token: str


@dataclass(frozen=True)
class Run:
    """A folder with dumps.

    Attributes:
        name: its path below the log folder, "." for that itself, with forward slashes.
        folder: its path.
        written: when its latest dump was, in seconds since 1970; 0 without one.
        dumps: by step, ascending.
        samples_token: of the samples file; empty where there is none.
        integrated_token: of the file of sums over the training; empty where there is none.
        odd: files that are named like dumps but are not regular files: links, pipes, folders.
    """

    name: str
    folder: Path
    written: float
    dumps: Mapping[int, Dump]
    samples_token: str
    integrated_token: str
    odd: tuple[str, ...]

    def files(self, steps: list[int] | None = None) -> RunFiles:
        """Its files, or those of some steps, for a reader."""
        chosen = self.dumps if steps is None else steps
        return RunFiles(self.folder, {step: self.dumps[step].name for step in chosen})


class Scan:
    """The runs below a folder, as they were at most some seconds ago.

    Args:
        folder: the log folder; links to folders below it are followed, as TensorBoard does, links to files are not.
        seconds: after which it is looked at again.
    """

    def __init__(self, folder: str | os.PathLike[str], seconds: float = SECONDS) -> None:
        self._folder = Path(os.path.realpath(folder))
        self._seconds = seconds
        self._found: dict[str, Run] = {}
        self._until = -1.0
        self._lock = Lock()

    def runs(self) -> Mapping[str, Run]:
        """By name, in the order of their names."""
        # While one request scans a slow disk, the others get the previous result.
        if time.monotonic() > self._until and self._lock.acquire(blocking=self._until < 0):
            try:
                if time.monotonic() > self._until:
                    self._found = dict(sorted((run.name, run) for run in _runs(self._folder)))
                    self._until = time.monotonic() + self._seconds
            finally:
                self._lock.release()
        return self._found


def _runs(top: Path) -> Iterator[Run]:
    found, links = 0, 0
    above = {str(top): frozenset([str(top)])}  # of each folder to come, the real paths of itself and those above it
    for folder, names, files in os.walk(top, followlinks=True):
        depth, own = len(Path(folder).relative_to(top).parts), above.pop(folder)
        # Hidden folders hold no logs, and can be as large as an environment.
        visible = sorted(name for name in names if not name.startswith(".") and depth < _MOST_DEPTH)
        names.clear()
        for name in visible:
            path = os.path.join(folder, name)
            links += os.path.islink(path)
            real = os.path.realpath(path)
            if real not in own and links <= _MOST_LINKS:
                names.append(name)
                above[path] = own | {real}
        if any(DUMP_NAME.fullmatch(name) for name in files):
            yield _run(top, Path(folder), files)
            found += 1
            if found == _MOST_RUNS:
                return


def _run(top: Path, folder: Path, files: list[str]) -> Run:
    dumps: dict[int, Dump] = {}
    odd: list[str] = []
    written = 0.0
    for name in sorted(files):
        match = DUMP_NAME.fullmatch(name)
        if match is None:
            continue
        found = _token(folder / name)
        if found is None or len(match[1]) > 15 or int(match[1]) in dumps:
            odd.append(name)
        else:
            dumps[int(match[1])] = Dump(name, found.text)
            written = max(written, found.written)
    name = folder.relative_to(top).as_posix()
    samples, integrated = (
        token.text if each in files and (token := _token(folder / each)) else ""
        for each in (SAMPLES_FILE, INTEGRATED_FILE)
    )
    return Run(name, folder, written, dict(sorted(dumps.items())), samples, integrated, tuple(odd))


@dataclass(frozen=True)
class _Token:
    """Version of a file, and when it was written."""

    text: str
    written: float


def _token(path: Path) -> _Token | None:
    """Inode, time and size of a plain file; None for anything else."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return _Token(f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}", found.st_mtime)
