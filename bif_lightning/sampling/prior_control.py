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

from bif_lightning.config import Chains
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.distributed.threads import on_threads
from bif_lightning.model.devices import raise_unrelated
from bif_lightning.model.weights import BoundModule
from bif_lightning.rng import GLOBAL, chain_noise, seed_global
from bif_lightning.sampling.sampler import ChainContext, Prepared

LEAST_DRAWS = 8
"""Fewer give no ranking worth a comparison."""

MOST_DRAWS = 48
"""More cost time and change the agreement little."""

SHARE = 0.05
"""Draws of the control, as a share of the measurements of a snapshot's chains."""

_CHAIN = -1  # the key of these draws in the noise; chains count from 0


def num_control_draws(chains: Chains) -> int:
    """How many draws the control takes for these chains; 0 where that is too dear."""
    draws = min(int(SHARE * chains.num_chains * chains.num_draws), MOST_DRAWS)
    return draws if draws >= LEAST_DRAWS else 0


def control_influence(
    prepared: Prepared, context: ChainContext, scored: Sequence[int], workers: int, ranks: Ranks
) -> Float[Tensor, "train scored"] | None:
    """−Cov of train losses and scored columns over draws of N(w*, I/γ); None without draws, or where one is not finite.

    Every rank takes a share of the draws; the same on every rank. Collective.

    Args:
        prepared: the sampler.
        context: of the chains.
        scored: the columns to compare.
        workers: draws at once on this rank.
        ranks: the ranks.
    """
    count = prepared.control_draws(context.chains)
    if not count:
        return None
    draws = list(range(count)) if ranks.lockstep else ranks.mine(count)
    with ranks.collective("the control without data"):
        shares = [share for worker in range(workers) if (share := draws[worker::workers])]
        own = _measured(prepared, context, shares, list(scored))
    everyone = [own] if ranks.lockstep else ranks.all_gather(own)
    losses = sorted((found for part in everyone for found in part), key=lambda found: found[0])
    train, columns = (torch.stack(part).double() for part in zip(*((t, c) for _, t, c in losses), strict=True))
    if not bool(train.isfinite().all() and columns.isfinite().all()):
        return None
    return (train - train.mean(0)).mT @ (columns - columns.mean(0)) / (1 - count)


def _measured(
    prepared: Prepared, context: ChainContext, shares: list[list[int]], scored: list[int]
) -> list[tuple[int, Tensor, Tensor]]:
    walks = [partial(_walk, prepared, context, share, scored) for share in shares]
    return [found for part in on_threads(walks, max(1, len(walks)), torch.get_num_threads()) for found in part]


def _walk(
    prepared: Prepared, context: ChainContext, draws: Sequence[int], scored: list[int]
) -> list[tuple[int, Tensor, Tensor]]:
    """(draw, train losses, scored columns) of each of these draws."""
    backend, settings = context.backend, context.settings
    weights = backend.weights(tracked=False)
    bound = backend.bind(weights)
    noise = chain_noise(context.chains.seed, context.snapshot, _CHAIN, backend.device)
    standard, found = torch.zeros_like(backend.center), list[tuple[int, Tensor, Tensor]]()
    for draw in draws:
        for parameter, piece in enumerate(backend.layout.pieces(standard)):
            backend.fill_normal(piece, parameter, noise.normals(draw, parameter))
        within = prepared.within_span(standard)
        with torch.no_grad():
            torch.add(backend.center, within, alpha=1 / math.sqrt(settings.localization or 1.0), out=weights.flat)
        if context.stochastic:
            seed_global(backend.device, noise.key(0, GLOBAL))
        train, columns = _measure(context, bound)
        found.append((draw, train.cpu(), columns[scored].cpu()))
    return found


def _measure(context: ChainContext, bound: BoundModule) -> tuple[Tensor, Tensor]:
    try:
        return context.problem.measure(bound)
    except Exception as error:
        raise_unrelated(error)
        # Far from w* a model may refuse its own outputs; the chains' draws were measured, so it is no other fault.
        # Shards of a model fail together or not at all.
        if context.backend.sharded:
            raise
        nothing = context.backend.center.new_full((1,), math.nan)
        return nothing.expand(context.problem.num_train), nothing.expand(sum(context.problem.column_counts))
