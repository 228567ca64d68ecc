"""A pilot: two short chains that measure effective dimension, nonlinearity and autocorrelation time of given settings.

Losses are measured at every draw w and at its mirror image w̄ = 2w* − w, which is equally likely if the posterior is
symmetric about its mode w*. With l_i the loss of example i at w and l̄_i its value at w̄,

    odd part    (l_i − l̄_i)/2            the part that is linear around w*
    even part   (l_i + l̄_i)/2 − l_i(w*)  the part from curvature

The mean of the even part over examples and draws, times 2nβ, is the effective dimension tr nβH(nβH + γI)⁻¹ of a
Gaussian posterior. This is twice the local learning coefficient, without the contribution of the gradient at w*, whose
noise would hide the rest during training.
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
"""Most train examples that a pilot measures, evenly spaced over the set."""

_SNAPSHOT = -1  # a key that no snapshot uses
_SETTLING = 4  # the first quarter of the draws is left out


@dataclass(frozen=True)
class Pilot:
    """The results of one pilot.

    Attributes:
        sampler: the settings.
        spacing: steps between draws.
        loss: mean train loss at each draw, nats; NaN after a chain diverged.
        snapshot_loss: mean train loss at w*, nats.
        diverged: why a chain diverged; empty if none did.
        dimension: effective dimension, see above; this and all following values are NaN if a chain diverged.
        nonlinearity: share of the even parts in the variance of single losses, 0 to 1.
        autocorrelation_time: steps after which the correlation of the odd parts has fallen to 1/e.
        agreement: agreement of the two chains on the influence of random groups of examples
            (`diagnostics.group_agreement`).
    """

    sampler: SGLD
    spacing: int
    loss: Float[Tensor, "chain draw"]
    snapshot_loss: float
    diverged: str = ""
    dimension: float = math.nan
    nonlinearity: float = math.nan
    autocorrelation_time: float = math.nan
    agreement: float = math.nan

    def draws_for(self, reliability: float, thinning: float) -> float:
        """Number of draws with which two estimates would have a given agreement on groups of examples.

        Two estimates of N independent draws each have an agreement of N/(N + D). D follows from the pilot's chains,
        whose draws are taken as independent: their correlation costs them precision and range alike. N draws that are k
        steps apart, with correlation e^{−k/m} at an autocorrelation time of m steps, are worth N·tanh(k/m) independent
        draws. Infinite if the chains of the pilot do not agree.

        Args:
            reliability: required agreement.
            thinning: steps between draws.
        """
        if not self.agreement > 0:
            return math.inf
        unresolved = (DRAWS - DRAWS // _SETTLING) * (1 - self.agreement) / self.agreement
        worth = math.tanh(thinning / self.autocorrelation_time) if self.autocorrelation_time > 0 else 1.0
        return unresolved * reliability / (1 - reliability) / worth


def small_problem(problem: Problem, backend: WeightBackend, seed: int) -> Problem:
    """Reduce a problem to at most `EXAMPLES` train examples, which are also its queries."""
    count = len(problem.train)
    rows = range(count) if count <= EXAMPLES else [int(row) for row in torch.linspace(0, count - 1, EXAMPLES)]
    train = problem.train
    examples = type(train)(train.dataset, train.collate, [train.rows[row] for row in rows])
    small = replace(problem, train=examples, query=examples, observables=())
    small.twins, small.stochastic, small.loaded = problem.twins, problem.stochastic, True
    seed_global(backend.device, stream_seed(seed, DATA))
    _ = small.train_batches  # read now, before chains seed the generators
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
        small: a problem from `small_problem`.
        chains: source of minibatch size and seed.
        spacing: steps between draws.
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
    found = [_run_chain(context, chain) for chain in range(CHAINS)]
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
        autocorrelation_time=_autocorrelation_time(odd[:, start:], spacing),
        agreement=_chain_agreement(odd[:, start:]),
    )


@dataclass
class _PilotChain:
    center: Float[Tensor, " train"]
    loss: Float[Tensor, " draw"]
    odd: Float[Tensor, "draw train"]
    even: Float[Tensor, "draw train"]
    diverged: str = ""


def _run_chain(context: ChainContext, chain: int) -> _PilotChain:
    kernel = context.kernel
    state, mirror = kernel.start(context, chain), ChainState(context, chain)
    center, count = state.measure(0, 0).train.cpu().double(), context.chains.num_draws
    odd, even = (torch.full((count, len(center)), math.nan, dtype=center.dtype, device="cpu") for _ in range(2))
    walk = _PilotChain(center, torch.full((count,), math.nan, dtype=center.dtype, device="cpu"), odd, even)
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


def _autocorrelation_time(odd: Tensor, spacing: int) -> float:
    """−spacing/ln ρ, with ρ the correlation of successive draws over all examples; the odd parts have mean 0."""
    square = odd.square()
    ends = float(square[:, :-1].sum() + square[:, 1:].sum()) / 2
    if not ends > 0:
        return math.nan
    correlation = float((odd[:, :-1] * odd[:, 1:]).sum()) / ends
    return -spacing / math.log(min(max(correlation, 1e-3), 0.999))


def _chain_agreement(odd: Tensor) -> float:
    """Agreement of the two chains' covariances of each example with all others; the odd parts have mean 0."""
    one, other = (_without_diagonal(chain.mT @ chain) for chain in odd)
    return group_agreement(one, other)


def _without_diagonal(products: Tensor) -> Tensor:
    """Replace the diagonal by the mean of the other entries of its column."""
    count = len(products)
    own = torch.eye(count, dtype=torch.bool, device="cpu")
    return torch.where(own, products.masked_fill(own, 0).sum(0) / max(count - 1, 1), products)
