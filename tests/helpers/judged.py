"""Estimates that are put together by hand, with the verdict that the engine would give them."""

from dataclasses import replace

from bif_lightning import judge
from bif_lightning.results.estimate import Estimate


def judged(estimate: Estimate) -> Estimate:
    """The estimate with its verdict."""
    return replace(estimate, verdict=judge(estimate))
