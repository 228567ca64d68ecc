"""Gradients at the snapshot: of every single example's loss, and the curvature of the mean loss along directions."""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bif_lightning.curvature import spread_rows
from bif_lightning.data import Batch
from bif_lightning.noise import GLOBAL, seed_global, stream_seed
from bif_lightning.placement import Placement
from bif_lightning.problem import Minibatch, Problem
from bif_lightning.shards import is_sharded
from bif_lightning.weights import Bound, Host, Weights, layout_of, sampled_parameters

MOST_BYTES = 1 << 31
"""Memory that the gradients of all examples may take: 2 GB."""

CURVATURE_EXAMPLES = 1024
"""Training examples on which the curvature is measured, spread over the set."""

GROUPS = 8
"""Groups of those examples, whose curvatures give the standard errors of the closed form."""

_TIMED = 4
_ONCE_ONLY = (RuntimeError, NotImplementedError)

T = TypeVar("T")


def why_no_gradients(problem: Problem) -> str | None:
    """Why the gradients of all examples cannot be held; None if they can."""
    if is_sharded(problem.module):
        return "the module is sharded over ranks, and gradients of single examples are not taken there"
    rows = problem.num_train + (0 if problem.query is problem.train else sum(problem.column_counts))
    layout = layout_of(sampled_parameters(problem.module, problem.params))
    needed = rows * layout.size * layout.dtype.itemsize
    if needed > MOST_BYTES:
        return (
            f"the gradients of {problem.num_train} train and {len(problem.query)} query examples with respect to "
            f"{layout.num_weights} weights take {needed / 1e9:.3g} GB, more than {MOST_BYTES / 1e9:.3g} GB; "
            "restrict params to fewer weights, or take fewer examples"
        )
    return None


def train_gradients(problem: Problem, host: Host, workers: int) -> Float[Tensor, "train weight"]:
    """Gradient at w* of the loss of each train example, [n, size of the flat vector], nats per weight unit."""
    return _gradients(problem, host, problem.train_singles, workers)


def column_gradients(
    problem: Problem,
    host: Host,
    workers: int,
    train: Float[Tensor, "train weight"],
    directions: Float[Tensor, "direction weight"],
    span: float,
) -> Float[Tensor, "column weight"]:
    """Gradient of each query loss, and the part within the span of the directions of that of further observables.

    Those need not have a gradient: their slope along q_k is (φ(w* + h·q_k) − φ(w* − h·q_k))/2h.

    Args:
        train: gradients of the train examples, which serve as the queries' where the two sets are one.
        directions, span: q_k, orthonormal rows, and h.
    """
    queries = train if problem.query is problem.train else _gradients(problem, host, problem.query_singles, workers)
    if not problem.observables:
        return queries

    def slope(weights: Weights, bound: Bound, k: int) -> Tensor:
        ends = list[Tensor]()
        for sign in (1.0, -1.0):
            _put(host, weights, directions[k], sign * span)
            _key_global(problem, host)
            ends.append(problem.measure_columns(bound)[problem.column_counts[0] :])
        return (ends[0] - ends[1]) / (2 * span)

    slopes = torch.stack(_each(host, slope, range(len(directions)), workers))
    return torch.cat([queries, slopes.mT.to(queries) @ directions])


def _key_global(problem: Problem, host: Host) -> None:
    """The same random numbers for a model that draws some: what they change is no slope and no curvature."""
    if problem.stochastic:
        seed_global(host.device, stream_seed(GLOBAL))


def _put(host: Host, weights: Weights, direction: Tensor, step: float) -> None:
    with torch.no_grad():
        torch.add(host.center, direction, alpha=step, out=weights.flat)


