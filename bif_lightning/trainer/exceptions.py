"""What may go wrong with a snapshot, on this rank or another, and what it means for the training."""

from bif_lightning.distributed.watchdog import OutOfStepError, PeerFailedError
from bif_lightning.storage.atomic import FULL, DiskFullError


class TrainingDisturbedError(RuntimeError):
    """A snapshot left something of the training other than it was."""


class PreemptedError(RuntimeError):
    """The job is asked to end: the snapshot under way is given up, so that training can save itself in time."""


def is_preemption(error: Exception) -> bool:
    """Whether a snapshot ended because the job is asked to end, on this rank or another."""
    return PreemptedError.__name__ in _names(error)


def is_fatal(error: Exception) -> bool:
    """Whether training cannot go on after this error of a snapshot, on this rank or another."""
    return not _names(error).isdisjoint({TrainingDisturbedError.__name__, OutOfStepError.__name__})


def is_file_error(error: Exception) -> bool:
    """Whether an error, of this rank or another, is about files."""
    return isinstance(error, OSError) or _names(error) <= {cls.__name__ for cls in (OSError, *OSError.__subclasses__())}


def is_full(error: Exception) -> bool:
    """Whether there is no room for files, on this rank or another."""
    return DiskFullError.__name__ in _names(error) or (isinstance(error, OSError) and error.errno in FULL)


def _names(error: Exception) -> frozenset[str]:
    return error.kinds if isinstance(error, PeerFailedError) else frozenset({type(error).__name__})
