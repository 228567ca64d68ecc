"""Find settings of SGLD by measurement at the snapshot, without labels.

The settings are a pull λ = γ/nβ, an inverse temperature nβ, a step size ε, a thinning k and a number of draws C·T. Each
is set by a criterion that short chains measure (`bif_lightning.calibration.pilot`):

    λ    the effective dimension is a tenth of the number of training examples, or less if there are few draws
    nβ   the losses are nearly linear over the range of the chains
    ε    c/(nβ·λmax + γ), with λmax the largest Hessian eigenvalue. It is halved if chains diverge. If that does not
         help, the loss has negative curvature at w*, and λ is raised. It is smaller if minibatch noise would heat the
         chains, since the minibatch share of a step's variance is proportional to ε
    k    successive draws are nearly uncorrelated
    C·T  a second estimate with as many draws would agree with this one

λ and nβ are measured instead of computed from the Hessian, since networks with ReLUs or maxima have none: finite
differences of their gradients contain jumps, which dominate all but the largest eigenvalues.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from bif_lightning.calibration.pilot import Pilot, run_pilot, small_problem
from bif_lightning.calibration.search import MOST_THINNING, WITHIN, SettingsSearch
from bif_lightning.config import SGLD, Chains
from bif_lightning.curvature.spectrum import gradient_noise
from bif_lightning.losses.problem import Problem
from bif_lightning.model.weights import WeightBackend
from bif_lightning.results.settings import ResolvedSettings
from bif_lightning.results.verdict import MOST_NOISE
from bif_lightning.sampling.sampler import ChainContext
from bif_lightning.sampling.sgld import SGLDSampler
from bif_lightning.sampling.stability import largest_curvature, shrink_step_size

EXAMPLES_PER_DIMENSION, DRAWS_PER_DIMENSION = 10, 8
"""d_eff is n/10, but at most an eighth of the draws: fewer draws per dimension give mostly noise."""

RELIABILITY = 0.75
"""Required agreement with a second estimate on groups of examples, a little more than the verdict requires."""

LEAST_DRAWS, MOST_DRAWS = 64, 800
"""Fewest and most draws of all chains together."""

MOST_STEPS = 12_800
"""Most steps between draws, of all chains together: with a long autocorrelation time there are fewer draws."""

MOST_COOLED = 4.0
"""Largest factor by which minibatch noise shortens the step and lengthens the chains. Larger minibatches would have the
same effect, but may not fit into memory."""

LASTING = 0.25
"""Share of the target that d_eff must reach for later snapshots to keep the settings. On four networks for digits,
d_eff was 0.25 to 1.3 of the target once training had made progress, and below 0.06 or negative in the first steps."""

_COOL = 0.5 * MOST_NOISE  # 8 gradients estimate the ratio within a factor of two
_ATTEMPTS = 12
_SNAPSHOT = -1  # a key that no snapshot uses


@dataclass(frozen=True)
class Trial:
    """A pilot, and the conclusion drawn from it."""

    pilot: Pilot
    conclusion: str


@dataclass(frozen=True)
class FoundSettings:
    """The settings found, and the measurements behind them.

    Attributes:
        sampler, chains: the settings.
        lasting: whether later snapshots may keep them.
        curvature: λmax, nats per squared weight unit.
        noise: λmax(F), the scale of the gradient noise of single examples (`spectrum.GradientNoise`).
        target: the target of the effective dimension.
        pilot: the pilot with these settings.
        trials: all pilots, in order.
        sound: whether the effective dimension is within the factor `WITHIN` of the target.
        minibatch_noise: noise ratio (`bias.noise_ratio`) of these settings.
    """

    sampler: SGLD
    chains: Chains
    lasting: bool
    curvature: float
    noise: float
    target: float
    pilot: Pilot
    trials: tuple[Trial, ...]
    sound: bool
    minibatch_noise: float = math.nan

    @property
    def resolved(self) -> ResolvedSettings:
        """The settings as a snapshot stores them."""
        return ResolvedSettings(self.sampler, self.chains, lasting=self.lasting)

    @property
    def plain_noise_ratio(self) -> float:
        """ε·(nβ)²·λmax(F)/4m: above 1, minibatches without control variates would heat the chains."""
        heat = self.sampler.step_size * self.sampler.inverse_temperature**2 * self.noise
        return heat / (4 * self.chains.batch_size)

    def __str__(self) -> str:
        sampler, chains, last = self.sampler, self.chains, self.pilot
        return (
            f"step_size {sampler.step_size:.3g}, inverse_temperature {sampler.inverse_temperature:.3g}, localization "
            f"{sampler.localization:.3g}; {chains.num_chains} chains x {chains.num_draws} draws, thinning "
            f"{chains.thinning}, burn-in {chains.burn_in} (largest curvature {self.curvature:.3g}, noise ratio "
            f"{self.minibatch_noise:.2g}, {self.plain_noise_ratio:.2g} without control variates, effective dimension "
            f"{last.dimension:.3g} for {self.target:.3g}, nonlinear share {last.nonlinearity:.2g}, autocorrelation "
            f"time {last.autocorrelation_time:.3g} steps; {len(self.trials)} pilots)"
        )


def find_settings(
    problem: Problem,
    backend: WeightBackend,
    chains: Chains | None,
    *,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> FoundSettings:
    """Find settings of SGLD by measurement at the snapshot.

    Args:
        chains: chains given by the user, used unchanged; None chooses draws, thinning and burn-in too.
        seed: seed of the random start of the power iteration.
        tick: called after every step of a pilot.

    Raises:
        ValueError: the loss is flat or not finite at the snapshot, or chains diverge with every setting.
    """
    given, small = chains or Chains(), small_problem(problem, backend, seed)
    curvature = _check_curvature(largest_curvature(problem, backend, replace(given, seed=seed)))
    target = dimension_for(
        len(problem.training), MOST_DRAWS if chains is None else chains.num_chains * chains.num_draws
    )
    search, trials = SettingsSearch(curvature, target), list[Trial]()
    while len(trials) < _ATTEMPTS:
        pilot = run_pilot(small, backend, search.sampler, given, search.spacing, tick=tick)
        trials.append(Trial(pilot, search.learn(pilot)))
        if search.done:
            break
    if search.best is None:
        last = trials[-1].pilot
        raise ValueError(
            f"chains did not stay near the snapshot in any of {len(trials)} pilots; the last, with step_size "
            f"{last.sampler.step_size:.3g} and localization {last.sampler.localization:.3g}: {trials[-1].conclusion}; "
            "give sampler=SGLD(step_size=..., inverse_temperature=..., localization=...), with more localization"
        )
    best = search.best
    heat = _noise_ratio(problem, backend, best.sampler, given)
    shorter = min(heat / _COOL, MOST_COOLED) if heat > _COOL else 1.0
    sampler = replace(best.sampler, step_size=best.sampler.step_size / shorter)
    off = best.dimension / target
    return FoundSettings(
        sampler=sampler,
        chains=chains or _chains_for(best, shorter),
        lasting=off >= LASTING,
        curvature=curvature,
        noise=gradient_noise(problem, backend).largest,
        target=target,
        pilot=best,
        trials=tuple(trials),
        sound=1 / WITHIN <= off <= WITHIN,
        minibatch_noise=heat / shorter,
    )


def _noise_ratio(problem: Problem, backend: WeightBackend, settings: SGLD, chains: Chains) -> float:
    prepared = SGLDSampler(settings).unprepared()
    context = ChainContext(
        problem=problem,
        backend=backend,
        kernel=prepared,
        chains=chains,
        snapshot=_SNAPSHOT,
        loss=math.nan,
        traces=False,
        tick=lambda: None,
        stochastic=problem.stochastic,
    )
    return prepared.noise_ratio(context)


def dimension_for(examples: int, draws: int) -> float:
    """Target of the effective dimension: n/10, and at most an eighth of the draws.

    >>> dimension_for(1000, 800), dimension_for(50_000, 800), dimension_for(20, 800)
    (100.0, 100.0, 2.0)
    """
    return max(1.0, min(examples / EXAMPLES_PER_DIMENSION, draws / DRAWS_PER_DIMENSION))


def provisional(chains: Chains | None) -> ResolvedSettings:
    """Settings that cost about as much as those of `find_settings`, for a forecast before it runs."""
    usual = Chains(num_draws=MOST_DRAWS // 2 // Chains().num_chains, thinning=10, burn_in=20)
    return ResolvedSettings(SGLD(step_size=1e-9, inverse_temperature=1.0, localization=1.0), chains or usual)


def _chains_for(pilot: Pilot, shorter: float) -> Chains:
    """Set thinning and burn-in by the autocorrelation time, and draws by the agreement of the pilot's chains.

    Args:
        pilot: pilot with the settings found.
        shorter: factor by which steps are shorter, and the autocorrelation time longer, than in the pilot.
    """
    default = Chains()
    correlated = 1.0 if math.isnan(pilot.autocorrelation_time) else pilot.autocorrelation_time * shorter
    thinning = max(1, min(MOST_THINNING, round(correlated)))
    needed = pilot.draws_for(RELIABILITY, thinning / shorter)
    draws = min(max(needed, LEAST_DRAWS), MOST_DRAWS, MOST_STEPS // thinning)
    return replace(
        default,
        num_draws=math.ceil(draws / default.num_chains),
        thinning=thinning,
        burn_in=min(math.ceil(2 * correlated), 4 * MOST_THINNING),
    )


def _check_curvature(curvature: float) -> float:
    if not 0 < curvature < float("inf"):
        raise ValueError(
            f"the largest curvature of the loss is {curvature:g} at the snapshot, which gives no scale for the "
            "settings; give sampler=SGLD(step_size=..., inverse_temperature=..., localization=...)"
        )
    return curvature


def found_settings(
    chains: Chains | None,
    earlier: ResolvedSettings | None,
    problem: Problem,
    backend: WeightBackend,
    tick: Callable[[], None] = lambda: None,
) -> ResolvedSettings:
    """Find the settings of a snapshot for "auto".

    They are measured until a snapshot finds lasting ones, and then kept, except for a step size that becomes too large.

    Args:
        chains: as given by the user.
        earlier: lasting settings of an earlier snapshot; None if there are none.
        tick: called after every step of a pilot.

    Raises:
        ValueError: see `find_settings`.
    """
    given = chains or Chains()
    if earlier is None:
        found = find_settings(problem, backend, chains, seed=given.seed, tick=tick)
        return replace(found.resolved, reasons=str(found))
    sharp = largest_curvature(problem, backend, given)
    return replace(earlier, sampler=shrink_step_size(cast(SGLD, earlier.sampler), sharp))
