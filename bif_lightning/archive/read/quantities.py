"""Names of the matrices of a run: which there are, and what to do where one is missing."""

from typing import Literal, get_args

import xarray as xr

from bif_lightning.archive.schema import LOSS

Quantity = Literal["influence", "correlation", "conditioned", "influence_draws"]


def check_quantity(by: str) -> None:
    """Refuse an unknown matrix.

    Raises:
        ValueError: it is unknown.
    """
    if by not in get_args(Quantity):
        raise ValueError(f"by is {by!r}; it must be 'influence', 'correlation', 'conditioned' or 'influence_draws'")


def variable(run: xr.Dataset, by: str, observable: str) -> str:
    """The name of a matrix of an observable in a run.

    Raises:
        ValueError: an unknown quantity or observable, or the run lacks the errors of the matrix.
    """
    check_quantity(by)
    name = by if observable == LOSS else f"{observable}_{by}"
    if name not in run:
        if by == "conditioned" and by not in run:
            raise ValueError(
                "the run has no conditioned influence: it is made of the draws of SGLD and Pairs, where "
                "Chains(ridge=...) is not None and draws are kept; rank by influence"
            )
        if by == "influence_draws" and by not in run:
            raise ValueError(
                "the run has no influence_draws: only dumps of ControlledSGLD have it, since the influence of SGLD and "
                "Pairs is that of the draws; rank by influence"
            )
        known = [str(each).removesuffix(f"_{by}") for each in run.data_vars if str(each).endswith(f"_{by}")]
        known = [LOSS, *(each for each in known if each != "label")]
        raise ValueError(f"the run has no observable {observable!r}; it has {', '.join(map(repr, known))}")
    if f"{name}_standard_error" not in run:
        raise ValueError(
            f"the run has {name} and no {name}_standard_error, which every dump is written with: some other program "
            "took it out; read the run from the dumps as they were written"
        )
    return name
