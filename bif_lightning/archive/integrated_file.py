"""What integrated.h5 holds: influence over the whole training, in a form that grows by each dump."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from bif_lightning.archive.schema import INTEGRATED, VERSION, Content, Variable, float64, int64, text_column
from bif_lightning.results.integrated import INTEGRATED_SIGN

SUMS = "integrated", "integrated_standard_error", "squares", "every_second"
"""The matrices, query x train: what `IntegratedInfluence` calls influence, standard_error, squares, every_second."""

LONG_NAMES = {
    "integrated": "influence summed over snapshots, in standard deviations of a query's column",
    "integrated_standard_error": "of the estimates of the snapshots, whatever their dependence",
    "squares": "sum over snapshots of the squares of what is summed",
    "every_second": "the same sum over the second, the fourth, ... snapshot",
}


def integrated_content(
    sums: Sequence[Float[np.ndarray, "query train"]],
    status: UInt8[np.ndarray, "step query"],
    digests: UInt8[np.ndarray, "step query byte"],
    steps: Sequence[int],
    created: Sequence[str],
    attrs: dict[str, str],
) -> Content:
    """The whole of integrated.h5.

    Args:
        sums: the matrices of `SUMS`.
        status, digests: of each column at each snapshot, as of `IntegratedInfluence`.
        steps, created: of the dumps that are in it, in the order of their steps.
        attrs: further root attributes (creator, time, digest of the examples).
    """
    query, train = sums[0].shape
    variables = [
        int64("train", np.arange(train), "row of the train axis", ("train",)),
        int64("query", np.arange(query), "row of the query axis", ("query",)),
        int64("step", steps, "global training step of each dump that is in the sum", ("step",)),
        text_column("created_utc", created, "when that dump was written", "step"),
        *(_sum(name, values) for name, values in zip(SUMS, sums, strict=True)),
        _bytes("status", status, ("step", "query"), "0 = the column repeats an earlier one, 1 = summed, 2 = no scale"),
        _bytes("digest", digests, ("step", "query", "byte"), "BLAKE2b of the column, 16 bytes"),
    ]
    root = {"schema": INTEGRATED, "schema_version": VERSION} | attrs
    return Content(variables=variables, attrs={"": root}, pure_dims={"byte": digests.shape[2]}, compressed=False)


def _sum(name: str, values: np.ndarray) -> Variable:
    long_name, dims = LONG_NAMES[name], ("query", "train")
    if name != "integrated":
        return float64(name, values, "1", long_name, dims)
    sign = {"sign": INTEGRATED_SIGN}
    return Variable(path=name, dims=dims, values=values, units="1", long_name=long_name, attrs=sign)


def _bytes(name: str, values: np.ndarray, dims: tuple[str, ...], long_name: str) -> Variable:
    return Variable(path=name, dims=dims, values=values, units="1", long_name=long_name)
