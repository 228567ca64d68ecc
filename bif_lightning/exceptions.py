"""The exceptions and warnings that bif_lightning raises for its users to catch.

Wrong arguments raise `ValueError` or `TypeError`, from the callback Lightning's `MisconfigurationException`. All other
failures have a class here. A snapshot that fails stops the training, or, with `BIFCallback(on_error="warn")`, is
skipped with a warning. Each class says where that is different.

>>> from bif_lightning import exceptions
>>> try:
...     raise exceptions.DiskFullError("no room for step=000000200.h5")
... except OSError as error:
...     print(error)
no room for step=000000200.h5
"""


class ChainsDivergedError(RuntimeError):
    """Too few chains of an estimate stayed finite to make a matrix of their draws.

    Raised by `estimate`, and so at a snapshot. The message names each diverged chain with its step and loss.
    What to do: halve the step size, or raise the localization.
    """


class LossRefusedError(ValueError):
    """The losses of single examples cannot be derived from the training step, or a `loss_fn` does not return them.

    Raised before training starts, by the callback as a `MisconfigurationException` with this class as its cause. The
    message says what was tried. What to do: pass a `loss_fn` that returns one loss for each example of a batch.
    """


class LossChangedError(ValueError):
    """Losses that were derived and checked before training do not hold on a later batch or at later weights.

    Raised at a snapshot: the loss of the step has become another function of its examples, as behind a branch that
    depends on the weights. What to do: pass a `loss_fn`.
    """


class UnreadableFileError(ValueError):
    """A dump or samples file is damaged, of another format, of a later major version, or refers to other files.

    Raised by `bif_lightning.archive.read`. What to do: restore the file from a copy, or upgrade bif_lightning where the
    message names a later version.
    """


class SkippedDumpWarning(UserWarning):
    """A dump, or a part of one, was left out of a run; the message names the file and the reason.

    Issued by `open_run` and by the functions that read from it. What to do: nothing, where the other steps are enough;
    `warnings.simplefilter("error", SkippedDumpWarning)` makes it an error.
    """


class UnreadableCheckpointError(ValueError):
    """A checkpoint is damaged, has gone, or holds no weights; other checkpoints may be sound.

    `attribute` and `watch` list such checkpoints in their report and go on with the others. What to do: name only the
    checkpoints that are whole, or save this one again.
    """


class TrainingDisturbedError(RuntimeError):
    """A snapshot could not restore some state of the training bitwise.

    Always stops the training, whose result would differ from that without the callback. The message names the state.
    What to do: restart from the last checkpoint, and report the model and the Trainer's arguments as a bug.
    """


class PreemptedError(RuntimeError):
    """The job received SIGTERM, so the snapshot that was running is given up to let the training save itself.

    The callback always catches it, and Lightning then ends the training as it does on SIGTERM. `attribute` and `watch`
    end.
    What to do: start the job again; it goes on with the snapshots that are missing.
    """


class PeerFailedError(RuntimeError):
    """Another rank failed in work that all ranks share, so this rank gives up the same work.

    Raised at a snapshot on all ranks that did not fail themselves. The message quotes the other rank's error. What to
    do: remove the cause of that error.

    Attributes:
        kinds: names of the types of the other ranks' errors.
    """

    def __init__(self, message: str, kinds: frozenset[str] = frozenset()) -> None:
        super().__init__(message)
        self.kinds = kinds


class OutOfStepError(RuntimeError):
    """The ranks no longer run the same code, so that no further collective call, training included, can succeed.

    Always stops the training. What to do: restart from the last checkpoint; the message names the ranks that do not
    answer.
    """


class DiskFullError(OSError):
    """The disk has no room for a file; the message has its path, the bytes needed and the bytes free.

    Raised at a snapshot; `attribute` and `watch` stop. What to do: free space, or choose another `dirpath`; with
    `precision="10bit"` a dump is about 40 % smaller.
    """
