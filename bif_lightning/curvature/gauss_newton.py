"""The Gauss-Newton matrix of the mean training loss along a few directions, from random backward passes.

For training example i, m vectors s with E[s·sᵀ] = G_i come from one forward and m backward passes
(`curvature.outputs`). Along directions Q the matrix of a group of examples is the mean of (Q·s)(Q·s)ᵀ: no product with
a Hessian is needed, and K numbers of each pass are kept. Where outputs are linear in the weights, G is the Hessian.

The Hessian H is more than G where residuals are large and the network is curved. A few products with H tell by how
much, in the directions where G is largest; above `MOST_ERROR` the Hessian itself takes its place there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bif_lightning.curvature.example_weights import example_weights
from bif_lightning.curvature.gradients import map_threads, time_call
from bif_lightning.curvature.hessian import Hessian
from bif_lightning.curvature.outputs import NoOutputsError, Output, outputs_of
from bif_lightning.curvature.subsample import EXAMPLES, GROUPS, hessians_along
from bif_lightning.data.dataset import Batch, spread_rows
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.distributed.threads import Progress, Steps
from bif_lightning.losses.problem import Problem
from bif_lightning.model.weights import BoundModule, WeightBackend, Weights
from bif_lightning.rng import GLOBAL, seed_global, stream_seed

MOST_ERROR = 0.15
"""Relative error of the Gauss-Newton matrix, in its strongest directions, up to which it stands for the Hessian."""

CHECKED = 32
"""Directions in which it is compared with the Hessian, and in which the Hessian replaces it."""

Projection = Callable[[Float[Tensor, "vector weight"]], Float[Tensor, "vector direction"]]
"""Coordinates of vectors along directions Q. It may overwrite the vectors."""

_PROBES = 4  # products with the Hessian for the comparison
_COMPARED = 128  # most training examples of the comparison
_TIMED = 4
_PART = 16  # examples that a thread takes at a time
_SKETCH = -4  # keys the random signs
BLOCK_BYTES = 1 << 24
"""Memory of the vectors of one thread that are projected together."""


@dataclass(frozen=True)
class GaussNewton:
    """Vectors whose second moment is the Gauss-Newton matrix of the mean loss, along directions Q.

    Attributes:
        rows: positions of the training examples.
        along: Q·s of the passes of each, float64, on the CPU.
        weights: how much each counts, with mean 1 (`example_weights`); None for all alike.
    """

    rows: Int[Tensor, " example"]
    along: Float[Tensor, "example probe direction"]
    weights: Float[Tensor, " example"] | None = None

    def of(self, examples: Tensor | slice) -> Float[Tensor, "direction direction"]:
        """Q·G·Qᵀ, the sum over some of the examples, with their weights, by their number."""
        some = self.along[examples]
        along, weighted = some.flatten(0, 1), some
        if self.weights is not None:
            weighted = self.weights[examples][:, None, None] * some
        return weighted.flatten(0, 1).mT @ along / len(along)

    def mean_of(self, examples: Tensor) -> Float[Tensor, "direction direction"]:
        """Q·G·Qᵀ, the mean over some of the examples."""
        return self.of(examples) if self.weights is None else self.of(examples) / self.weights[examples].mean()

    @property
    def curvature(self) -> Float[Tensor, " example"]:
        """tr(Q·G_i·Qᵀ) of each example, with its weight."""
        found = self.along.square().sum(2).mean(1)
        return found if self.weights is None else self.weights * found

    def groups(self) -> Float[Tensor, "group direction direction"]:
        """Q·G·Qᵀ of interleaved groups of the examples, weighted so that their mean is that of all."""
        count = min(GROUPS, len(self.rows))
        found = [self.of(slice(group, None, count)) for group in range(count)]
        shares = [len(range(group, len(self.rows), count)) * count / len(self.rows) for group in range(count)]
        return torch.stack([share * each for share, each in zip(shares, found, strict=True)])


def gauss_newton_along(
    problem: Problem,
    backend: WeightBackend,
    project: Projection,
    probes: int,
    workers: int,
    ranks: Ranks,
    progress: Progress | None = None,
) -> GaussNewton:
    """Compute the Gauss-Newton matrix of at most `EXAMPLES` training examples, evenly spaced. Collective.

    Args:
        project: s to Q·s.
        probes: m, backward passes for each example.
        workers: threads; their number changes no bit.
        ranks: the ranks, which divide the examples among them.
        progress: called after each example of this rank.

    Raises:
        NoOutputsError: the loss has no Gauss-Newton matrix here.
    """
    rows = gauss_newton_rows(problem)
    parts = rows.split(_PART)
    own = _own_parts(rows, ranks)
    with ranks.collective("the curvature at the snapshot") as section:
        weights = example_weights(problem, backend, rows)
        steps = Steps(steps_of_gauss_newton(problem, ranks), section.watched(progress))

        def of_part(weights: Weights, bound: BoundModule, part: int) -> Tensor:
            return _along(problem, backend, weights, bound, parts[part], project, probes, steps)

        found: list[Tensor] | NoOutputsError
        try:
            found = map_threads(backend, of_part, own, workers, steps)
        except NoOutputsError as error:
            found = error
    everyone = ranks.all_gather(found)
    lists = list[list[Tensor]]()
    for each in everyone:
        if isinstance(each, NoOutputsError):
            raise each
        lists.append(each)
    ordered = [lists[part % ranks.world_size][part // ranks.world_size] for part in range(len(parts))]
    return GaussNewton(rows, torch.cat(ordered), ranks.broadcast(weights))


def steps_of_gauss_newton(problem: Problem, ranks: Ranks) -> int:
    """Examples of this rank, each a step of progress."""
    rows = gauss_newton_rows(problem)
    parts = rows.split(_PART)
    return sum(len(parts[part]) for part in _own_parts(rows, ranks))


def _own_parts(rows: Tensor, ranks: Ranks) -> range:
    return range(ranks.rank, -(-len(rows) // _PART), ranks.world_size)


def seconds_for_gauss_newton(
    problem: Problem,
    backend: WeightBackend,
    project: Projection,
    probes: int,
    workers: int,
    num_ranks: int,
) -> float:
    """Estimate how long `gauss_newton_along` takes, by timing a few examples.

    Args:
        project, probes: as there.
        workers, num_ranks: threads of each rank, and ranks that divide the examples among them.

    Raises:
        NoOutputsError: the loss has no Gauss-Newton matrix here.
    """
    rows, weights = gauss_newton_rows(problem), backend.weights()
    bound = backend.bind(weights)

    def few() -> object:
        return _along(problem, backend, weights, bound, rows[:_TIMED], project, probes, Steps())

    with torch.enable_grad():
        return time_call(few) / len(rows[:_TIMED]) * len(rows) / (workers * num_ranks)


def gauss_newton_rows(problem: Problem) -> Int[Tensor, " example"]:
    """Positions of the training examples behind the Gauss-Newton matrix."""
    return spread_rows(len(problem.training), EXAMPLES)


def _along(
    problem: Problem,
    backend: WeightBackend,
    weights: Weights,
    bound: BoundModule,
    rows: Tensor,
    project: Projection,
    probes: int,
    steps: Steps,
) -> Float[Tensor, "example probe direction"]:
    """Q·s of the passes of these examples, float64, on the CPU."""
    at_once = max(1, min(len(rows), BLOCK_BYTES // (probes * backend.center.nbytes)))
    block = torch.empty(at_once * probes, backend.layout.size, dtype=backend.center.dtype, device=backend.device)
    found, first = list[Tensor](), int(rows[0])
    for some in rows.split(at_once):
        for row, out in zip(some.tolist(), block.split(probes), strict=False):
            batch = problem.minibatch(torch.tensor([row], device="cpu")).batch
            check = row == first  # one of each part: it costs two passes
            roots_of_example(problem, backend, weights, bound, batch, out.zero_(), key=row, check=check)
            steps.tick()
        found.append(project(block[: len(some) * probes]).double().cpu())
    return torch.cat(found).unflatten(0, (-1, probes))


def roots_of_example(
    problem: Problem,
    backend: WeightBackend,
    weights: Weights,
    bound: BoundModule,
    batch: Batch,
    out: Float[Tensor, "pass weight"],
    key: int,
    *,
    check: bool = False,
) -> None:
    """Vectors s with E[s·sᵀ] = G of a batch of one example, into rows of zeros.

    Args:
        key: of the random signs.
        check: that the loss depends on the weights through its outputs alone.

    Raises:
        NoOutputsError: the loss has none.
    """
    signs = torch.Generator().manual_seed(stream_seed(_SKETCH, key))

    def roots(module: nn.Module) -> None:
        outputs = outputs_of(problem.objective, module, batch, weights.leaves, check=check)
        for row in out if outputs else ():
            _pull_back(outputs, signs, weights, backend.layout.pieces(row), problem.loss_scale)

    problem.tick()
    if problem.stochastic:
        seed_global(backend.device, stream_seed(GLOBAL))
    bound.call(roots)
    if not bool(out.isfinite().all()):
        raise NoOutputsError("its slopes are not finite")


def _pull_back(
    outputs: Sequence[Output], signs: torch.Generator, weights: Weights, pieces: Sequence[Tensor], scale: float
) -> None:
    """s = Σ √c·Jᵀ·v, into the pieces."""
    values, slopes = [each.values for each in outputs], [each.slopes(signs) * scale for each in outputs]
    found = torch.autograd.grad(values, weights.leaves, slopes, retain_graph=True, materialize_grads=True)
    for piece, each in zip(pieces, found, strict=True):
        piece.copy_(each).div_(scale)


def strongest_of(gauss_newton: GaussNewton) -> Float[Tensor, "direction checked"]:
    """The directions in which the matrix is largest, the largest first, as columns in the basis Q."""
    return torch.linalg.eigh(gauss_newton.groups().mean(0)).eigenvectors[:, -CHECKED:].flip(1)


def corrected(
    problem: Problem,
    backend: WeightBackend,
    strongest: Float[Tensor, "direction checked"],
    top: Float[Tensor, "checked weight"],
    span: float,
    gauss_newton: GaussNewton,
    workers: int,
    ranks: Ranks,
    progress: Progress | None = None,
) -> tuple[Float[Tensor, "group direction direction"], float]:
    """The Hessian in the strongest directions of a Gauss-Newton matrix, where they differ. Collective.

    Args:
        strongest, top: these directions, in the basis Q and in weight space.
        span: as in `hessians_along`.
        progress: called after each Hessian-vector product of this rank, if there are any.

    Returns:
        Matrices of the groups, and the relative error of the Gauss-Newton matrix in its strongest directions.
    """
    groups = gauss_newton.groups()
    error = error_along(
        problem, backend, strongest, lambda mixed: mixed.to(top) @ top, lambda vectors: vectors @ top.mT, span,
        gauss_newton, ranks,
    )  # fmt: skip
    if not error > MOST_ERROR:
        return groups, error
    hessians = hessians_along(problem, backend, top, span, workers, ranks, progress).double().cpu()
    mean = (hessians + hessians.mT).mean(0) / 2
    within = strongest.mT @ groups.mean(0) @ strongest
    # The groups keep the deviations of the Gauss-Newton matrix.
    return groups + strongest @ (mean - within) @ strongest.mT, error


def error_along(
    problem: Problem,
    backend: WeightBackend,
    strongest: Float[Tensor, "direction checked"],
    combine: Callable[[Float[Tensor, "probe checked"]], Float[Tensor, "probe weight"]],
    project: Projection,
    span: float,
    gauss_newton: GaussNewton,
    ranks: Ranks,
) -> float:
    """|Z·(H − G)|/|Z·G| of the same examples, for random combinations Z of the strongest directions. Collective.

    Args:
        strongest: these directions in the basis Q.
        combine: sums of them in weight space.
        project: coordinates of vectors in weight space along them.
    """
    with ranks.collective("comparing the curvature with the Hessian"):
        error = _error(problem, backend, strongest, combine, project, span, gauss_newton)
    return ranks.broadcast(error)


def _error(
    problem: Problem,
    backend: WeightBackend,
    strongest: Tensor,
    combine: Callable[[Tensor], Tensor],
    project: Projection,
    span: float,
    gauss_newton: GaussNewton,
) -> float:
    some = spread_rows(len(gauss_newton.rows), _COMPARED)
    generator = torch.Generator().manual_seed(stream_seed(_SKETCH))
    mixed = torch.randn(_PROBES, strongest.shape[1], generator=generator, device="cpu")
    hessian = Hessian.of_training(problem, backend, rows=gauss_newton.rows[some])
    hessian.step = span
    found = hessian.times(combine(mixed), project).double().cpu()
    expected = mixed.double() @ (strongest.mT @ gauss_newton.mean_of(some) @ strongest)
    return float((found - expected).norm() / expected.norm().clamp(min=torch.finfo(torch.float64).tiny))
