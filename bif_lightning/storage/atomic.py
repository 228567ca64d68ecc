"""Atomic writing of files: under a hidden name, synced, then renamed to the final one."""

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from bif_lightning.exceptions import DiskFullError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

# Distinguishes this process from a dead one with the same pid, as in a container.
_PROCESS = secrets.token_hex(4)
_TEMPORARY = re.compile(r"\..+\.h5\.(?P<host>[\w-]+)\.(?P<pid>\d+)\.(?P<process>[0-9a-f]{8})\.[0-9a-f]{8}\.tmp")
_KEPT = 1 << 16  # bytes of the largest write that is kept in memory after an error
_ABANDONED_SECONDS = 24 * 3600


class FaultTolerantFile(io.RawIOBase):
    """A file for HDF5 to write to, which stores the first error instead of raising it.

    HDF5 does not recover from a failed write: the half-closed file stays in its tables, and the process may crash at
    exit. So after an error the file accepts every further byte to let HDF5 close it, and the opener raises `failure`.
    Until then HDF5 reads back what it wrote, and follows the addresses in it: small writes, which contain all
    addresses, are kept in memory; large ones are dropped.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._position = 0
        self._size = 0
        self._kept: list[tuple[int, bytes]] = []
        self.failure: OSError | None = None

    @property
    def size(self) -> int:
        """Size of the file in bytes, including what an error kept from it."""
        return self._size

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer).cast("B")
        found = os.pread(self._descriptor, len(view), self._position)
        # Filled with zeros beyond the end of the file: HDF5 takes the unchanged rest of a short read for data.
        view[:] = found + bytes(len(view) - len(found))
        for offset, data in self._kept:
            start, end = max(offset, self._position), min(offset + len(data), self._position + len(view))
            if start < end:
                view[start - self._position : end - self._position] = data[start - offset : end - offset]
        self._position += len(view)
        return len(view)

    def write(self, data: "ReadableBuffer", /) -> int:
        view = memoryview(data).cast("B")
        if self.failure is None:
            try:
                self._write_all(view)
            except OSError as error:
                self.failure = error
        if self.failure is not None and len(view) <= _KEPT:
            self._kept.append((self._position, bytes(view)))
        self._position += len(view)
        self._size = max(self._size, self._position)
        return len(view)

    def _write_all(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            done += os.pwrite(self._descriptor, view[done:], self._position + done)

    def truncate(self, size: int | None = None, /) -> int:
        self._size = self._position if size is None else size
        if self.failure is None:
            try:
                os.ftruncate(self._descriptor, self._size)
            except OSError as error:
                self.failure = error
        return self._size


@contextlib.contextmanager
def atomic_write(path: Path, nbytes: int) -> Generator[FaultTolerantFile]:
    """Open a file that becomes `path` when the block ends, and is removed when the block raises.

    Args:
        path: the final name. Its folder is made if missing; an older file is replaced as a whole.
        nbytes: about how many bytes will be written, for error messages.

    Raises:
        OSError: of the system's subclass (PermissionError, ...), or DiskFullError; the message has the path, the
            bytes needed and free, and what to do.
    """
    path = path.absolute()
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{_PROCESS}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _removed_on_error(temporary):
            with _written_and_synced(temporary) as sink:
                try:
                    yield sink
                finally:
                    nbytes = max(nbytes, sink.size)  # small files are mostly metadata
            os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _explained(error, path, nbytes) from error


def sweep_temporaries(directory: str | os.PathLike[str]) -> list[Path]:
    """Remove the temporaries of dead writers from a folder, and return their paths.

    A writer is dead if its process on this host has ended, or if its file on any host is unchanged for a day. A
    missing folder counts as empty.
    """
    removed: list[Path] = []
    folder = Path(directory)
    for path in sorted(folder.glob(".*.tmp")) if folder.is_dir() else []:
        name = _TEMPORARY.fullmatch(path.name)
        with contextlib.suppress(FileNotFoundError):
            if name and _is_stale(path, name):
                path.unlink()
                removed.append(path)
    return removed


@contextlib.contextmanager
def _written_and_synced(temporary: Path) -> Generator[FaultTolerantFile]:
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        sink = FaultTolerantFile(descriptor)
        try:
            yield sink
        finally:
            # The stored error is the cause; errors that HDF5 raises about lost bytes are consequences.
            if sink.failure is not None:
                raise sink.failure
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _removed_on_error(temporary: Path) -> Generator[None]:
    try:
        yield
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder, and journals the rename.
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _host() -> str:
    return re.sub(r"[^\w-]", "-", socket.gethostname()) or "host"


def _is_stale(path: Path, name: re.Match[str]) -> bool:
    if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
        return True
    if name["host"] != _host():
        return False
    if int(name["pid"]) == os.getpid():
        return name["process"] != _PROCESS
    return not _is_alive(int(name["pid"]))


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # there, signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, quota or file size."""

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def _explained(error: OSError, path: Path, nbytes: int) -> OSError:
    if error.errno in FULL:
        remedy = "Free some space, choose another dirpath, or write less: precision='10bit', fewer examples, no traces."
    elif error.errno in _FORBIDDEN:
        remedy = "Choose a dirpath that this process may write to."
    else:
        remedy = "Check the disk, or choose another dirpath."
    message = (
        f"could not write {path} ({error.strerror or error}): it takes about {nbytes:,} bytes, "
        f"and {_free(path)} are free there. Files written earlier are whole, and nothing of this one is left. {remedy}"
    )
    if error.errno in FULL:
        return DiskFullError(error.errno, message)
    return OSError(message) if error.errno is None else OSError(error.errno, message)


def _free(path: Path) -> str:
    for folder in path.parents:
        with contextlib.suppress(OSError):
            return f"{shutil.disk_usage(folder).free:,} bytes"
    return "an unknown number of bytes"
