"""Per-example gradients of the losses at the snapshot."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bif_lightning.curvature.kronecker import KroneckerPreconditioner
from bif_lightning.data.dataset import Batch
from bif_lightning.distributed.threads import Steps, on_threads
from bif_lightning.losses.problem import Problem
from bif_lightning.model.devices import now
from bif_lightning.model.sharded import is_sharded
from bif_lightning.model.weights import BoundModule, WeightBackend, Weights, layout_of, sampled_parameters
from bif_lightning.rng import GLOBAL, seed_global, stream_seed

MOST_BYTES = 1 << 31
"""Largest memory of all per-example gradients together: 2 GB."""

_TIMED = 4

T = TypeVar("T")


def why_no_gradients(problem: Problem) -> str | None:
    """Explain why the per-example gradients cannot be held in memory; None if they can."""
    if why := why_no_single_gradients(problem):
        return why
    needed = gradient_bytes_of(problem)
    if needed > MOST_BYTES:
        weights = layout_of(sampled_parameters(problem.module, problem.params)).num_weights
        return (
            f"the gradients of {problem.num_train} train and {len(problem.query)} query examples with respect to "
            f"{weights} weights take {needed / 1e9:.3g} GB, more than {MOST_BYTES / 1e9:.3g} GB; "
            "restrict params to fewer weights, take fewer examples, or sample with ControlledSGLD, which sketches them"
        )
    return None


def why_no_single_gradients(problem: Problem) -> str | None:
    """Explain why gradients of single examples cannot be computed; None if they can."""
    if is_sharded(problem.module):
        return "the module is sharded over ranks, where per-example gradients are not supported"
    return None


def gradient_bytes_of(problem: Problem) -> int:
    """Memory of the gradients of all train examples and columns together."""
    rows = problem.num_train + (0 if problem.query is problem.train else sum(problem.column_counts))
    layout = layout_of(sampled_parameters(problem.module, problem.params))
    return rows * layout.size * layout.dtype.itemsize


def train_gradients(
    problem: Problem, backend: WeightBackend, workers: int, steps: Steps | None = None
) -> Float[Tensor, "train weight"]:
    """Gradient at w* of the loss of each train example, [n, size of the flat vector], nats per weight unit.

    Args:
        steps: counts one step for each example.
    """
    return _gradients(problem, backend, problem.train_singles, workers, steps)


def column_gradients(
    problem: Problem,
    backend: WeightBackend,
    workers: int,
    train: Float[Tensor, "train weight"],
    metric: KroneckerPreconditioner,
    directions: Float[Tensor, "direction weight"],
    span: float,
    steps: Steps | None = None,
) -> Float[Tensor, "column weight"]:
    """Whitened gradients of all columns: of the query losses, and of further observables.

    An observable may be non-differentiable, so its gradient is projected on the directions and measured by finite
    differences: its slope along d_k = M^(−½)·q_k is (φ(w* + h·d_k) − φ(w* − h·d_k))/2h.

    Args:
        train: whitened gradients of the train examples, reused for the queries if both sets are the same.
        metric: M, which whitens the query gradients.
        directions, span: q_k, orthonormal rows, and h.
        steps: counts one step for each query unless the queries are the train examples, and one for each direction if
            there are further observables.
    """
    queries, steps = train, steps or Steps()
    if problem.query is not problem.train:
        queries = _gradients(problem, backend, problem.query_singles, workers, steps)
        metric.whiten(queries)
    if not problem.observables:
        return queries
    in_weights = metric.to_weight_space(directions)
    slopes = observable_slopes(problem, backend, in_weights.__getitem__, len(in_weights), span, workers, steps)
    return torch.cat([queries, slopes.to(queries) @ directions])


def observable_slopes(
    problem: Problem,
    backend: WeightBackend,
    direction: Callable[[int], Float[Tensor, " weight"]],
    count: int,
    span: float,
    workers: int,
    steps: Steps | None = None,
) -> Float[Tensor, "column direction"]:
    """Slopes (φ(w* + h·d_k) − φ(w* − h·d_k))/2h of the further observables along directions d_k in weight space.

    Args:
        direction, count: d_k, and how many there are.
        span: h.
        steps: counts one step for each direction.
    """
    steps = steps or Steps()

    def slope(weights: Weights, bound: BoundModule, k: int) -> Tensor:
        ends, along = list[Tensor](), direction(k)
        for sign in (1.0, -1.0):
            _set_weights(backend, weights, along, sign * span)
            _key_global(problem, backend)
            ends.append(problem.measure_columns(bound)[problem.column_counts[0] :])
        steps.tick()
        return (ends[0] - ends[1]) / (2 * span)

    return torch.stack(map_threads(backend, slope, range(count), workers, steps)).mT


def _key_global(problem: Problem, backend: WeightBackend) -> None:
    """Seed the model's own random numbers, such as dropout: their noise must not enter slopes and curvature."""
    if problem.stochastic:
        seed_global(backend.device, stream_seed(GLOBAL))


