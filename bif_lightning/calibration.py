"""Sampler settings from the curvature of the loss, and the refusal of those that cannot work."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from bif_lightning.config import SGLD
from bif_lightning.noise import stream_seed
from bif_lightning.problem import Problem
from bif_lightning.weights import Host, Weights

INVERSE_TEMPERATURE = 1e4
"""nβ of the rule: with control variates the scores were the same from 1e4 to 1e6, and worse below."""

CONDITION = 100.0
"""κ of the rule: ratio of the largest curvature to the pull; the slowest mode relaxes in (κ + 1)/c steps."""

STEP_FRACTION = 0.5
"""c of the rule: ε·λ of the fastest mode. SGLD is unstable at 4; training may sharpen the loss meanwhile."""

_LIMIT = 4.0
_ITERATIONS = 12
_EXAMPLES = 512
_RELATIVE_STEP = 1e-3


def largest_curvature(problem: Problem, host: Host, seed: int = 0) -> float:
    """λmax, the largest Hessian eigenvalue of the mean loss at the snapshot, by power iteration.

    H·v = (∇L(w* + h·v) − ∇L(w* − h·v)) / 2h  needs first derivatives only, so it works where a second backward
    pass does not. On at most 512 training examples, spread over the set. From below: the true value is not
    smaller, but for the examples left out and the rounding of h. In nats per squared weight unit.
    """
    rows = torch.linspace(0, len(problem.training) - 1, min(_EXAMPLES, len(problem.training))).long().unique()
    batch = problem.minibatch(rows)
    weights: Weights = host.weights()
    bound = host.bind(weights)
    step = _RELATIVE_STEP * max(host.norm(host.center), 1e-3)

    def gradient(direction: Tensor, sign: float) -> Tensor:
        with torch.no_grad():
            torch.add(host.center, direction, alpha=sign * step, out=weights.flat)
        problem.gradient(host, weights, bound, batch)
        return weights.gradient.clone()

    generator = torch.Generator(host.device).manual_seed(stream_seed(seed, -1))
    direction = torch.zeros_like(host.center)
    for parameter, piece in enumerate(host.layout.pieces(direction)):
        host.fill_normal(piece, parameter, generator)
    curvature = 0.0
    for _ in range(_ITERATIONS):
        direction /= host.norm(direction)
        product = (gradient(direction, 1.0) - gradient(direction, -1.0)) / (2 * step)
        curvature = host.inner(product, direction)
        if host.norm(product) == 0:
            break
        direction = product
    return abs(curvature)


def curvature_rule(curvature: float) -> SGLD:
    """γ = nβ·λmax/κ,  ε = c/(nβ·λmax + γ), with nβ, κ and c above (Epifano's rule).

    Raises:
        ValueError: the loss is flat or not finite there, so that it sets no scale.
    """
    if not 0 < curvature < float("inf"):
        raise ValueError(
            f"the largest curvature of the loss is {curvature:g} at the snapshot, which sets no scale for the "
            "sampler; give sampler=SGLD(step_size=..., inverse_temperature=..., localization=...)"
        )
    stiffest = INVERSE_TEMPERATURE * curvature
    localization = stiffest / CONDITION
    step_size = STEP_FRACTION / (stiffest + localization)
    return SGLD(step_size=step_size, inverse_temperature=INVERSE_TEMPERATURE, localization=localization)


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


def settle(sampler: SGLD | Literal["auto"], settled: SGLD | None, problem: Problem, host: Host, seed: int) -> SGLD:
    """The settings of this snapshot.

    Args:
        sampler: as given; "auto" applies the curvature rule at the first snapshot and freezes nβ and γ.
        settled: what the first snapshot settled on; None at the first.

    Raises:
        ValueError: see `curvature_rule` and `check_stable` (checked at the first snapshot).
    """
    if sampler != "auto" and settled is not None:
        return sampler
    curvature = largest_curvature(problem, host, seed)
    if sampler != "auto":
        check_stable(sampler, curvature)
        return sampler
    return curvature_rule(curvature) if settled is None else steadied(settled, curvature)
