"""What retraining says of a matrix of influences, and what the noise of the truth lets any matrix reach."""

import itertools
import math

import torch
from torch import Tensor

from bif_lightning.metrics import LinearDatamodelingScore, resampled_scores, two_way_standard_error
from bif_lightning.statistics.diagnostics import standard_ranks
from retraining.truth import Truth

RESAMPLES = 200


def lds(influence: Tensor, truth: Truth) -> float:
    """Linear datamodelling score: mean over queries."""
    return lds_with_error(influence, truth, resamples=0)[0]


def lds_with_error(influence: Tensor, truth: Truth, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The score and its standard error over subsets and queries."""
    metric = LinearDatamodelingScore(torch.as_tensor(influence), resamples=resamples)
    metric.update(truth.subsets, truth.losses.mean(1))
    found = metric.compute()
    return float(found["lds"]), float(found["lds_standard_error"])


def difference(one: Tensor, other: Tensor, truth: Truth) -> tuple[float, float]:
    """Score of one minus that of the other, and the standard error of this difference on the same truth."""
    retrained = truth.losses.mean(1).double()
    predicted = [truth.subsets.double() @ torch.as_tensor(part).double() for part in (one, other)]
    scores, again = (
        left - right
        for left, right in (
            [_per_query(part, retrained) for part in predicted],
            [resampled_scores(part, retrained, RESAMPLES) for part in predicted],
        )
    )
    scored = scores.isfinite()
    return float(scores[scored].mean()), float(two_way_standard_error(scores[scored], again[:, scored]))


def ceiling(truth: Truth) -> float:
    """The score of one half of the seeds for the other, mean over all ways to split them; NaN of one seed.

    Not corrected for the length of the halves (Spearman-Brown): the truth that methods are scored on has all seeds,
    so that a perfect method may lie somewhat above this.
    """
    seeds = range(truth.losses.shape[1])
    scores = list[float]()
    for half in itertools.combinations(seeds, len(seeds) // 2):
        rest = [seed for seed in seeds if seed not in half]
        one, other = truth.losses[:, list(half)].mean(1), truth.losses[:, rest].mean(1)
        scores.append(float(_per_query(one, other).nanmean()))
    return sum(scores) / len(scores) if truth.losses.shape[1] > 1 else math.nan


def _per_query(one: Tensor, other: Tensor) -> Tensor:
    return (standard_ranks(one) * standard_ranks(other)).mean(0)
