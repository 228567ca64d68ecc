"""The folder of a run's dumps: `<save_dir>/<name>/<version>/bif`, beside the files of the Trainer's first logger."""

import os
import re
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from bif_lightning.storage.places import local_path

_NAME = "lightning_logs"
"""Name of the logs where no logger has one; Lightning's own loggers have the same default."""

_VERSION = re.compile(r"version_(\d+)")


@dataclass(frozen=True)
class LogFolder:
    """Folder of the first logger of a Trainer.

    Attributes:
        path: the folder of this run; without versions, the one that all runs share.
        versioned: whether each run has a folder of its own.
    """

    path: Path
    versioned: bool


def log_folder(trainer: Any) -> LogFolder:
    """Find the folder of the first logger: its log_dir, or `<save_dir>/<name>/<version>`.

    Without a logger, or if it keeps its files on a server, save_dir is the Trainer's default_root_dir.

    Raises:
        ValueError: it is not on this machine.
    """
    logger = next(iter(trainer.loggers), None)
    log_dir = getattr(logger, "log_dir", None)
    if isinstance(log_dir, str | os.PathLike):  # of TensorBoardLogger and CSVLogger; it ends with the version
        return LogFolder(_local(log_dir), versioned=True)
    root = _local(getattr(logger, "save_dir", None) or trainer.default_root_dir)
    path = root / str(getattr(logger, "name", None) or _NAME)
    version = getattr(logger, "version", None)
    if version is None or version == "":
        return LogFolder(path, versioned=False)
    return LogFolder(path / (version if isinstance(version, str) else f"version_{version}"), versioned=True)


def _local(place: str | os.PathLike[str]) -> Path:
    return local_path(place, "dirpath is not given, and the log folder of the Trainer")


def own_folder(logs: LogFolder, name: str, *, former: Path | None, beside: Path | None = None) -> Path:
    """Choose the folder of a run: a new run gets one that no other run has used.

    Args:
        logs: folder of the first logger.
        name: of the folder.
        former: folder of this run before it was stopped; None for a new run. The run keeps it, unless its logger has
            another version now.
        beside: folder of another callback in the same fit, whose version this one shares.

    Raises:
        OSError: the folder cannot be read or written.
    """
    if former is not None and former.is_dir() and (not logs.versioned or former.parent == logs.path.absolute()):
        return former
    parent = logs.path if logs.versioned else _shared_version(logs.path, beside)
    if former is not None or not _is_used(parent / name):
        return parent / name
    numbered = (parent / f"{name}_{number}" for number in count(1))
    chosen = next(each for each in numbered if not _is_used(each))
    rank_zero_warn(f"{parent / name} holds another run; the dumps of this one go to {chosen}")
    return chosen


def _is_used(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _shared_version(path: Path, beside: Path | None) -> Path:
    return _new_version(path) if beside is None else beside.parent


def _new_version(path: Path) -> Path:
    """Make the next version of a folder; runs that start at the same time get different ones."""
    path.mkdir(parents=True, exist_ok=True)
    found = [_VERSION.fullmatch(each.name) for each in path.iterdir()]
    number = max(chain([-1], (int(each[1]) for each in found if each is not None))) + 1
    while True:
        version = path / f"version_{number}"
        try:
            version.mkdir()
        except FileExistsError:
            number += 1
        else:
            return version
