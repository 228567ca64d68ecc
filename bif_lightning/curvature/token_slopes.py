"""Slopes of token losses along the directions of a closed-form posterior: one forward pass a direction, for all tokens.

Every token has its own loss, and a backward pass for each would make thousands. Along one
direction q, though, a single forward-mode pass gives dl/dq of all tokens at once (Jacobian-vector product).
"""

from collections.abc import Callable

import torch
import torch.autograd.forward_ad as forward_ad
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bif_lightning.distributed.ranks import Ranks
from bif_lightning.losses.observables import Batches, LossFn
from bif_lightning.losses.problem import Problem
from bif_lightning.losses.token_losses import by_token
from bif_lightning.model.weights import WeightBackend
from bif_lightning.rng import GLOBAL, seed_global, stream_seed

_NO_FORWARD_MODE = (RuntimeError, NotImplementedError)

Slopes = tuple[Float[Tensor, "direction token"], ...]
"""Of train tokens, then of query tokens where they are others; nats per weight unit, on the CPU."""


def token_slopes(
    problem: Problem, backend: WeightBackend, directions: Float[Tensor, "direction weight"], span: float, ranks: Ranks
) -> Slopes:
    """dl/dq_k at w* of all tokens. Collective: the ranks share the directions.

    By forward-mode derivatives; where an operation of the model has none, by (l(w* + h·q) − l(w* − h·q))/2h.

    Args:
        directions: q_k, rows of any length.
        span: h, in units of the rows' length.
        ranks: the ranks.

    Raises:
        ValueError: the loss function does not return losses of tokens.
    """
    with ranks.collective("slopes of the losses of tokens"):
        own = range(ranks.rank, len(directions), ranks.world_size)
        found = [_along(problem, backend, directions[k], span) for k in own]
    everyone = ranks.all_gather(found)
    ordered = [everyone[k % ranks.world_size][k // ranks.world_size] for k in range(len(directions))]
    return tuple(torch.stack(side) for side in zip(*ordered, strict=True))


def _along(problem: Problem, backend: WeightBackend, direction: Tensor, span: float) -> tuple[Tensor, ...]:
    if problem.stochastic:
        seed_global(backend.device, stream_seed(GLOBAL))
    try:
        return _derivatives(problem, backend, direction)
    except _NO_FORWARD_MODE:
        ends = [_losses(problem, backend, direction, sign * span) for sign in (1.0, -1.0)]
        return tuple((up - down) / (2 * span) for up, down in zip(*ends, strict=True))


def _derivatives(problem: Problem, backend: WeightBackend, direction: Tensor) -> tuple[Tensor, ...]:
    # Fused attention has no forward-mode derivative; the plain one is the same function.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        weights = backend.weights(tracked=False)
        pieces = zip(weights.leaves, backend.layout.pieces(direction), strict=True)
        weights.leaves = [forward_ad.make_dual(leaf, piece.to(leaf.dtype)) for leaf, piece in pieces]
        return backend.bind(weights).call(lambda module: _of_sides(problem, module, _tangent))


def _losses(problem: Problem, backend: WeightBackend, direction: Tensor, step: float) -> tuple[Tensor, ...]:
    if problem.stochastic:
        seed_global(backend.device, stream_seed(GLOBAL))
    with torch.no_grad():
        weights = backend.weights(tracked=False)
        torch.add(backend.center, direction, alpha=step, out=weights.flat)
        return backend.bind(weights).call(lambda module: _of_sides(problem, module, lambda losses: losses))


def _tangent(losses: Tensor) -> Tensor:
    slope: Tensor | None = forward_ad.unpack_dual(losses).tangent
    return torch.zeros_like(losses) if slope is None else slope


def _of_sides(problem: Problem, module: nn.Module, part: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    function = problem.tokens or problem.loss
    sides = (
        [problem.train_batches] if problem.query is problem.train else [problem.train_batches, problem.query_batches]
    )
    return tuple(_of_tokens(function, module, side, part) for side in sides)


def _of_tokens(function: LossFn, module: nn.Module, batches: Batches, part: Callable[[Tensor], Tensor]) -> Tensor:
    values = list[Tensor]()
    for batch, count in batches:
        losses, mask = by_token(function(module, batch), count)
        kept = part(losses)[mask]
        values.append((kept if kept.dtype == torch.float64 else kept.float()).cpu())
    return torch.cat(values)