def _set_weights(backend: WeightBackend, weights: Weights, direction: Tensor, step: float) -> None:
    with torch.no_grad():
        torch.add(backend.center, direction, alpha=step, out=weights.flat)


def seconds_for_gradients(problem: Problem, backend: WeightBackend, workers: int) -> float:
    """Estimate how long all per-example gradients take on `workers` threads, by timing a few of them."""
    singles = problem.train_singles  # read before timing starts
    single = time_call(lambda: _gradients(problem, backend, singles[:_TIMED], 1)) / min(_TIMED, len(singles))
    examples = len(singles) + problem.num_further_queries
    return examples * single / workers


def time_call(call: Callable[[], object]) -> float:
    """Seconds that a call takes the second time, after a warm-up."""
    call()
    started = now()
    call()
    return now() - started


def _gradients(
    problem: Problem, backend: WeightBackend, singles: Sequence[Batch], workers: int, steps: Steps | None = None
) -> Tensor:
    steps = steps or Steps()
    out = torch.empty(len(singles), backend.layout.size, dtype=backend.center.dtype, device=backend.device)

    def row(weights: Weights, bound: BoundModule, i: int) -> None:
        out[i] = gradient_of(problem, backend, weights, bound, singles[i])
        steps.tick()

    map_threads(backend, row, range(len(singles)), workers, steps)
    return out


def gradient_of(
    problem: Problem, backend: WeightBackend, weights: Weights, bound: BoundModule, single: Batch
) -> Float[Tensor, " weight"]:
    """Gradient at w* of the loss of a batch of one example."""
    problem.tick()
    scale = problem.loss_scale
    while True:
        weights.gradient.zero_()
        _key_global(problem, backend)
        bound.call(partial(_backward, problem, single, scale))
        if scale <= 1 or math.isfinite(backend.norm(weights.gradient)):
            return weights.gradient / scale
        scale /= 2


def _backward(problem: Problem, single: Batch, scale: float, module: nn.Module) -> None:
    loss = problem.loss(module, single).sum()
    if not loss.requires_grad:
        # Losses derived from a training step come without a graph. The objective on a batch of one is the same loss,
        # or, of sums over the example's elements, the same but for its divisor.
        mean = problem.objective(module, single)
        loss = mean * (_divisor(float(loss), float(mean.detach())) if problem.sums_elements else 1.0)
    (loss * scale).backward()


def _divisor(loss: float, mean: float) -> float:
    return loss / mean if mean != 0 else 1.0


def map_threads(
    backend: WeightBackend,
    function: Callable[[Weights, BoundModule, int], T],
    indices: Sequence[int],
    workers: int,
    steps: Steps | None = None,
) -> list[T]:
    """Apply a function at the snapshot to every index, on threads with weights of their own; results in order.

    Args:
        steps: progress, which the function counts and which can stop it; they end before the next index in any case.
    """
    steps = steps or Steps()

    def of(weights: Weights, bound: BoundModule, index: int) -> T:
        steps.check()
        return function(weights, bound, index)

    def part(first: int) -> list[T]:
        with torch.enable_grad():
            weights = backend.weights()
            bound = backend.bind(weights)
            return [of(weights, bound, index) for index in indices[first::workers]]

    calls = [partial(part, first) for first in range(workers)]
    parts = on_threads(calls, workers, torch.get_num_threads(), steps)
    return [parts[i % workers][i // workers] for i in range(len(indices))]