def hessians_along(
    problem: Problem,
    host: Host,
    directions: Float[Tensor, "direction weight"],
    span: float,
    workers: int,
    placement: Placement,
) -> Float[Tensor, "group direction direction"]:
    """Q·H_g·Qᵀ of the mean loss of each group of training examples; their mean is that of all. Collective.

    By second derivatives: the gradient of a group is taken once with its graph, and H·q_k is a gradient of it. Where a
    model has none (an operation that can be differentiated only once), by (∇L(w* + h·q_k) − ∇L(w* − h·q_k))/2h, which
    counts the kinks of piecewise linear networks as curvature.

    Args:
        directions: Q, orthonormal rows.
        span: h, in weight units.
        workers: threads.
        placement: the ranks, which share the groups.
    """
    with placement.together("the curvature at the snapshot"):
        rows = spread_rows(len(problem.training), CURVATURE_EXAMPLES)
        # Groups of equal size, neighbours apart: data is often sorted.
        number = min(GROUPS, len(rows))
        groups = [problem.minibatch(rows[first::number][: len(rows) // number]) for first in range(number)]

        def of_group(weights: Weights, bound: Bound, group: int) -> Tensor:
            _key_global(problem, host)
            return _along(problem, host, weights, bound, directions, groups[group], span)

        own = range(placement.rank, number, placement.world_size)
        found = [each.cpu() for each in _each(host, of_group, own, workers)]
    everyone = placement.everywhere(found)
    ordered = [everyone[group % placement.world_size][group // placement.world_size] for group in range(number)]
    return torch.stack(ordered).to(directions.device)


def seconds_to_look(problem: Problem, host: Host, count: int, workers: int, ranks: int) -> float:
    """About how long the gradients of all examples and the Hessians along `count` directions take, by a few of each.

    Args:
        workers, ranks: threads of each rank, and how many ranks share the groups.
    """
    singles = problem.train_singles  # read before the clock runs
    single = _seconds(lambda: _gradients(problem, host, singles[:_TIMED], 1)) / min(_TIMED, len(singles))
    rows = spread_rows(len(problem.training), CURVATURE_EXAMPLES)
    group = problem.minibatch(rows[: max(1, len(rows) // GROUPS)])
    weights = host.weights()
    bound = host.bind(weights)
    some = torch.zeros(_TIMED, host.layout.size, dtype=host.center.dtype, device=host.device)
    few, more = (_seconds(partial(_along, problem, host, weights, bound, some[:n], group, 1.0)) for n in (1, _TIMED))
    each = max(more - few, 0.0) / (_TIMED - 1)
    examples = len(singles) + (0 if problem.query is problem.train else len(problem.query))
    return examples * single / workers + GROUPS * (few + count * each) / (workers * ranks)


def _seconds(call: Callable[[], object]) -> float:
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _along(
    problem: Problem, host: Host, weights: Weights, bound: Bound, directions: Tensor, group: Minibatch, span: float
) -> Float[Tensor, "direction direction"]:
    exact = _second_derivatives(problem, host, weights, bound, directions, group)
    return _differences(problem, host, weights, bound, directions, group, span) if exact is None else exact


def _second_derivatives(
    problem: Problem, host: Host, weights: Weights, bound: Bound, directions: Tensor, group: Minibatch
) -> Float[Tensor, "direction direction"] | None:
    """Q·H·Qᵀ of one group, or None where the model cannot be differentiated twice."""

    def products(module: nn.Module) -> Tensor:
        loss = problem.objective(module, group.batch) * problem.loss_scale
        slopes = torch.autograd.grad(loss, weights.leaves, create_graph=True, materialize_grads=True)
        kept = [(slope, place) for place, slope in enumerate(slopes) if slope.requires_grad]
        out = torch.zeros(len(directions), len(directions), dtype=directions.dtype, device=directions.device)
        whole = torch.zeros_like(weights.flat)
        pieces = host.layout.pieces(whole)
        for k, direction in enumerate(directions if kept else []):
            along = host.layout.pieces(direction)
            of_slopes = [along[place].to(slope.dtype) for slope, place in kept]
            curved = torch.autograd.grad(
                [slope for slope, _ in kept], weights.leaves, of_slopes, retain_graph=True, materialize_grads=True
            )
            for piece, part in zip(pieces, curved, strict=True):
                piece.copy_(part)
            out[k] = directions @ whole
        return out / problem.loss_scale

    try:
        # Fused attention has no second derivative; the plain one is the same function.
        with sdpa_kernel(SDPBackend.MATH):
            found = bound.call(products)
    except _ONCE_ONLY:
        return None
    return found if bool(found.isfinite().all()) else None


def _differences(
    problem: Problem, host: Host, weights: Weights, bound: Bound, directions: Tensor, group: Minibatch, span: float
) -> Float[Tensor, "direction direction"]:
    out = torch.empty(len(directions), len(directions), dtype=directions.dtype, device=directions.device)
    for k, direction in enumerate(directions):
        change = torch.zeros_like(weights.flat)
        for sign in (1.0, -1.0):
            _put(host, weights, direction, sign * span)
            _key_global(problem, host)
            problem.gradient(host, weights, bound, group)
            change.add_(weights.gradient, alpha=sign)
        out[k] = directions @ change / (2 * span)
    _put(host, weights, directions[0], 0.0)
    return out


def _gradients(problem: Problem, host: Host, singles: Sequence[Batch], workers: int) -> Tensor:
    out = torch.empty(len(singles), host.layout.size, dtype=host.center.dtype, device=host.device)

    def row(weights: Weights, bound: Bound, i: int) -> None:
        out[i] = _gradient(problem, host, weights, bound, singles[i])

    _each(host, row, range(len(singles)), workers)
    return out


def _gradient(problem: Problem, host: Host, weights: Weights, bound: Bound, single: Batch) -> Tensor:
    scale = problem.loss_scale
    while True:
        weights.gradient.zero_()
        _key_global(problem, host)
        bound.call(partial(_backward, problem, single, scale))
        if scale <= 1 or math.isfinite(host.norm(weights.gradient)):
            return weights.gradient / scale
        scale /= 2


def _backward(problem: Problem, single: Batch, scale: float, module: nn.Module) -> None:
    loss = problem.loss(module, single).sum()
    if not loss.requires_grad:
        # Losses taken from a training step come without a graph. The step on a batch of one is the same up to a
        # factor that does not depend on the weights: the divisor of the example.
        mean = problem.objective(module, single)
        known = float(mean.detach())
        loss = mean * (float(loss) / known if known != 0 else 1.0)
    (loss * scale).backward()


def _each(host: Host, function: Callable[[Weights, Bound, int], T], indices: Sequence[int], workers: int) -> list[T]:
    """The function at the snapshot for every index, on threads with weights of their own; results in order."""

    def part(first: int) -> list[T]:
        with torch.enable_grad():
            weights = host.weights()
            bound = host.bind(weights)
            return [function(weights, bound, index) for index in indices[first::workers]]

    if workers == 1:
        return part(0)
    intra_op = torch.get_num_threads()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(intra_op,)) as pool:
        parts = list(pool.map(part, range(workers)))
    return [parts[i % workers][i // workers] for i in range(len(indices))]
