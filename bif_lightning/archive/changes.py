"""Changes over training that are none of the Monte Carlo error: flips of the sign, peaks and troughs."""

import numpy as np
import pandas as pd
import xarray as xr

from bif_lightning.archive.bands import found_changes
from bif_lightning.archive.tables import Quantity, trajectory


def changes(run: xr.Dataset, train: int | str, query: int | str, by: Quantity = "correlation") -> pd.DataFrame:
    """Where the influence of one train example on one query's loss changes for certain.

    All steps are judged together by the simultaneous band of `trajectory`, so that a run without any change shows one
    with a probability of 5 % at most, however many steps it has.

    Args:
        run: from `open_run`.
        train, query: row number or id of each.
        by: "correlation" compares over steps; "influence" scales with the local curvature.

    Returns:
        columns kind, step, value, before, after, in the order of the steps. A "flip" is a step whose band lies on the
        other side of 0 than that of the step `before`, the last one whose band excludes 0. A "peak" (or "trough") is
        the highest (lowest) step between `before` and `after`, whose bands lie below (above) its own; `after` of a flip
        is its own step.

    Raises:
        ValueError: an unknown example or quantity; the message lists what is near.
    """
    of = trajectory(run, train, query, by)
    arrays = (of[name].to_numpy(np.float64) for name in ("value", "band_low", "band_high"))
    return pd.DataFrame(
        found_changes(of["step"].tolist(), *arrays), columns=["kind", "step", "value", "before", "after"]
    )
