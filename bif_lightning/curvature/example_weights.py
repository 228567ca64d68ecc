"""How much training examples count in L(w): class weights, numbers of tokens, missing targets.

The objective of a batch is Σ W_i·l_i/Σ W_i then, in which the other examples of the batch decide what one counts.
Where curvature is put together from batches, the mean of a batch has to count with its Σ W_i. W_i is known up to a
factor that depends on the batch. So one example is put into every batch, and its weight is the unit.
"""

from collections.abc import Callable
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bif_lightning.data.dataset import spread_rows
from bif_lightning.losses.problem import Problem
from bif_lightning.model.weights import WeightBackend
from bif_lightning.rng import GLOBAL, seed_global, stream_seed

UNEQUAL_TERMS: Final = (
    "the curvature weighs batches of training examples by their number, since the terms of the loss weigh the examples "
    "in different ways: it is that of means over small batches, as in training"
)
"""Of such estimates, in their notes."""

DIVIDED: Final = (
    "ranks weigh their parts of a minibatch by the number of examples, though the loss weighs examples unequally: L(w) "
    "is that of means over these parts, as in training"
)
"""Of estimates of a module in shards, in their notes."""

_ALIKE = 1e-6
_SOME = 64
_LEAST = 2


def example_weights(
    problem: Problem, backend: WeightBackend, rows: Int[Tensor, " row"]
) -> Float[Tensor, " row"] | None:
    """W_i of some training examples, float64 on the CPU, with mean 1; None where all count alike.

    In shards all ranks make the same passes.
    """
    function = problem.relative_weights
    if function is None or len(rows) < _LEAST:
        return None
    bound = backend.bind(backend.weights(tracked=False))

    def of(chunk: Tensor) -> Tensor | None:
        problem.tick()
        if problem.stochastic:
            seed_global(backend.device, stream_seed(GLOBAL))
        batch = problem.prepare(problem.training.batch(chunk))
        return bound.call(lambda module: function(module, batch))

    try:
        found = _in_one_unit(of, rows, max(problem.eval_batch_size, _LEAST))
    except ValueError:
        problem.remarks["weights"] = UNEQUAL_TERMS
        return None
    if found is None or not float(found.sum()) > 0:
        return None
    found = found / found.mean()
    return None if float((found - 1).abs().max()) < _ALIKE else found


def note_divided(problem: Problem, backend: WeightBackend) -> None:
    """Say so where ranks divide the examples of a batch that count unequally. Collective for a module in shards."""
    if problem.split.parts == 1:
        return
    if example_weights(problem, backend, spread_rows(len(problem.training), _SOME)) is not None:
        problem.remarks["weights"] = DIVIDED


def _in_one_unit(of: Callable[[Tensor], Tensor | None], rows: Tensor, most: int) -> Tensor | None:
    """Weights in that of one example, which is the first of every batch."""
    unit, parts = rows[:1], list[Tensor]()
    for chunk in rows.split(most - 1):
        found = of(torch.cat([unit, chunk]))
        if found is None:
            return None
        own, weights = found[0], found[1:]
        if not own > 0 and weights.max() > 0:  # it has no target, and so have those before
            unit, own = chunk[weights.argmax(), None], weights.max()
        parts.append(weights / own if own > 0 else weights)
    return torch.cat(parts)
