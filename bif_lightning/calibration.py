"""Settings of a sampler by measurement at the snapshot, without labels, and the refusal of those that cannot work.

A setting of SGLD is a pull λ = γ/nβ, a temperature nβ and a step ε. Each follows from one thing that short chains show
(`bif_lightning.pilot`):

    λ    its effective dimension is a tenth of the training examples, as far as the draws can fill it
    nβ   the losses are nearly linear over the reach of the chains
    ε    c/(nβ·λmax + γ), with λmax the largest Hessian eigenvalue; halved where chains run away, and where that
         does not help, since the loss curves downwards at w*, λ is raised
    k    draws have forgotten the one before

The first two are measured and not computed from the Hessian, since a network of ReLUs or maxima has none: differences
of its gradients over any distance hold jumps, which swamp all but the largest eigenvalues.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from bif_lightning.config import SGLD, Chains
from bif_lightning.curvature import gradient_noise, random_direction
from bif_lightning.hessian import Hessian
from bif_lightning.pilot import Pilot, run_pilot, small_problem
from bif_lightning.problem import Problem
from bif_lightning.search import MOST_THINNING, STEP_FRACTION, WITHIN, Aim
from bif_lightning.settled import Settled
from bif_lightning.weights import Host

EXAMPLES_PER_DIMENSION, DRAWS_PER_DIMENSION = 10, 4
"""d_eff is n/10, and a quarter of the draws at most: fewer draws see a posterior that they cannot tell from noise."""

LEAST_DRAWS, MOST_DRAWS = 64, 400
"""Draws of all chains."""

_LIMIT = 4.0
_ITERATIONS = 12
_ATTEMPTS = 12


@dataclass(frozen=True)
class Trial:
    """A pilot, and what was concluded from it."""

    pilot: Pilot
    conclusion: str


@dataclass(frozen=True)
class Calibrated:
    """The settings found, and how.

    Attributes:
        settled: the settings.
        curvature: λmax, nats per squared weight unit.
        noise: λmax(F), the scale of the gradient noise of single examples (`curvature.GradientNoise`).
        target: the effective dimension that was aimed at.
        pilot: of the settings found.
        trials: every pilot, in order.
        sound: whether the effective dimension is what was aimed at, up to the factor allowed.
    """

    settled: Settled
    curvature: float
    noise: float
    target: float
    pilot: Pilot
    trials: tuple[Trial, ...]
    sound: bool

    @property
    def plain_noise_ratio(self) -> float:
        """ε·(nβ)²·λmax(F)/4m: above 1, plain minibatches in place of control variates would heat the chains."""
        sampler = self.settled.sampler
        assert isinstance(sampler, SGLD)
        heat = sampler.step_size * sampler.inverse_temperature**2 * self.noise
        return heat / (4 * self.settled.chains.batch_size)

    def __str__(self) -> str:
        sampler, chains, last = self.settled.sampler, self.settled.chains, self.pilot
        assert isinstance(sampler, SGLD)
        return (
            f"step_size {sampler.step_size:.3g}, inverse_temperature {sampler.inverse_temperature:.3g}, localization "
            f"{sampler.localization:.3g}; {chains.num_chains} chains x {chains.num_draws} draws, thinning "
            f"{chains.thinning}, burn-in {chains.burn_in} (largest curvature {self.curvature:.3g}, noise ratio "
            f"{self.plain_noise_ratio:.2g} with plain minibatches, effective dimension {last.dimension:.3g} for "
            f"{self.target:.3g}, nonlinear share {last.nonlinearity:.2g}, memory {last.memory:.3g} steps; "
            f"{len(self.trials)} pilots)"
        )


def largest_curvature(problem: Problem, host: Host, seed: int = 0) -> float:
    """λmax, the largest Hessian eigenvalue of the mean loss at the snapshot, by power iteration.

    On at most 512 training examples, spread over the set. From below: the true value is not smaller, but for the
    examples left out. In nats per squared weight unit.
    """
    hessian = Hessian.of_training(problem, host, key=seed)
    direction, curvature = random_direction(host, seed, 0), 0.0
    for _ in range(_ITERATIONS):
        product = hessian.times(direction[None])[0]
        curvature = host.inner(product, direction)
        norm = host.norm(product)
        if norm == 0:
            break
        direction = product / norm
    return abs(curvature)


def find_settings(
    problem: Problem,
    host: Host,
    chains: Chains | None,
    *,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> Calibrated:
    """Find settings of SGLD by measurement at the snapshot.

    Args:
        chains: as given by the user, taken as they are; None chooses draws, thinning and burn-in too.
        seed: of the random start of the power iteration.
        tick: called after every step of a pilot.

    Raises:
        ValueError: the loss is flat or not finite at the snapshot, or chains run away with every setting.
    """
    curvature = _checked(largest_curvature(problem, host, seed))
    given, small = chains or Chains(), small_problem(problem, host, seed)
    target = dimension_for(
        len(problem.training), MOST_DRAWS if chains is None else chains.num_chains * chains.num_draws
    )
    aim, trials = Aim(curvature, target), list[Trial]()
    while len(trials) < _ATTEMPTS:
        pilot = run_pilot(small, host, aim.sampler, given, aim.spacing, tick=tick)
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
    settled = Settled(aim.best.sampler, chains or _chains_for(aim.best))
    noise = gradient_noise(problem, host).largest
    sound = target / WITHIN <= aim.best.dimension <= target * WITHIN
    return Calibrated(settled, curvature, noise, target, aim.best, tuple(trials), sound)


def dimension_for(examples: int, draws: int) -> float:
    """The effective dimension to aim at: n/10, and at most a quarter of the draws.

    >>> dimension_for(1000, 400), dimension_for(50_000, 400), dimension_for(20, 400)
    (100.0, 100.0, 2.0)
    """
    return max(1.0, min(examples / EXAMPLES_PER_DIMENSION, draws / DRAWS_PER_DIMENSION))


def provisional(chains: Chains | None) -> Settled:
    """Settings that take about as long as those that `find_settings` finds, before it can."""
    usual = Chains(num_draws=MOST_DRAWS // Chains().num_chains, thinning=10, burn_in=20)
    return Settled(SGLD(step_size=1e-9, inverse_temperature=1.0, localization=1.0), chains or usual)


def _chains_for(pilot: Pilot) -> Chains:
    """Draws by the effective dimension, thinning by the memory, and burn-in of two memories."""
    default = Chains()
    memory = 1.0 if math.isnan(pilot.memory) else pilot.memory
    draws = min(max(DRAWS_PER_DIMENSION * pilot.dimension, LEAST_DRAWS), MOST_DRAWS)
    return replace(
        default,
        num_draws=max(2, math.ceil(draws / default.num_chains)),
        thinning=max(1, min(MOST_THINNING, round(memory))),
        burn_in=min(math.ceil(2 * memory), 4 * MOST_THINNING),
    )


def _checked(curvature: float) -> float:
    if not 0 < curvature < float("inf"):
        raise ValueError(
            f"the largest curvature of the loss is {curvature:g} at the snapshot, which sets no scale for the "
            "sampler; give sampler=SGLD(step_size=..., inverse_temperature=..., localization=...)"
        )
    return curvature


def stiffness(sampler: SGLD, curvature: float) -> float:
    """ε·(nβ·λmax + γ): SGLD is unstable from 4 on, and its variance 1/(1 − that/4) too large below."""
    return sampler.step_size * (sampler.inverse_temperature * curvature + sampler.localization)


def check_stable(sampler: SGLD, curvature: float) -> None:
    """Refuse a step size with which every chain runs away, where that is known.

    Raises:
        ValueError: plain SGLD with ε·(nβ·λmax + γ) ≥ 4.
    """
    found = stiffness(sampler, curvature)
    if sampler.preconditioner is None and found >= _LIMIT:
        raise ValueError(
            f"step_size {sampler.step_size:g} x (inverse_temperature {sampler.inverse_temperature:g} x curvature "
            f"{curvature:.3g} + localization {sampler.localization:g}) = {found:.3g}: SGLD overshoots and every chain "
            f"diverges (it must be below 4, better about 1); lower step_size to {sampler.step_size / found:.2g}"
        )


def steadied(sampler: SGLD, curvature: float) -> SGLD:
    """The sampler with ε lowered to c/(nβ·λmax + γ) where the loss has become too sharp for it.

    The posterior, nβ and γ, stays; ε only says how finely the chain follows it.
    """
    found = stiffness(sampler, curvature)
    return sampler if found < 2.0 else replace(sampler, step_size=sampler.step_size * STEP_FRACTION / found)


def settle(
    sampler: SGLD | Literal["auto"], chains: Chains | None, settled: Settled | None, problem: Problem, host: Host
) -> Settled:
    """The settings of this snapshot.

    Args:
        sampler, chains: as given; "auto" measures at the first snapshot and freezes what it finds, all but a step size
            that later proves too long.
        settled: what the first snapshot settled on; None at the first.

    Raises:
        ValueError: see `find_settings` and `check_stable` (checked at the first snapshot).
    """
    seed = (chains or Chains()).seed
    if sampler == "auto":
        if settled is None:
            found = find_settings(problem, host, chains, seed=seed)
            return replace(found.settled, reasons=str(found))
        assert isinstance(settled.sampler, SGLD)
        return replace(settled, sampler=steadied(settled.sampler, largest_curvature(problem, host, seed)))
    if settled is None:
        check_stable(sampler, largest_curvature(problem, host, seed))
    return settled or Settled(sampler, chains or Chains())
