"""The search for settings of SGLD, one pilot after the other: what each showed decides the next."""

import math
from typing import cast

from bif_lightning.calibration.pilot import Pilot
from bif_lightning.config import SGLD
from bif_lightning.sampling.stability import STEP_FRACTION

INVERSE_TEMPERATURE = 1e4
"""nβ to begin with."""

MOST_INVERSE_TEMPERATURE = 1e8
"""nβ at most: above it the differences of losses sink into their rounding in single precision."""

MOST_NONLINEARITY = 0.1
"""Share of the even parts in the variance of losses. On digits the conditioned scores rose from .42 to .47 (MLP) on the
way from .24 to .06, and stayed below."""

WITHIN = 1.5
"""The factor within which d_eff is met: scores change little over a factor of three in λ."""

CONDITION, MOST_CONDITION = 30.0, 300.0
"""κ = λmax/λ to begin with, and at most: the slowest mode relaxes in 2κ/c steps."""

MOST_THINNING = 32
"""Steps between draws at most."""

_TOLERATED = 2 * MOST_NONLINEARITY  # where a smaller posterior did not help
_FAR = 100.0


class SettingsSearch:
    """The setting to try next, and whether the last one will do.

    Args:
        curvature: λmax, nats per squared weight unit.
        target: the effective dimension to aim at.

    Attributes:
        done: the search is over.
        best: the pilot that came nearest to the target, of those whose chains stayed near the snapshot.
    """

    def __init__(self, curvature: float, target: float) -> None:
        self.curvature, self.target = curvature, target
        self.pull = curvature / CONDITION
        self.inverse_temperature = INVERSE_TEMPERATURE
        self.fraction = STEP_FRACTION
        self.done, self.best = False, cast(Pilot | None, None)
        self._least = curvature / MOST_CONDITION
        self._share = math.inf

    @property
    def sampler(self) -> SGLD:
        """The setting to try."""
        scale = self.inverse_temperature
        stiffest = scale * (self.curvature + self.pull)
        return SGLD(step_size=self.fraction / stiffest, inverse_temperature=scale, localization=scale * self.pull)

    @property
    def spacing(self) -> int:
        """A tenth of κ/c: the draws of a pilot then span the relaxation of the slowest mode."""
        return max(1, min(MOST_THINNING, round(self.curvature / self.pull / self.fraction / 10)))

    def learn(self, pilot: Pilot) -> str:
        """Take in what the pilot of the present setting showed."""
        if pilot.diverged:
            if self.fraction == STEP_FRACTION:
                self.fraction /= 2
                return f"diverged ({pilot.diverged})"
            return f"diverged ({pilot.diverged}){self._pull_harder()}"
        if self._too_curved(pilot.nonlinearity):
            self._share = pilot.nonlinearity
            self.inverse_temperature *= 10
            return f"not local: nonlinear share {pilot.nonlinearity:.2f}"
        if pilot.dimension < -self.target:
            return f"falls away from the snapshot: effective dimension {pilot.dimension:.3g}{self._pull_harder()}"
        return self._compare(pilot)

    def _pull_harder(self) -> str:
        """The loss curves downwards at w*, and only the pull holds the chains."""
        if self.best is not None and self.best.nonlinearity <= _TOLERATED:
            self.done = True
            return ", so back to the best so far"
        self.pull *= 4
        self._least = self.pull
        # What looked like curvature was the fall.
        self.inverse_temperature, self._share = INVERSE_TEMPERATURE, math.inf
        return ", so localization up"

    def _too_curved(self, share: float) -> bool:
        # Where it does not fall, it is not the curvature but the rounding (of half precision) that is seen.
        falls = share < 0.8 * self._share
        room = self.inverse_temperature * 10 <= MOST_INVERSE_TEMPERATURE
        return share > MOST_NONLINEARITY and falls and room

    def _compare(self, pilot: Pilot) -> str:
        before, off = self.pull, self._off(pilot) % _FAR
        if self.best is None or self._off(pilot) < self._off(self.best):
            self.best = pilot
        if off > math.log(WITHIN):
            ratio = min(max(pilot.dimension / self.target, 0.1), 10.0)
            self.pull = max(self.pull * ratio, self._least)
        self.done = self.pull == before
        word = "" if self.done else f", so localization {'up' if self.pull > before else 'down'}"
        return f"effective dimension {pilot.dimension:.3g} for {self.target:.3g}{word}"

    def _off(self, pilot: Pilot) -> float:
        """How far the effective dimension is from the aim, in logarithms; far more where losses are not local."""
        curved = _FAR if pilot.nonlinearity > _TOLERATED else 0.0
        return curved + abs(math.log(max(pilot.dimension / self.target, 1e-3)))
