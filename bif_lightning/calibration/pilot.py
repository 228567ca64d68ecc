"""A pilot: two short chains that show how large, how linear and how slow the posterior of given settings is.

Every draw w is looked at together with its mirror image w̄ = 2w* − w, a draw just as likely where w* is the mode and the
posterior is symmetric. With l_i the loss of example i, and l̄ its value at w̄,

    odd part    (l_i − l̄_i)/2            what losses that are linear around w* would show
    even part   (l_i + l̄_i)/2 − l_i(w*)  what curvature adds

The mean of the even part over examples and draws, times 2nβ, is the effective dimension tr nβH(nβH + γI)⁻¹ of a
Gaussian posterior: twice the local learning coefficient, without the share of the gradient at w*, whose noise covers it
where training has not ended.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.config import SGLD, Chains
from bif_lightning.losses.problem import Problem
from bif_lightning.model.weights import WeightBackend
from bif_lightning.rng import DATA, seed_global, stream_seed
from bif_lightning.sampling.divergence import left_posterior
from bif_lightning.sampling.sampler import ChainContext, ChainState
from bif_lightning.sampling.sgld import SGLDSampler
from bif_lightning.statistics.diagnostics import group_agreement

CHAINS, DRAWS = 2, 24
"""Chains of a pilot, and draws of each."""

EXAMPLES = 512
"""Train examples that a pilot measures, spread over the set; all of them where there are fewer."""

_SNAPSHOT = -1  # keys noise that no snapshot uses
_SETTLING = 4  # the first quarter of the draws is left out


@dataclass(frozen=True)
class Pilot:
    """What the pilot of one setting showed.

    Attributes:
        sampler: the setting.
        spacing: steps from one draw to the next.
        loss: mean train loss at each draw, nats; NaN from the draw on at which a chain left the posterior.
        snapshot_loss: that at w*.
        diverged: why a chain left the posterior; empty if none did.
        dimension: effective dimension, see above; NaN if diverged, as all that follows.
        nonlinearity: share of the even parts in the variance of the single losses, 0 to 1.
        memory: steps in which the odd parts forget, 1/e of their correlation left.
        agreement: of the two chains, on the influence of random groups of examples (`diagnostics.group_agreement`).
    """

    sampler: SGLD
    spacing: int
    loss: Float[Tensor, "chain draw"]
    snapshot_loss: float
    diverged: str = ""
    dimension: float = math.nan
    nonlinearity: float = math.nan
    memory: float = math.nan
    agreement: float = math.nan

    def draws_for(self, reliability: float, thinning: float) -> float:
        """Draws, so many steps apart, with which two estimates would agree so far on groups of examples.

        Estimates of N independent draws each agree at N/(N + D), and D follows from the chains of the pilot, whose
        draws count as independent: what they lack of that, they also lack of the spread of longer chains. Draws that
        are k steps apart, and so correlated by e^{−k/m} at a memory of m steps, are worth N·tanh(k/m) of them.
        Infinite where the chains of the pilot do not agree at all.
        """
        if not self.agreement > 0:
            return math.inf
        unresolved = (DRAWS - DRAWS // _SETTLING) * (1 - self.agreement) / self.agreement
        worth = math.tanh(thinning / self.memory) if self.memory > 0 else 1.0
        return unresolved * reliability / (1 - reliability) / worth


def small_problem(problem: Problem, backend: WeightBackend, seed: int) -> Problem:
    """The same problem with at most `EXAMPLES` train examples, and without other queries."""
    count = len(problem.train)
    rows = range(count) if count <= EXAMPLES else [int(row) for row in torch.linspace(0, count - 1, EXAMPLES)]
    train = problem.train
    examples = type(train)(train.dataset, train.collate, [train.rows[row] for row in rows])
    small = replace(problem, train=examples, query=examples, observables=())
    small.twins, small.stochastic, small.loaded = problem.twins, problem.stochastic, True
    seed_global(backend.device, stream_seed(seed, DATA))
    _ = small.train_batches  # read here, and not where chains are keyed
    return small


def run_pilot(
    small: Problem,
    backend: WeightBackend,
    sampler: SGLD,
    chains: Chains,
    spacing: int,
    *,
    draws: int = DRAWS,
    tick: Callable[[], None] = lambda: None,
) -> Pilot:
    """Run the chains of a pilot.

    Args:
        small: see `small_problem`.
        chains: minibatch size and seed are taken from it.
        spacing: steps from one draw to the next.
        tick: called after every step.
    """
    context = ChainContext(
        problem=small,
        backend=backend,
        kernel=SGLDSampler(sampler).unprepared(),
        chains=replace(chains, num_chains=CHAINS, num_draws=draws, burn_in=0, thinning=spacing),
        snapshot=_SNAPSHOT,
        loss=math.nan,
        traces=True,
        tick=tick,
        stochastic=small.stochastic,
    )
    found = [_walk(context, chain) for chain in range(CHAINS)]
    loss = torch.stack([chain.loss for chain in found])
    why = next((chain.diverged for chain in found if chain.diverged), "")
    snapshot_loss = float(found[0].center.mean())
    if why:
        return Pilot(sampler, spacing, loss, snapshot_loss, why)
    odd = torch.stack([chain.odd for chain in found])
    even = torch.stack([chain.even for chain in found])
    start = draws // _SETTLING
    return Pilot(
        sampler,
        spacing,
        loss,
        snapshot_loss,
        dimension=2 * sampler.inverse_temperature * float(even[:, start:].mean()),
        nonlinearity=_nonlinearity(odd[:, start:], even[:, start:]),
        memory=_memory(odd[:, start:], spacing),
        agreement=_agreement(odd[:, start:]),
    )


@dataclass
class _Walk:
    center: Float[Tensor, " train"]
    loss: Float[Tensor, " draw"]
    odd: Float[Tensor, "draw train"]
    even: Float[Tensor, "draw train"]
    diverged: str = ""


def _walk(context: ChainContext, chain: int) -> _Walk:
    kernel = context.kernel
    state, mirror = kernel.start(context, chain), ChainState(context, chain)
    center, count = state.measure(0, 0).train.cpu().double(), context.chains.num_draws
    odd, even = (torch.full((count, len(center)), math.nan, dtype=center.dtype) for _ in range(2))
    walk = _Walk(center, torch.full((count,), math.nan, dtype=center.dtype), odd, even)
    for draw in range(count):
        for step in range(draw * context.chains.thinning, (draw + 1) * context.chains.thinning):
            kernel.draw(state, step)
            context.tick()
        with torch.no_grad():
            mirror.put(context.backend.center - state.weights.flat)
        there, opposite = state.measure(draw, 0), mirror.measure(draw, 0)
        walk.diverged = _diverged(context, float(center.mean()), there.train, there.squared_distance) or ""
        if walk.diverged:
            break
        one, other = there.train.cpu().double(), opposite.train.cpu().double()
        walk.loss[draw] = one.mean()
        odd[draw], even[draw] = (one - other) / 2, (one + other) / 2 - center
    return walk


def _diverged(context: ChainContext, before: float, losses: Tensor, squared_distance: float) -> str | None:
    weights = context.backend.layout.num_weights
    return left_posterior(losses, losses, squared_distance, before, weights, context.settings)


def _nonlinearity(odd: Tensor, even: Tensor) -> float:
    curved, straight = float(even.var(1).sum()), float(odd.square().sum(1).sum() / odd.shape[1])
    return curved / (curved + straight) if curved + straight > 0 else math.nan


def _memory(odd: Tensor, spacing: int) -> float:
    """−spacing/ln ρ, with ρ the correlation of neighbouring draws, all examples pooled; the odd parts have mean 0."""
    square = odd.square()
    ends = float(square[:, :-1].sum() + square[:, 1:].sum()) / 2
    if not ends > 0:
        return math.nan
    correlation = float((odd[:, :-1] * odd[:, 1:]).sum()) / ends
    return -spacing / math.log(min(max(correlation, 1e-3), 0.999))


def _agreement(odd: Tensor) -> float:
    """Of the covariances that the two chains find, each example with all others; the odd parts have mean 0."""
    one, other = (_with_others(chain.mT @ chain) for chain in odd)
    return group_agreement(one, other)


def _with_others(products: Tensor) -> Tensor:
    """Without what each example has to do with itself: the mean of its column stands there."""
    count = len(products)
    own = torch.eye(count, dtype=torch.bool)
    return torch.where(own, products.masked_fill(own, 0).sum(0) / max(count - 1, 1), products)
