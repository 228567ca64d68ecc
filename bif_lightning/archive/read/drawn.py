"""The draws of a dump, for errors of sums over queries."""

import json
import os

import numpy as np
from jaxtyping import Int

from bif_lightning.archive.read.traces import open_traces
from bif_lightning.archive.read.untrusted import find, open_file, present, require
from bif_lightning.archive.schema import DUMP
from bif_lightning.config import Chains
from bif_lightning.exceptions import UnreadableFileError
from bif_lightning.statistics.aggregate import Draws

_DRAWN = "SGLD", "Pairs"
"""Samplers whose matrices are the covariances of their draws; those of others are in closed form."""


def draws_behind(
    path: str | os.PathLike[str],
    observable: str,
    train: Int[np.ndarray, " train"],
    columns: Int[np.ndarray, " column"],
    most: int | None = None,
) -> Draws | None:
    """The draws behind some rows and columns of a matrix; None where the dump has none, or entries are not of them.

    Args:
        path: the dump.
        observable: its name; "loss" for the losses of the queries.
        train, columns: positions.
        most: bytes of all losses of train examples beyond which the draws are taken as not there; None for no limit.

    Raises:
        UnreadableFileError: the file is damaged, of another format, or of a later version.
        OSError: the system does not let it be read.
    """
    with open_file(path, DUMP) as file:
        settings = find(file, "settings_json") if present(file, "traces/train_loss") else None
        if settings is None or (most is not None and require(file, "traces/train_loss").nbytes > most):
            return None
        values = json.loads(str(settings.asstr()[()]))
    kind = values.get("sampler", {}).get("kind")
    traces = open_traces(path)
    found = traces.columns.get(observable)
    if kind not in _DRAWN or found is None:
        return None
    try:
        used = {name: values["chains"][name] for name in ("num_chains", "num_draws", "centring")}
    except KeyError as error:
        raise UnreadableFileError(f"{os.fspath(path)}: its settings lack {error} of the chains") from error
    return Draws(traces.train[:, :, train], found[:, :, columns], Chains(**used), paired=kind == "Pairs")
