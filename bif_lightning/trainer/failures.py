"""Which errors of a snapshot, on this rank or another, end the training."""

from bif_lightning.exceptions import (
    DiskFullError,
    OutOfStepError,
    PeerFailedError,
    PreemptedError,
    TrainingDisturbedError,
)
from bif_lightning.storage.atomic import FULL


def is_preemption(error: Exception) -> bool:
    """Whether a snapshot ended because this rank or another received SIGTERM."""
    return PreemptedError.__name__ in _names(error)


def is_fatal(error: Exception) -> bool:
    """Whether training cannot continue after this error of a snapshot, on this rank or another."""
    return not _names(error).isdisjoint({TrainingDisturbedError.__name__, OutOfStepError.__name__})


def is_file_error(error: Exception) -> bool:
    """Whether this rank or another failed to read or write a file."""
    return isinstance(error, OSError) or _names(error) <= {cls.__name__ for cls in (OSError, *OSError.__subclasses__())}


def is_full(error: Exception) -> bool:
    """Whether the disk of this rank or another is full."""
    return DiskFullError.__name__ in _names(error) or (isinstance(error, OSError) and error.errno in FULL)


def _names(error: Exception) -> frozenset[str]:
    return error.kinds if isinstance(error, PeerFailedError) else frozenset({type(error).__name__})
