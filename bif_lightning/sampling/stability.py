"""How stiff the loss is at the snapshot, and the step sizes of SGLD that this allows."""

from dataclasses import replace

from bif_lightning.config import SGLD, Chains
from bif_lightning.curvature.hessian import EXAMPLES, Hessian, examples_in_a_pass
from bif_lightning.curvature.spectrum import random_direction
from bif_lightning.data.dataset import spread_rows
from bif_lightning.losses.problem import Problem
from bif_lightning.model.weights import WeightBackend

STEP_FRACTION = 1.0
"""c: ε·λ of the fastest mode. SGLD is unstable at 4; scores were the same from 0.5 to 2."""

_LIMIT = 4.0
_ITERATIONS = 12
_SCREENS = ((8, 6), (64, 6), (EXAMPLES, _ITERATIONS))  # examples, and steps of the power iteration


def largest_curvature(
    problem: Problem,
    backend: WeightBackend,
    chains: Chains,
    *,
    examples: int = EXAMPLES,
    iterations: int = _ITERATIONS,
) -> float:
    """λmax, the largest Hessian eigenvalue of the mean loss at the snapshot, by power iteration.

    On so many training examples at most, spread over the set. From below: the true value is not smaller, but for the
    examples left out. In nats per squared weight unit.
    """
    rows, chunk = spread_rows(len(problem.training), examples), examples_in_a_pass(chains.batch_size)
    hessian = Hessian.of_training(problem, backend, rows=rows, chunk=chunk, key=chains.seed)
    direction, curvature = random_direction(backend, chains.seed, 0), 0.0
    for _ in range(iterations):
        product = hessian.times(direction[None])[0]
        curvature = backend.inner(product, direction)
        norm = backend.norm(product)
        if norm == 0:
            break
        direction = product / norm
    return abs(curvature)


def stiffness(sampler: SGLD, curvature: float) -> float:
    """ε·(nβ·λmax + γ): SGLD is unstable from 4 on, and its variance 1/(1 − that/4) too large below."""
    return sampler.step_size * (sampler.inverse_temperature * curvature + sampler.localization)


def check_stable(sampler: SGLD, problem: Problem, backend: WeightBackend, chains: Chains) -> None:
    """Refuse a step size with which every chain runs away, where that is known.

    The largest eigenvalue is convex, so that of a few examples is on average larger than that of all: a step size that
    a few let pass is short enough, and more are looked at only for one that they do not.

    Raises:
        ValueError: plain SGLD with ε·(nβ·λmax + γ) ≥ 4.
    """
    if sampler.preconditioner is not None:
        return
    curvature = found = 0.0
    for examples, iterations in _SCREENS:
        curvature = largest_curvature(problem, backend, chains, examples=examples, iterations=iterations)
        found = stiffness(sampler, curvature)
        if found < _LIMIT / 2:
            return
    if found >= _LIMIT:
        raise ValueError(
            f"step_size {sampler.step_size:g} x (inverse_temperature {sampler.inverse_temperature:g} x curvature "
            f"{curvature:.3g} + localization {sampler.localization:g}) = {found:.3g}: SGLD overshoots and every chain "
            f"diverges (it must be below 4, better about 1); lower step_size to {sampler.step_size / found:.2g}"
        )


def shrink_step_size(sampler: SGLD, curvature: float) -> SGLD:
    """The sampler with ε in_weights to c/(nβ·λmax + γ) where the loss has become too sharp for it.

    The posterior, nβ and γ, stays; ε only says how finely the chain follows it.
    """
    found = stiffness(sampler, curvature)
    return sampler if found < 2.0 else replace(sampler, step_size=sampler.step_size * STEP_FRACTION / found)
