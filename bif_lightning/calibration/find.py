"""Settings of a sampler by measurement at the snapshot, without labels.

A setting of SGLD is a pull λ = γ/nβ, a temperature nβ and a step ε. Each follows from one thing that short chains show
(`bif_lightning.calibration.pilot`):

    λ    its effective dimension is a tenth of the training examples, as far as the draws can fill it
    nβ   the losses are nearly linear over the reach of the chains
    ε    c/(nβ·λmax + γ), with λmax the largest Hessian eigenvalue; halved where chains run away, and where that
         does not help, since the loss curves downwards at w*, λ is raised; shorter where minibatches would heat the
         chains, since their part in the variance of a step is proportional to it
    k    draws have forgotten the one before
    C·T  another estimate of as many draws would agree with this one

The first two are measured and not computed from the Hessian, since a network of ReLUs or maxima has none: differences
of its gradients over any distance hold jumps, which swamp all but the largest eigenvalues.
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
"""d_eff is n/10, and an eighth of the draws at most: fewer draws see a posterior that they cannot tell from noise."""

RELIABILITY = 0.75
"""Of the agreement with another estimate on groups of examples: a little more than the verdict asks for."""

LEAST_DRAWS, MOST_DRAWS = 64, 800
"""Draws of all chains."""

MOST_STEPS = 12_800
"""Steps between the draws of all chains: where draws forget slowly, there are fewer of them."""

MOST_COOLED = 4.0
"""The factor at most by which minibatches shorten the step, and lengthen the chains. Larger minibatches would do as
well, but nobody has said that memory has room for them."""

LASTING = 0.25
"""The share of its aim that d_eff has to reach for later snapshots to keep the settings. Of four networks of
digits, d_eff was 0.25 to 1.3 of it once training had begun to pay, and below 0.06, or negative, in the first steps."""

_COOL = 0.5 * MOST_NOISE  # 8 gradients tell the ratio within a factor of two
_ATTEMPTS = 12
_SNAPSHOT = -1  # keys noise that no snapshot uses


@dataclass(frozen=True)
class Trial:
    """A pilot, and what was concluded from it."""

    pilot: Pilot
    conclusion: str


@dataclass(frozen=True)
class FoundSettings:
    """The settings found, and how.

    Attributes:
        sampler, chains: the settings.
        lasting: whether later snapshots may keep them.
        curvature: λmax, nats per squared weight unit.
        noise: λmax(F), the scale of the gradient noise of single examples (`spectrum.GradientNoise`).
        target: the effective dimension that was aimed at.
        pilot: of the settings found.
        trials: every pilot, in order.
        sound: whether the effective dimension is what was aimed at, up to the factor allowed.
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
        """As a snapshot keeps them."""
        return ResolvedSettings(self.sampler, self.chains, lasting=self.lasting)

    @property
    def plain_noise_ratio(self) -> float:
        """ε·(nβ)²·λmax(F)/4m: above 1, plain minibatches in place of control variates would heat the chains."""
        heat = self.sampler.step_size * self.sampler.inverse_temperature**2 * self.noise
        return heat / (4 * self.chains.batch_size)

    def __str__(self) -> str:
        sampler, chains, last = self.sampler, self.chains, self.pilot
        return (
            f"step_size {sampler.step_size:.3g}, inverse_temperature {sampler.inverse_temperature:.3g}, localization "
            f"{sampler.localization:.3g}; {chains.num_chains} chains x {chains.num_draws} draws, thinning "
            f"{chains.thinning}, burn-in {chains.burn_in} (largest curvature {self.curvature:.3g}, noise ratio "
            f"{self.minibatch_noise:.2g}, {self.plain_noise_ratio:.2g} without control variates, effective dimension "
            f"{last.dimension:.3g} for {self.target:.3g}, nonlinear share {last.nonlinearity:.2g}, memory "
            f"{last.memory:.3g} steps; {len(self.trials)} pilots)"
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
        chains: as given by the user, taken as they are; None chooses draws, thinning and burn-in too.
        seed: of the random start of the power iteration.
        tick: called after every step of a pilot.

    Raises:
        ValueError: the loss is flat or not finite at the snapshot, or chains run away with every setting.
    """
    given, small = chains or Chains(), small_problem(problem, backend, seed)
    curvature = _checked(largest_curvature(problem, backend, replace(given, seed=seed)))
    target = dimension_for(
        len(problem.training), MOST_DRAWS if chains is None else chains.num_chains * chains.num_draws
    )
    aim, trials = SettingsSearch(curvature, target), list[Trial]()
    while len(trials) < _ATTEMPTS:
        pilot = run_pilot(small, backend, aim.sampler, given, aim.spacing, tick=tick)
        trials.append(Trial(pilot, aim.learn(pilot)))
        if aim.done:
            break
    if aim.best is None:
        last = trials[-1].pilot
        raise ValueError(
            f"chains did not stay near the snapshot in any of {len(trials)} pilots; the last, with step_size "
            f"{last.sampler.step_size:.3g} and localization {last.sampler.localization:.3g}: {trials[-1].conclusion}; "
            "give sampler=SGLD(step_size=..., inverse_temperature=..., localization=...), with more localization"
        )
    best = aim.best
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
    """The effective dimension to aim at: n/10, and at most an eighth of the draws.

    >>> dimension_for(1000, 800), dimension_for(50_000, 800), dimension_for(20, 800)
    (100.0, 100.0, 2.0)
    """
    return max(1.0, min(examples / EXAMPLES_PER_DIMENSION, draws / DRAWS_PER_DIMENSION))


def provisional(chains: Chains | None) -> ResolvedSettings:
    """Settings that take about as long as those that `find_settings` finds, before it can."""
    usual = Chains(num_draws=MOST_DRAWS // 2 // Chains().num_chains, thinning=10, burn_in=20)
    return ResolvedSettings(SGLD(step_size=1e-9, inverse_temperature=1.0, localization=1.0), chains or usual)


def _chains_for(pilot: Pilot, shorter: float) -> Chains:
    """Thinning by the memory, burn-in of two memories, and draws by how far the chains of the pilot agree.

    Args:
        pilot: of the settings.
        shorter: the factor by which steps are shorter than the pilot's, and the memory of the chains longer.
    """
    default = Chains()
    memory = 1.0 if math.isnan(pilot.memory) else pilot.memory * shorter
    thinning = max(1, min(MOST_THINNING, round(memory)))
    needed = pilot.draws_for(RELIABILITY, thinning / shorter)
    draws = min(max(needed, LEAST_DRAWS), MOST_DRAWS, MOST_STEPS // thinning)
    return replace(
        default,
        num_draws=math.ceil(draws / default.num_chains),
        thinning=thinning,
        burn_in=min(math.ceil(2 * memory), 4 * MOST_THINNING),
    )


def _checked(curvature: float) -> float:
    if not 0 < curvature < float("inf"):
        raise ValueError(
            f"the largest curvature of the loss is {curvature:g} at the snapshot, which sets no scale for the "
            "sampler; give sampler=SGLD(step_size=..., inverse_temperature=..., localization=...)"
        )
    return curvature


def found_settings(
    chains: Chains | None,
    earlier: ResolvedSettings | None,
    problem: Problem,
    backend: WeightBackend,
    tick: Callable[[], None] = lambda: None,
) -> ResolvedSettings:
    """The settings of this snapshot by "auto".

    They are measured until they last, then frozen, all but a step size that later proves too long.

    Args:
        chains: as given by the user.
        earlier: what an earlier snapshot found; None where none did.
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
