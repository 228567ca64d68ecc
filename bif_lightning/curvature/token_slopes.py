"""Directional derivatives of token losses along the directions of a closed-form posterior.

Every token has its own loss, so gradients would take thousands of backward passes. A single forward-mode pass along
a direction q gives dl/dq of all tokens at once (a Jacobian-vector product).
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
from bif_lightning.model.devices import raise_unrelated
from bif_lightning.model.weights import WeightBackend
from bif_lightning.rng import GLOBAL, seed_global, stream_seed

_NO_FORWARD_MODE = (RuntimeError, NotImplementedError)

Slopes = tuple[Float[Tensor, "direction token"], ...]
"""Slopes of the train tokens, and of the query tokens if they differ; nats per weight unit, on the CPU."""


def token_slopes(
    problem: Problem, backend: WeightBackend, directions: Float[Tensor, "direction weight"], span: float, ranks: Ranks
) -> Slopes:
    """Compute dl/dq_k at w* for all tokens. Collective: the ranks divide the directions among them.

    Uses forward-mode differentiation, or (l(w* + h·q) − l(w* − h·q))/2h if an operation of the model does not support
    it.

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
    except _NO_FORWARD_MODE as error:
        raise_unrelated(error)
        ends = [_losses(problem, backend, direction, sign * span) for sign in (1.0, -1.0)]
        return tuple((up - down) / (2 * span) for up, down in zip(*ends, strict=True))


def _derivatives(problem: Problem, backend: WeightBackend, direction: Tensor) -> tuple[Tensor, ...]:
    # Fused attention has no forward-mode derivative; the math backend computes the same function.
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
    with problem.measuring():
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
