"""The Hessian of the mean loss along given directions, computed on a subsample of the training examples.

Forward passes measure the curvature of every example along a few random directions z of the span, of norm about 1:

    b_i(z) = (l_i(w* + h·z) + l_i(w* − h·z) − 2·l_i(w*))/h²  ≈  zᵀH_i z.

They show how curved each example is, c_i² = mean of b_i² over z, and how much the Hessians differ. For Gaussian z the
variance of zᵀAz is 2·|A|² (Frobenius). The mean Hessian of n evenly spaced examples of N therefore has a root mean
square relative error of

    sqrt((1/n − 1/N)·mean over i of var(b_i − b̄) / var(b̄)).

If examples are alike, as long sequences of tokens are, evenly spaced examples are taken, enough to bring the error down
to `ERROR`, provided that this halves the work. In a trained network few examples have nearly all of the curvature:
under a softmax, the curvature of an example is about proportional to 1 minus the probability of its label. Then the
fewest examples that hold 99 % of Σ c_i are taken. If these are too many, the most curved are taken, and evenly spaced
ones of the others with larger weights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bif_lightning.curvature.example_weights import example_weights
from bif_lightning.curvature.gradients import map_threads, time_call
from bif_lightning.curvature.hessian import Hessian, WeightedBatch
from bif_lightning.curvature.spectrum import random_direction
from bif_lightning.data.dataset import spread_rows
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.distributed.threads import Progress, Steps
from bif_lightning.losses.observables import checked_rows
from bif_lightning.losses.problem import Problem
from bif_lightning.model.devices import now, raise_unrelated
from bif_lightning.model.weights import BoundModule, WeightBackend, Weights, norm_of_snapshot
from bif_lightning.rng import DATA, GLOBAL, seed_global, stream_seed

EXAMPLES = 1024
"""Most training examples that the Hessian is computed on."""

POOL = 4096
"""Most training examples whose curvature is measured first, evenly spaced; `EXAMPLES` if they are not in memory."""

GROUPS = 8
"""Groups of examples; their Hessians give the standard errors of the closed form."""

HELD = 0.99
"""Share of the curvature that the subsample must hold."""

ERROR = 0.15
"""Accepted relative error of the Hessian of evenly spaced examples."""

_FEW = 512  # up to so many examples are all taken unless they are alike, which costs little
_LEAST = 2  # fewest examples a direction; 1 if they are alike
_PROBES = 8
_TIMED = 4


@dataclass(frozen=True)
class HessianSubsample:
    """The training examples that the Hessian is computed on.

    Attributes:
        certain: positions of examples with weight 1, ascending.
        others: positions of examples with a larger weight, ascending.
        weight: number of examples that each of the others represents.
        pool: number of examples that all of them represent.
        example_weights: how much each example of the training data counts, with mean 1 over the pool; None for all
            alike.
    """

    certain: Int[Tensor, " example"]
    others: Int[Tensor, " other"]
    weight: float
    pool: int
    example_weights: Float[Tensor, " row"] | None = None

    def groups(self) -> list[list[tuple[Tensor, float]]]:
        """Rows and the shares of their mean losses, for each group; the mean over groups is the loss of the pool.

        Groups interleave, since data is often sorted.
        """
        count = min(GROUPS, len(self.certain) + len(self.others))
        found = list[list[tuple[Tensor, float]]]()
        for first in range(count):
            parts = ((self.certain[first::count], 1.0), (self.others[first::count], self.weight))
            found.append([(rows, count * self._size(rows) * each / self.pool) for rows, each in parts if len(rows)])
        return found

    def _size(self, rows: Tensor) -> float:
        return len(rows) if self.example_weights is None else float(self.example_weights[rows].sum())


def select_subsample(
    curvature_along: Float[Tensor, "pool probe"], rows: Int[Tensor, " pool"], directions: int
) -> HessianSubsample:
    """Select examples by how curved each is and how much they differ.

    Args:
        curvature_along: b_i(z); if all are zero or some are not finite, all examples count alike.
        rows: positions of the examples in the training data.
        directions: number of directions of the Hessian. At least so many examples are selected, and at least one for
            each group.
    """
    none, size = rows[:0], len(rows)
    curvature = curvature_along.square().mean(1).sqrt()
    order = curvature.argsort(descending=True, stable=True)
    held = curvature[order].double().cumsum(0)
    few, known = size <= max(_FEW, _LEAST * directions), 0 < float(held[-1]) < math.inf
    needed = size if few else max(_LEAST * directions, GROUPS, int((held < HELD * held[-1]).sum()) + 1)
    alike = max(directions, GROUPS, sample_size_for(curvature_along)) if known else EXAMPLES
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


def sample_size_for(curvature_along: Float[Tensor, "pool probe"]) -> int:
    """Number of evenly spaced examples at which the mean Hessian has a relative error of `ERROR`.

    Args:
        curvature_along: b_i(z) of all examples.
    """
    curvature_along = curvature_along.double()
    mean = curvature_along.mean(0)
    differing = float((curvature_along - mean).var(1).mean())
    if differing == 0:
        return 1
    return math.ceil(1 / (ERROR**2 * float(mean.var()) / differing + 1 / len(curvature_along)))


def hessians_along(
    problem: Problem,
    backend: WeightBackend,
    directions: Float[Tensor, "direction weight"],
    span: float,
    workers: int,
    ranks: Ranks,
    progress: Progress | None = None,
) -> Float[Tensor, "group direction direction"]:
    """Compute Q·H_g·Qᵀ for the mean loss of each group of training examples. Collective.

    The mean over groups is the Hessian of the mean loss.

    Args:
        directions: Q, rows of any length.
        span: h, in units of the rows' length.
        workers: threads.
        ranks: the ranks, which divide the groups among them.
        progress: called after each Hessian-vector product of this rank.
    """
    with ranks.collective("the curvature at the snapshot"):
        found = hessian_subsample(problem, backend, directions, span, workers, len(directions))
    groups = ranks.broadcast(found).groups()
    with ranks.collective("the curvature at the snapshot") as section:
        own = range(ranks.rank, len(groups), ranks.world_size)
        steps = Steps(len(own) * len(directions), section.watched(progress))

        def of_group(weights: Weights, bound: BoundModule, group: int) -> Tensor:
            parts = _parts(problem, groups[group])
            hessian = Hessian(problem, backend, parts, step=span, weights=weights, bound=bound, tick=steps.check)

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


def hessian_subsample(
    problem: Problem,
    backend: WeightBackend,
    directions: Float[Tensor, "direction weight"],
    span: float,
    workers: int,
    count: int,
) -> HessianSubsample:
    """Measure the curvature of the training examples, and select those to compute the Hessian on.

    Args:
        count: number of directions of the Hessian. Other arguments as in `hessians_along`.
    """
    size = len(problem.training)
    rows = spread_rows(size, POOL if problem.training.in_memory else EXAMPLES)
    curvature_along = torch.zeros(len(rows), _PROBES, device="cpu")
    counts = example_weights(problem, backend, rows)
    if len(rows) > _LEAST * count:  # fewer are all taken
        chunks = rows.split(problem.eval_batch_size)
        generator = torch.Generator().manual_seed(stream_seed(DATA))
        mixed = torch.randn(_PROBES, len(directions), generator=generator, device="cpu") / math.sqrt(len(directions))
        probes = mixed.to(directions) @ directions
        try:
            curvature_along = torch.cat(
                map_threads(
                    backend,
                    partial(_curvature_along, problem, backend, chunks, probes, span),
                    range(len(chunks)),
                    workers,
                )
            )
        except Exception as error:
            raise_unrelated(error)
            # Losses of single examples are guaranteed for the train set, not for the training data.
            curvature_along.zero_()
    if counts is None:
        return select_subsample(curvature_along, rows, count)
    found = select_subsample(curvature_along * counts[:, None], rows, count)
    return replace(found, example_weights=torch.zeros(size, dtype=counts.dtype, device="cpu").scatter(0, rows, counts))


def _curvature_along(
    problem: Problem,
    backend: WeightBackend,
    chunks: Sequence[Tensor],
    probes: Tensor,
    span: float,
    weights: Weights,
    bound: BoundModule,
    chunk: int,
) -> Float[Tensor, "example probe"]:
    """b_i(z) of the examples of one chunk, on the CPU."""
    rows = chunks[chunk]
    batch = problem.minibatch(rows).batch

    def losses(direction: Tensor, step: float) -> Tensor:
        with torch.no_grad():
            torch.add(backend.center, direction, alpha=step, out=weights.flat)
        problem.tick()
        with problem.measuring():
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
    """Estimate how long the Hessians along `count` directions take, by timing a few directions.

    Args:
        workers, num_ranks: threads of each rank, and ranks that divide the groups among them.
    """
    some = torch.stack([random_direction(backend, 0, probe) for probe in range(_TIMED)])
    span = 0.005 * norm_of_snapshot(backend)
    started = now()
    groups = hessian_subsample(problem, backend, some, span, workers, count).groups()
    looking = now() - started
    group = Hessian(problem, backend, _parts(problem, groups[0]), step=span)
    few, more = (time_call(partial(group.times, some[:n])) for n in (1, _TIMED))
    each = max(more - few, 0.0) / (_TIMED - 1)
    return looking + len(groups) * (few + count * each) / (workers * num_ranks)
