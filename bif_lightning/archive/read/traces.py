"""Read the draws of a dump, if it stores them."""

import os

import numpy as np

from bif_lightning.archive.read.untrusted import find, members, open_file, require
from bif_lightning.archive.schema import DUMP
from bif_lightning.results.estimate import Traces

_AXES = ("chain", "draw", "train_loss")


def open_traces(dump: str | os.PathLike[str]) -> Traces:
    """Every recorded draw of one dump: enough to compute another estimator, or the same with other settings.

    Args:
        dump: the file, `step=000006000.h5`.

    Raises:
        ValueError: the dump has no traces: `store_traces=True` of the callback keeps them.
        UnreadableFileError: the file is damaged, of another format, or of a later version.

    >>> from bif_lightning import open_traces
    >>> traces = open_traces(folder / "step=000000200.h5")
    >>> traces.train.shape, traces.columns["loss"].shape  # chain x draw x example
    ((4, 20, 24), (4, 20, 6))
    """
    with open_file(dump, DUMP) as file:
        if find(file, "traces/train_loss") is None:
            raise ValueError(
                f"{os.fspath(dump)} has no traces; give the callback store_traces=True, which keeps every draw"
            )
        names = [name for name in members(file, "traces") if name not in _AXES and not name.endswith("_column")]
        columns = {name: np.asarray(require(file, f"traces/{name}")[()], np.float32) for name in names}
        columns = {name: values for name, values in columns.items() if values.ndim == 3}
        return Traces(train=np.asarray(require(file, "traces/train_loss")[()], np.float32), columns=columns)
