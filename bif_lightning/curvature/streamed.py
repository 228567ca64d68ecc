"""What is made of gradients that do not all fit into memory: each is computed anew for every pass over the examples.

Sums over examples are made of a fixed number of parts, added in their order, so that neither threads nor ranks, which
share the parts, change a bit.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.curvature.count_sketch import CountSketch
from bif_lightning.curvature.gradients import gradient_of, map_threads, time_call
from bif_lightning.curvature.kronecker import (
    Factor,
    KroneckerPreconditioner,
    as_arrays,
    eigenbasis,
    gram,
    is_rotated,
    sides_of,
)
from bif_lightning.data.dataset import Batch
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.distributed.threads import Progress, Steps, offset_progress, on_threads
from bif_lightning.losses.problem import Problem
from bif_lightning.model.weights import BoundModule, WeightBackend, Weights

PARTS = 16
"""Of the examples, to be added up: at most so many threads and ranks have work."""

BLOCK = 4
"""Gradients held at once where they are combined."""

_WEIGHTS = 1 << 18  # of a slice that one thread adds to
_TIMED = 2
_WHAT = "the gradients at the snapshot"


def metric_of_stream(
    problem: Problem, backend: WeightBackend, workers: int, ranks: Ranks, progress: Progress | None = None
) -> KroneckerPreconditioner:
    """The metric M of the train gradients (`curvature.kronecker`), in two passes over the examples. Collective.

    Args:
        workers: threads; their number changes no bit.
        progress: called after each gradient of this rank, in both passes.
    """
    count = steps_of_parts(problem, ranks)
    before = offset_progress(progress, after=count)
    grams = _add_up(problem, backend, partial(_grams, backend), workers, ranks, before)
    factors = _factors(backend, grams)
    after = offset_progress(progress, before=count)
    (squares,) = _add_up(problem, backend, partial(_squares, factors), workers, ranks, after)
    return KroneckerPreconditioner.of(factors, squares / problem.num_train, backend.layout.dtype)


def sketches(
    problem: Problem,
    backend: WeightBackend,
    singles: Sequence[Batch],
    metric: KroneckerPreconditioner,
    sketch: CountSketch,
    workers: int,
    ranks: Ranks,
    progress: Progress | None = None,
) -> Float[Tensor, "example place"]:
    """S(M^(−½)·∇l) of each example. Collective: the ranks share the examples.

    Args:
        progress: called after each gradient of this rank.
    """
    own = range(ranks.rank, len(singles), ranks.world_size)
    found = backend.center.new_empty(len(own), sketch.size)
    with ranks.collective(_WHAT) as section:
        steps = Steps(len(own), section.watched(progress))

        def fill(weights: Weights, bound: BoundModule, place: int) -> None:
            gradient = gradient_of(problem, backend, weights, bound, singles[own[place]])
            found[place] = whitened(gradient[None], metric, sketch)[0]
            steps.tick()

        map_threads(backend, fill, range(len(own)), workers, steps)
    if ranks.world_size == 1:
        return found
    out = found.new_empty(len(singles), sketch.size)
    for rank, rows in enumerate(ranks.all_gather(found.cpu())):
        out[rank :: ranks.world_size] = rows.to(out)
    return out


def whitened(
    vectors: Float[Tensor, "vector weight"], metric: KroneckerPreconditioner, sketch: CountSketch
) -> Float[Tensor, "vector place"]:
    """S(M^(−½)·v) of each row; the rows are overwritten."""
    metric.whiten(vectors)
    return sketch(vectors)


def combinations(
    problem: Problem,
    backend: WeightBackend,
    coefficients: Float[Tensor, "combination train"],
    workers: int,
    ranks: Ranks,
    progress: Progress | None = None,
) -> Float[Tensor, "combination weight"]:
    """Sums of the train gradients with these coefficients, the same on every rank. Collective.

    Args:
        progress: called after each gradient.
    """
    singles, block = problem.train_singles, backend.center.new_empty(BLOCK, backend.layout.size)
    out = block.new_zeros(len(coefficients), backend.layout.size)
    coefficients = coefficients.to(out)
    with ranks.collective(_WHAT) as section:
        steps = Steps(len(singles), section.watched(progress))

        def fill(weights: Weights, bound: BoundModule, index: int) -> None:
            block[index % BLOCK] = gradient_of(problem, backend, weights, bound, singles[index])
            steps.tick()

        def add(some: range, start: int) -> None:
            own = slice(start, start + _WEIGHTS)
            out[:, own] += coefficients[:, some.start : some.stop] @ block[: len(some), own]

        for start in range(0, len(singles), BLOCK):
            some = range(start, min(start + BLOCK, len(singles)))
            map_threads(backend, fill, some, workers, steps)
            slices = [partial(add, some, first) for first in range(0, backend.layout.size, _WEIGHTS)]
            on_threads(slices, workers, torch.get_num_threads(), steps)
    return out


def steps_of_parts(problem: Problem, ranks: Ranks) -> int:
    """Gradients that this rank computes in one pass of `metric_of_stream`."""
    return sum(len(part) for part in _parts(problem.num_train)[ranks.rank :: ranks.world_size])


def seconds_to_stream(
    problem: Problem, backend: WeightBackend, sketch: CountSketch, combined: int, workers: int, ranks: Ranks
) -> float:
    """Estimate how long the metric, all sketches, and `combined` combinations take, by timing a few examples."""
    with torch.enable_grad():
        weights = backend.weights()
        bound = backend.bind(weights)
    metric = unit_metric(backend)
    some = backend.center.new_ones(1, backend.layout.size)
    singles = problem.train_singles
    gradient = time_call(lambda: [_gradient(problem, backend, weights, bound, each) for each in singles[:_TIMED]])
    gradient /= len(singles[:_TIMED])
    bases = time_call(lambda: _grams(backend, some))
    squares = time_call(lambda: _squares(metric.factors, some))
    row = time_call(lambda: whitened(some, metric, sketch))
    added = time_call(lambda: some.expand(combined, -1) + some) if combined else 0.0
    shared = workers * ranks.world_size
    n, further = problem.num_train, problem.num_further_queries
    return (
        n * (2 * gradient + bases + squares) / min(shared, PARTS)
        + (n + further) * (gradient + row) / shared
        + n * (gradient + added) / workers
    )


def unit_metric(backend: WeightBackend) -> KroneckerPreconditioner:
    """A metric that takes as much time and memory as any, and changes nothing."""
    center = backend.center
    eyes = list[Factor]()
    for start, shape in _places(backend):
        sides = sides_of(shape)
        bases = (torch.eye(s, dtype=center.dtype, device=center.device) if is_rotated(s) else None for s in sides)
        eyes.append(Factor(start, sides, tuple(bases)))
    return KroneckerPreconditioner(tuple(eyes), torch.ones_like(center))


def _add_up(
    problem: Problem,
    backend: WeightBackend,
    of_gradient: Callable[[Float[Tensor, "1 weight"]], list[Tensor]],
    workers: int,
    ranks: Ranks,
    progress: Progress | None,
) -> list[Tensor]:
    """Sums over the train examples of what is made of each gradient, in float64. Collective."""
    parts, at_once = _parts(problem.num_train), workers * ranks.world_size
    totals, all_steps, done = list[Tensor](), steps_of_parts(problem, ranks), 0
    for first in range(0, len(parts), at_once):
        some = parts[first : first + at_once]
        own = some[ranks.rank :: ranks.world_size]
        count = sum(map(len, own))
        with ranks.collective(_WHAT) as section:
            watched = offset_progress(section.watched(progress), before=done, after=all_steps - done - count)
            each = _sums(problem, backend, of_gradient, own, workers, Steps(count, watched))
        done += count
        everyone = [each]
        if ranks.world_size > 1:
            everyone = ranks.all_gather([[tensor.cpu() for tensor in sums] for sums in each])
        for place in range(len(some)):
            sums = everyone[place % ranks.world_size][place // ranks.world_size]
            new = [tensor.to(backend.device, torch.float64) for tensor in sums]
            totals = [total.add_(more) for total, more in zip(totals, new, strict=True)] if totals else new
    return totals


def _sums(
    problem: Problem,
    backend: WeightBackend,
    of_gradient: Callable[[Float[Tensor, "1 weight"]], list[Tensor]],
    parts: Sequence[range],
    workers: int,
    steps: Steps,
) -> list[list[Tensor]]:
    """Sums over the examples of each part."""
    singles = problem.train_singles

    def of_part(weights: Weights, bound: BoundModule, part: int) -> list[Tensor]:
        sums = list[Tensor]()
        for index in parts[part]:
            found = of_gradient(_gradient(problem, backend, weights, bound, singles[index]))
            sums = [total.add_(new) for total, new in zip(sums, found, strict=True)] if sums else found
            steps.tick()
        return sums

    return map_threads(backend, of_part, range(len(parts)), workers, steps)


def _parts(size: int) -> list[range]:
    ends = [size * part // PARTS for part in range(PARTS + 1)]
    return [range(start, stop) for start, stop in pairwise(ends) if stop > start]


def _gradient(
    problem: Problem, backend: WeightBackend, weights: Weights, bound: BoundModule, single: Batch
) -> Float[Tensor, "1 weight"]:
    return gradient_of(problem, backend, weights, bound, single)[None]


def _places(backend: WeightBackend) -> list[tuple[int, torch.Size]]:
    return [(start, shape) for start, shape in backend.layout.places if shape.numel()]


def _grams(backend: WeightBackend, gradient: Float[Tensor, "1 weight"]) -> list[Tensor]:
    """G·Gᵀ for each side of each parameter that is rotated."""
    found = list[Tensor]()
    for start, shape in _places(backend):
        arrays = as_arrays(gradient, start, sides_of(shape))
        found += [gram(arrays, side) for side, length in enumerate(arrays.shape[1:]) if is_rotated(length)]
    return found


def _factors(backend: WeightBackend, grams: Sequence[Tensor]) -> tuple[Factor, ...]:
    remaining, found = iter(grams), list[Factor]()
    for start, shape in _places(backend):
        sides = sides_of(shape)
        bases = (eigenbasis(next(remaining), backend.layout.dtype) if is_rotated(side) else None for side in sides)
        found.append(Factor(start, sides, tuple(bases)))
    return tuple(found)


def _squares(factors: Sequence[Factor], gradient: Float[Tensor, "1 weight"]) -> list[Tensor]:
    """Squares of the gradient in the bases; it is overwritten."""
    for factor in factors:
        factor.rotate(gradient)
    return [gradient[0].square()]
