"""Which sampler: the one place that reads the kind of a sampler's settings, and the default."""

from typing import Literal

from bif_lightning import config
from bif_lightning.config import SGLD, ControlledSGLD, Pairs, Subspace
from bif_lightning.curvature.gradients import why_no_single_gradients
from bif_lightning.losses.problem import Problem
from bif_lightning.results.estimate import Estimate, Verdict
from bif_lightning.results.verdict import first_of
from bif_lightning.sampling.controlled import ControlledSampler
from bif_lightning.sampling.pairs import PairsSampler
from bif_lightning.sampling.sampler import Sampler
from bif_lightning.sampling.sgld import SGLDSampler
from bif_lightning.sampling.subspace import SubspaceSampler


def sampler_of(settings: config.Sampler) -> Sampler:
    """The sampler that these settings describe."""
    match settings:
        case SGLD():
            return SGLDSampler(settings)
        case Pairs():
            return PairsSampler(settings)
        case Subspace():
            return SubspaceSampler(settings)
        case ControlledSGLD():
            return ControlledSampler(settings)


def default_settings(problem: Problem) -> ControlledSGLD | Literal["auto"]:
    """`ControlledSGLD`; "auto" where gradients of single examples cannot be had, and for single tokens.

    Of all samplers whose draws follow the true loss it predicted retraining best, as well as the closed form
    (benchmarks/lds.py). Of single tokens it knows only what lies within the span of its directions.
    """
    if problem.tokens is not None or why_no_single_gradients(problem) is not None:
        return "auto"
    return ControlledSGLD()


def judge(estimate: Estimate) -> Verdict:
    """Whether a snapshot can be trusted: a word, a sentence with the numbers, and the setting to change.

    The checks are those of the sampler that made it, in the order of harm; the first that fails is the verdict
    (`results.verdict`).

    >>> from bif_lightning import judge
    >>> judge(snapshot).word in ("good", "noisy", "drifting", "not local", "diverged")  # of an Estimate
    True
    """
    return first_of(sampler_of(estimate.sampler).checks(estimate), estimate)
