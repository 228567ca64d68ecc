"""What is measured around the chains of a snapshot to judge their bias, together and on all ranks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.bias import llc_ratio, noise_ratio
from bif_lightning.chain import Plan
from bif_lightning.control import control_influence
from bif_lightning.diagnostics import score_agreement
from bif_lightning.placement import Placement


@dataclass(frozen=True)
class Checks:
    """Measures of bias, the same on every rank.

    Attributes:
        noise_ratio, llc_ratio: see `bias`.
        control: influence on the scored queries without data; None where there is none.
        scored: which queries these are.
    """

    noise_ratio: float
    llc_ratio: float
    control: Float[Tensor, "train scored"] | None
    scored: Sequence[int]

    def agreement(self, influence: Float[np.ndarray, "train column"]) -> float:
        """Median over the scored queries of the Spearman correlation of an influence with the control's."""
        if self.control is None:
            return math.nan
        return score_agreement(torch.from_numpy(influence[:, list(self.scored)]).double(), self.control)


def check(plan: Plan, llc: float, scored: Sequence[int], workers: int, placement: Placement) -> Checks:
    """Measure. Collective.

    Args:
        plan: of the chains.
        llc: their local learning coefficient, nats.
        scored: queries whose influence is compared.
        workers: chains that this rank runs at once.
        placement: the ranks.
    """
    with placement.together("measuring the bias of the chains"):
        # Every rank measures the same; one that waited would save no time.
        ratios = noise_ratio(plan), llc_ratio(plan, llc)
    ratios = placement.from_first(ratios)
    return Checks(*ratios, control_influence(plan, scored, workers, placement), scored)
