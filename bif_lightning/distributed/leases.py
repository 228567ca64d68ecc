"""Leases on work among processes that share only a folder; leases of dead workers expire.

A lease is a file that its holder rewrites every few seconds. A worker that sees it unchanged for `patience` seconds
takes it over. Each worker measures this time with its own clock, so clocks need not agree. A dead holder on the same
machine is detected at once. Two workers can hold one lease if a holder is suspended for longer than `patience` and then
resumes. Therefore their results must be equal and be written atomically (`storage.atomic`): leases avoid double work,
and correctness does not depend on them.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

PATIENCE = 60.0
"""Seconds without a heartbeat after which a lease may be taken over."""

_BEATS = 6


class Leases:
    """Leases of one worker in one folder.

    Args:
        folder: folder of the lease files, shared by all workers; created if missing.
        patience: seconds without a heartbeat after which a lease expires; the same for all workers.
    """

    def __init__(self, folder: Path, patience: float = PATIENCE) -> None:
        self.folder, self.patience = folder, patience
        self._me = {"host": _host(), "pid": os.getpid(), "nonce": secrets.token_hex(8)}
        self._seen = dict[str, tuple[str, float]]()  # text of another worker's lease, and when it appeared

    @contextlib.contextmanager
    def acquired(self, name: str) -> Generator[bool]:
        """Try to hold a lease while the block runs; yields whether this worker holds it.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self.folder / f"{name}.claim"
        if not self._take(path):
            yield False
            return
        over = threading.Event()
        beating = threading.Thread(target=self._beat, args=(path, over), daemon=True)
        beating.start()
        try:
            yield True
        finally:
            over.set()
            beating.join()
            if self._mine(path):
                path.unlink(missing_ok=True)

    def _take(self, path: Path) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            if not self._abandoned(path):
                return False
            self._write(path, 0)
            return self._mine(path)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(self._text(0))
        except OSError as error:  # an empty lease would block other workers
            path.unlink(missing_ok=True)
            raise OSError(
                error.errno, f"could not write {path} ({error.strerror}): it takes about 200 bytes; free some space"
            ) from error
        self._seen.pop(path.name, None)
        return True

    def _abandoned(self, path: Path) -> bool:
        text = _read(path)
        if text is None:  # just released
            return False
        holder = _parsed(text)
        if holder.get("host") == self._me["host"] and not _is_alive(holder.get("pid")):
            return True
        said, since = self._seen.get(path.name, (None, 0.0))
        if said != text:
            self._seen[path.name] = text, time.monotonic()
            return False
        return time.monotonic() - since > self.patience

    def _beat(self, path: Path, over: threading.Event) -> None:
        beat = 0
        while not over.wait(self.patience / _BEATS):
            beat += 1
            # Do not take back a lease that another worker took over.
            with contextlib.suppress(OSError):
                if self._mine(path):
                    self._write(path, beat)

    def _mine(self, path: Path) -> bool:
        text = _read(path)
        return text is not None and _parsed(text).get("nonce") == self._me["nonce"]

    def _write(self, path: Path, beat: int) -> None:
        temporary = path.with_name(f".{path.name}.{self._me['nonce']}.tmp")
        try:
            temporary.write_text(self._text(beat))
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _text(self, beat: int) -> str:
        return json.dumps({**self._me, "beat": beat})


def _host() -> str:
    """Name of this machine and of its process namespace, since containers number processes separately."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{socket.gethostname()} {space}"


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _parsed(text: str) -> dict[str, Any]:
    """Content of a lease; empty if its holder was killed while writing it."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def _is_alive(pid: Any) -> bool:
    if not isinstance(pid, int):
        return True  # unknown: wait for `patience`
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
