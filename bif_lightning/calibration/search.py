"""Sequential search for settings of SGLD: the result of each pilot determines the settings of the next."""

import math
from typing import cast

from bif_lightning.calibration.pilot import Pilot
from bif_lightning.config import SGLD
from bif_lightning.sampling.stability import STEP_FRACTION

INVERSE_TEMPERATURE = 1e4
"""Initial nβ."""

MOST_INVERSE_TEMPERATURE = 1e8
"""Largest nβ: above it, differences of losses are lost to rounding in single precision."""

MOST_NONLINEARITY = 0.1
"""Largest share of the even parts in the variance of losses. For an MLP on digits, conditioned scores rose from .42 to
.47 as the share fell from .24 to .06, and did not rise further."""

WITHIN = 1.5
"""Tolerated factor between d_eff and its target: scores change little over a factor of three in λ."""

CONDITION, MOST_CONDITION = 30.0, 300.0
"""Initial and largest κ = λmax/λ: the slowest mode relaxes in 2κ/c steps."""

MOST_THINNING = 32
"""Most steps between draws."""

_TOLERATED = 2 * MOST_NONLINEARITY  # if a narrower posterior did not help
_FAR = 100.0


class SettingsSearch:
    """The state of the search: the settings to try next, and whether the last ones are accepted.

    Args:
        curvature: λmax, nats per squared weight unit.
        target: target of the effective dimension.

    Attributes:
        done: whether the search has ended.
        best: the pilot closest to the target, of those whose chains stayed near the snapshot.
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
        """The settings to try next."""
        scale = self.inverse_temperature
        stiffest = scale * (self.curvature + self.pull)
        return SGLD(step_size=self.fraction / stiffest, inverse_temperature=scale, localization=scale * self.pull)

    @property
    def spacing(self) -> int:
        """Steps between draws, a tenth of κ/c: a pilot then covers the relaxation time of the slowest mode."""
        return max(1, min(MOST_THINNING, round(self.curvature / self.pull / self.fraction / 10)))

    def learn(self, pilot: Pilot) -> str:
        """Update the search with the pilot of the current settings, and return the conclusion in words."""
        if pilot.diverged:
            if self.fraction == STEP_FRACTION:
                self.fraction /= 2
                return f"diverged ({pilot.diverged})"
            return f"diverged ({pilot.diverged}){self._raise_pull()}"
        if self._is_nonlinear(pilot.nonlinearity):
            self._share = pilot.nonlinearity
            self.inverse_temperature *= 10
            return f"not local: nonlinear share {pilot.nonlinearity:.2f}"
        if pilot.dimension < -self.target:
            return f"falls away from the snapshot: effective dimension {pilot.dimension:.3g}{self._raise_pull()}"
        return self._compare(pilot)

    def _raise_pull(self) -> str:
        """Raise the pull, since the loss has negative curvature at w* and only the pull holds the chains."""
        if self.best is not None and self.best.nonlinearity <= _TOLERATED:
            self.done = True
            return ", so back to the best so far"
        self.pull *= 4
        self._least = self.pull
        # The nonlinearity so far came from chains moving away, not from curvature.
        self.inverse_temperature, self._share = INVERSE_TEMPERATURE, math.inf
        return ", so localization up"

    def _is_nonlinear(self, share: float) -> bool:
        # A share that does not fall comes from rounding (in half precision), not from curvature.
        falls = share < 0.8 * self._share
        room = self.inverse_temperature * 10 <= MOST_INVERSE_TEMPERATURE
        return share > MOST_NONLINEARITY and falls and room

    def _compare(self, pilot: Pilot) -> str:
        before, off = self.pull, self._distance(pilot) % _FAR
        if self.best is None or self._distance(pilot) < self._distance(self.best):
            self.best = pilot
        if off > math.log(WITHIN):
            ratio = min(max(pilot.dimension / self.target, 0.1), 10.0)
            self.pull = max(self.pull * ratio, self._least)
        self.done = self.pull == before
        word = "" if self.done else f", so localization {'up' if self.pull > before else 'down'}"
        return f"effective dimension {pilot.dimension:.3g} for {self.target:.3g}{word}"

    def _distance(self, pilot: Pilot) -> float:
        """Log distance of the effective dimension from its target, plus a penalty if losses are nonlinear."""
        curved = _FAR if pilot.nonlinearity > _TOLERATED else 0.0
        return curved + abs(math.log(max(pilot.dimension / self.target, 1e-3)))
