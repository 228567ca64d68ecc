"""The control without data: what draws of the pull alone already say.

At nβ = 0 the posterior is N(w*, I/γ): independent draws need no gradient. Influence from them knows the losses'
gradients but nothing of the posterior's geometry, so a snapshot whose scores only repeat it has added nothing.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.config import SGLD
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.distributed.threads import on_threads
from bif_lightning.model.weights import BoundModule
from bif_lightning.rng import GLOBAL, chain_noise, seed_global
from bif_lightning.sampling.chain import ChainContext

LEAST_DRAWS = 8
"""Fewer give no ranking worth a comparison."""

MOST_DRAWS = 48
"""More cost time and change the agreement little."""

SHARE = 0.05
"""Draws of the control, as a share of the measurements of a snapshot's chains."""

_CHAIN = -1  # the key of these draws in the noise; chains count from 0


def num_control_draws(plan: ChainContext) -> int:
    """How many draws the control takes; 0 where it has no meaning (no pull, another sampler) or is too dear."""
    if not isinstance(plan.sampler, SGLD) or not plan.sampler.localization:
        return 0
    draws = min(int(SHARE * plan.chains.num_chains * plan.chains.num_draws), MOST_DRAWS)
    return draws if draws >= LEAST_DRAWS else 0


def control_influence(
    plan: ChainContext, scored: Sequence[int], workers: int, ranks: Ranks
) -> Float[Tensor, "train scored"] | None:
    """−Cov of train losses and scored columns over draws of N(w*, I/γ); None without draws, or where one is not finite.

    Every rank takes a share of the draws; the same on every rank. Collective.

    Args:
        plan: of the chains.
        scored: the columns to compare.
        workers: draws at once on this rank.
        ranks: the ranks.
    """
    count = num_control_draws(plan)
    if not count:
        return None
    draws = list(range(count)) if ranks.lockstep else ranks.mine(count)
    with ranks.collective("the control without data"):
        shares = [share for worker in range(workers) if (share := draws[worker::workers])]
        own = _measured(plan, shares, list(scored))
    everyone = [own] if ranks.lockstep else ranks.all_gather(own)
    losses = sorted((found for part in everyone for found in part), key=lambda found: found[0])
    train, columns = (torch.stack(part).double() for part in zip(*((t, c) for _, t, c in losses), strict=True))
    if not bool(train.isfinite().all() and columns.isfinite().all()):
        return None
    return (train - train.mean(0)).mT @ (columns - columns.mean(0)) / (1 - count)


def _measured(plan: ChainContext, shares: list[list[int]], scored: list[int]) -> list[tuple[int, Tensor, Tensor]]:
    walks = [partial(_walk, plan, share, scored) for share in shares]
    return [found for part in on_threads(walks, max(1, len(walks)), torch.get_num_threads()) for found in part]


def _walk(plan: ChainContext, draws: Sequence[int], scored: list[int]) -> list[tuple[int, Tensor, Tensor]]:
    """(draw, train losses, scored columns) of each of these draws."""
    backend, sampler = plan.backend, plan.sampler
    weights = backend.weights(tracked=False)
    bound = backend.bind(weights)
    noise = chain_noise(plan.chains.seed, plan.snapshot, _CHAIN, backend.device)
    standard, found = torch.zeros_like(backend.center), list[tuple[int, Tensor, Tensor]]()
    for draw in draws:
        for parameter, piece in enumerate(backend.layout.pieces(standard)):
            backend.fill_normal(piece, parameter, noise.normals(draw, parameter))
        within = standard if plan.directions is None else (plan.directions @ standard) @ plan.directions
        with torch.no_grad():
            torch.add(backend.center, within, alpha=1 / math.sqrt(sampler.localization or 1.0), out=weights.flat)
        if plan.stochastic:
            seed_global(backend.device, noise.key(0, GLOBAL))
        train, columns = _measure(plan, bound)
        found.append((draw, train.cpu(), columns[scored].cpu()))
    return found


def _measure(plan: ChainContext, bound: BoundModule) -> tuple[Tensor, Tensor]:
    try:
        return plan.problem.measure(bound)
    except Exception:
        # Far from w* a model may refuse its own outputs; the chains' draws were measured, so it is no other fault.
        # Shards of a model fail together or not at all.
        if plan.backend.sharded:
            raise
        nothing = plan.backend.center.new_full((1,), math.nan)
        return nothing.expand(plan.problem.num_train), nothing.expand(sum(plan.problem.column_counts))
