"""The curvature of the mean loss along directions, measured on the training examples that tell of it.

All are looked at first, by forward passes along a few random directions z of the span, of norm about 1,

    b_i(z) = (l_i(w* + h·z) + l_i(w* − h·z) − 2·l_i(w*))/h²  ≈  zᵀH_i z,

of which two things are known: how curved each example is, c_i² = mean of b_i² over z, and how much their Hessians
differ. For Gaussian z the variance of zᵀAz is 2·|A|² (Frobenius), so that a spread of n of the N examples gives their
mean H with a relative error, root mean square, of

    sqrt((1/n − 1/N)·mean over i of var(b_i − b̄) / var(b̄)).

Where examples are alike, as sequences of many tokens are, few are enough: a spread that brings the error to `ERROR`, if
that saves half of the work or more. Where a network has learned, few examples hold nearly all of the curvature: under a
softmax an example has about as much of it as its label lacks of probability 1. Then the Hessian is taken of the fewest
that hold 99 % of Σ c_i; where these are too many, of the most curved ones and of a spread of the others, each of which
then stands for several.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bif_lightning.curvature.gradients import map_threads, seconds
from bif_lightning.curvature.hessian import Hessian, WeightedBatch
from bif_lightning.curvature.spectrum import random_direction
from bif_lightning.data.dataset import spread_rows
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.distributed.threads import Progress, Steps
from bif_lightning.losses.observables import checked_rows
from bif_lightning.losses.problem import Problem
from bif_lightning.model.weights import BoundModule, WeightBackend, Weights, norm_of_snapshot
from bif_lightning.rng import DATA, GLOBAL, seed_global, stream_seed

EXAMPLES = 1024
"""Training examples of which the Hessian is taken, at most."""

POOL = 4096
"""Training examples that are looked at first, spread over the set; `EXAMPLES` where they are not in memory."""

GROUPS = 8
"""Groups of the examples, whose curvatures give the standard errors of the closed form."""

HELD = 0.99
"""Share of the curvature that the examples are to hold."""

ERROR = 0.15
"""Relative error of the Hessian of a spread of examples, where that is enough."""

_FEW = 512  # so many are all taken where they differ, which costs little
_LEAST = 2  # examples a direction; 1 where they are alike
_PROBES = 8
_TIMED = 4


@dataclass(frozen=True)
class HessianSubsample:
    """The training examples of which the Hessian is taken.

    Attributes:
        certain: positions of those that stand for themselves, ascending.
        others: positions of those that stand for several, ascending.
        weight: how many each of these stands for.
        pool: how many all of them stand for.
    """

    certain: Int[Tensor, " example"]
    others: Int[Tensor, " other"]
    weight: float
    pool: int

    def groups(self) -> list[list[tuple[Tensor, float]]]:
        """Rows and the share of their mean loss, group by group; the mean over groups is that of all.

        Neighbours are apart: data is often sorted.
        """
        count = min(GROUPS, len(self.certain) + len(self.others))
        found = list[list[tuple[Tensor, float]]]()
        for first in range(count):
            parts = ((self.certain[first::count], 1.0), (self.others[first::count], self.weight))
            found.append([(rows, count * len(rows) * each / self.pool) for rows, each in parts if len(rows)])
        return found


def select_examples(bent: Float[Tensor, "pool probe"], rows: Int[Tensor, " pool"], directions: int) -> HessianSubsample:
    """The examples to take, by how curved each is and how much they differ.

    Args:
        bent: b_i(z); where it tells nothing (zero, or not finite) all count alike.
        rows: their positions in the training data.
        directions: along how many the Hessian is taken; of no fewer examples than that, and than there are groups.
    """
    none, size = rows[:0], len(rows)
    curvature = bent.square().mean(1).sqrt()
    order = curvature.argsort(descending=True, stable=True)
    held = curvature[order].double().cumsum(0)
    few, known = size <= max(_FEW, _LEAST * directions), 0 < float(held[-1]) < math.inf
    needed = size if few else max(_LEAST * directions, GROUPS, int((held < HELD * held[-1]).sum()) + 1)
    alike = max(directions, GROUPS, enough_of(bent)) if known else EXAMPLES
    if 2 * alike <= min(needed, EXAMPLES) or not (few or known):
        others = rows[spread_rows(size, alike)]
        return HessianSubsample(none, others, size / len(others), size)
    if few:
        return HessianSubsample(rows, none, 1.0, size)
    if needed <= EXAMPLES:
        return HessianSubsample(rows[order[:needed].sort().values], none, 1.0, size)
    certain = EXAMPLES if size <= EXAMPLES else EXAMPLES * 3 // 4
    rest = order[certain:].sort().values
    others = rest[spread_rows(len(rest), EXAMPLES - certain)] if len(rest) else rest
    return HessianSubsample(rows[order[:certain].sort().values], rows[others], len(rest) / max(len(others), 1), size)


def enough_of(bent: Float[Tensor, "pool probe"]) -> int:
    """n, examples of a spread whose mean Hessian is that of all but for a relative error of `ERROR`.

    Args:
        bent: b_i(z) of all of them.
    """
    bent = bent.double()
    mean = bent.mean(0)
    differing = float((bent - mean).var(1).mean())
    if differing == 0:
        return 1
    return math.ceil(1 / (ERROR**2 * float(mean.var()) / differing + 1 / len(bent)))


def hessians_along(
    problem: Problem,
    backend: WeightBackend,
    directions: Float[Tensor, "direction weight"],
    span: float,
    workers: int,
    ranks: Ranks,
    progress: Progress | None = None,
) -> Float[Tensor, "group direction direction"]:
    """Q·H_g·Qᵀ of the mean loss of each group of training examples; their mean is that of all. Collective.

    Args:
        directions: Q, rows of any length.
        span: h, in units of the rows' length.
        workers: threads.
        ranks: the ranks, which share the groups.
        progress: called after each product of this rank: of each direction with the Hessian of each of its groups.
    """
    with ranks.collective("the curvature at the snapshot"):
        found = curved_sample(problem, backend, directions, span, workers, len(directions))
    groups = ranks.broadcast(found).groups()
    with ranks.collective("the curvature at the snapshot") as meeting:
        own = range(ranks.rank, len(groups), ranks.world_size)
        steps = Steps(len(own) * len(directions), meeting.watched(progress))

        def of_group(weights: Weights, bound: BoundModule, group: int) -> Tensor:
            parts = _parts(problem, groups[group])
            hessian = Hessian(problem, backend, parts, step=span, weights=weights, bound=bound)

            def along(products: Tensor) -> Tensor:
                steps.tick(len(products) // len(parts))
                return products @ directions.mT

            return hessian.times(directions, along)

        found = [each.cpu() for each in map_threads(backend, of_group, own, workers, steps)]
    everyone = ranks.all_gather(found)
    ordered = [everyone[group % ranks.world_size][group // ranks.world_size] for group in range(len(groups))]
    return torch.stack(ordered).to(directions.device)


def _parts(problem: Problem, group: Sequence[tuple[Tensor, float]]) -> list[WeightedBatch]:
    return [(problem.minibatch(rows), share) for rows, share in group]


def curved_sample(
    problem: Problem,
    backend: WeightBackend,
    directions: Float[Tensor, "direction weight"],
    span: float,
    workers: int,
    count: int,
) -> HessianSubsample:
    """Look at the training examples along some directions, and choose those of which the Hessian is taken.

    Args:
        count: along how many directions it will be taken. Other arguments as `hessians_along`.
    """
    size = len(problem.training)
    rows = spread_rows(size, POOL if problem.training.in_memory else EXAMPLES)
    bent = torch.zeros(len(rows), _PROBES)
    if len(rows) > _LEAST * count:  # of fewer all are taken, whatever they are
        chunks = rows.split(problem.eval_batch_size)
        generator = torch.Generator().manual_seed(stream_seed(DATA))
        mixed = torch.randn(_PROBES, len(directions), generator=generator) / math.sqrt(len(directions))
        probes = mixed.to(directions) @ directions
        try:
            bent = torch.cat(
                map_threads(
                    backend, partial(_bent, problem, backend, chunks, probes, span), range(len(chunks)), workers
                )
            )
        except Exception:
            # Only losses of the train set are known to be had one by one; of the training data the mean is enough.
            bent.zero_()
    return select_examples(bent, rows, count)


def _bent(
    problem: Problem,
    backend: WeightBackend,
    chunks: Sequence[Tensor],
    probes: Tensor,
    span: float,
    weights: Weights,
    bound: BoundModule,
    chunk: int,
) -> Float[Tensor, "example probe"]:
    """b of the examples of one chunk, on the CPU."""
    rows = chunks[chunk]
    batch = problem.minibatch(rows).batch

    def losses(direction: Tensor, step: float) -> Tensor:
        with torch.no_grad():
            torch.add(backend.center, direction, alpha=step, out=weights.flat)
            if problem.stochastic:
                seed_global(backend.device, stream_seed(GLOBAL))
            found = bound.call(lambda module: problem.loss(module, batch))
        return checked_rows(found, len(rows), "loss_fn").double().cpu()

    center = losses(probes[0], 0.0)
    found = [losses(probe, span) + losses(probe, -span) - 2 * center for probe in probes]
    with torch.no_grad():
        weights.flat.copy_(backend.center)
    return torch.stack(found, 1) / span**2


def seconds_for_hessians(problem: Problem, backend: WeightBackend, count: int, workers: int, num_ranks: int) -> float:
    """About how long the Hessians along `count` directions take, by a few of them.

    Args:
        workers, num_ranks: threads of each rank, and how many ranks share the groups.
    """
    some = torch.stack([random_direction(backend, 0, probe) for probe in range(_TIMED)])
    span = 0.005 * norm_of_snapshot(backend)
    started = time.perf_counter()
    groups = curved_sample(problem, backend, some, span, workers, count).groups()
    looking = time.perf_counter() - started
    group = Hessian(problem, backend, _parts(problem, groups[0]), step=span)
    few, more = (seconds(partial(group.times, some[:n])) for n in (1, _TIMED))
    each = max(more - few, 0.0) / (_TIMED - 1)
    return looking + len(groups) * (few + count * each) / (workers * num_ranks)
