"""The Laplace approximation at the snapshot where the gradients of all examples do not fit into memory.

As `curvature.laplace`, but for the whitened gradients, of which sketches are kept (`curvature.count_sketch`), with as
many numbers each as a given memory has room for. The directions and the Gauss-Newton matrix live in the sketch. Only
the r most curved directions are made in the whole space too, for the chains: a pass over the examples adds up the
gradients that they are sums of.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.config import ControlledSGLD
from bif_lightning.curvature.closed_form import LinearizedPosterior
from bif_lightning.curvature.count_sketch import CountSketch
from bif_lightning.curvature.example_weights import example_weights
from bif_lightning.curvature.gauss_newton import (
    BLOCK_BYTES,
    MOST_ERROR,
    GaussNewton,
    error_along,
    gauss_newton_along,
    gauss_newton_rows,
    seconds_for_gauss_newton,
    steps_of_gauss_newton,
)
from bif_lightning.curvature.gaussian import (
    SubspaceGaussian,
    orthonormal,
    rotate,
    strongest_combinations,
)
from bif_lightning.curvature.gradients import gradient_bytes_of, observable_slopes, why_no_single_gradients
from bif_lightning.curvature.kronecker import KroneckerPreconditioner, is_rotated, metric_bytes, sides_of
from bif_lightning.curvature.laplace import SurrogatePosterior, tempered
from bif_lightning.curvature.outputs import NoOutputsError
from bif_lightning.curvature.strata import OfExamples
from bif_lightning.curvature.streamed import (
    BLOCK,
    combinations,
    metric_of_stream,
    seconds_to_stream,
    sketches,
    steps_of_parts,
    unit_metric,
    whitened,
)
from bif_lightning.curvature.subsample import EXAMPLES, hessians_along
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.distributed.threads import Progress, Steps, offset_progress, still_progress
from bif_lightning.losses.problem import Problem
from bif_lightning.model.weights import (
    FlatLayout,
    WeightBackend,
    layout_of,
    norm_of_snapshot,
    sampled_parameters,
)

PASSES = 2048
"""Most random backward passes behind the Gauss-Newton matrix, over all examples. Each is rotated into the bases of the
metric, which takes longer than the pass."""

_FOR_SKETCHES, _FOR_DIRECTIONS = 0.35, 0.15  # of the memory for gradients; chains take about as much
_LEAST_DIRECTIONS = 4


@dataclass(frozen=True)
class SketchSize:
    """How the memory is divided.

    Attributes:
        numbers: k, of each sketch.
        directions: r, directions in the whole space.
    """

    numbers: int
    directions: int

    @classmethod
    def of(cls, settings: ControlledSGLD, layout: FlatLayout, rows: int) -> "SketchSize":
        """For the gradients of so many examples."""
        item = layout.dtype.itemsize
        room = int(_FOR_DIRECTIONS * settings.gradient_bytes) // (item * layout.size)
        directions = min(settings.num_corrected, settings.num_directions, max(room, _LEAST_DIRECTIONS))
        numbers = int(_FOR_SKETCHES * settings.gradient_bytes) // (item * (rows + settings.num_directions))
        return cls(max(min(numbers, layout.size), settings.num_directions), directions)


def is_sketched(problem: Problem, settings: ControlledSGLD) -> bool:
    """Whether the gradients take more memory than they may.

    Raises:
        ValueError: those of single examples cannot be computed.
    """
    if why := why_no_single_gradients(problem):
        raise ValueError(f"the sampler needs the gradient of every example, but {why}; or sample with SGLD")
    return gradient_bytes_of(problem) > settings.gradient_bytes


def size_of(problem: Problem, settings: ControlledSGLD) -> SketchSize:
    """Sizes of the sketch of a problem."""
    layout = layout_of(sampled_parameters(problem.module, problem.params))
    return SketchSize.of(settings, layout, rows_of(problem))


def rows_of(problem: Problem) -> int:
    """Number of gradients: of the train examples, and of the queries unless they are the same."""
    return problem.num_train + problem.num_further_queries


def linearize_sketched(
    problem: Problem,
    backend: WeightBackend,
    settings: ControlledSGLD,
    workers: int,
    ranks: Ranks,
    progress: Progress | None = None,
) -> SurrogatePosterior:
    """Linearize all losses and observables at the snapshot, in a sketch. Collective.

    Raises:
        ValueError: all gradients are 0, or some are not finite.
    """
    size = size_of(problem, settings)
    of_part = _Progress(progress, steps_of_sketched(problem, settings, ranks))
    metric = KroneckerPreconditioner()
    if settings.metric == "kronecker":
        with of_part(2 * steps_of_parts(problem, ranks)) as during:
            metric = metric_of_stream(problem, backend, workers, ranks, during)
    sketch = CountSketch.of(backend.center, size.numbers)
    read = partial(sketches, problem, backend, metric=metric, sketch=sketch, workers=workers, ranks=ranks)
    with of_part(_own(problem.num_train, ranks)) as during:
        train = read(problem.train_singles, progress=during)
    columns = train
    if problem.query is not problem.train:
        with of_part(_own(len(problem.query_singles), ranks)) as during:
            columns = read(problem.query_singles, progress=during)

    combined = strongest_combinations(train, settings.num_directions, workers)
    directions = orthonormal(combined.to(train) @ train, workers)
    with of_part(steps_of_gauss_newton(problem, ranks)) as during:
        known = _gauss_newton(problem, backend, settings, metric, sketch, directions, workers, ranks, during)
    if known is None:  # curvature is measured only along directions that are known in the whole space
        combined, directions = combined[: size.directions], directions[: size.directions]
        vectors = torch.eye(len(directions), dtype=torch.float64, device=directions.device)
    else:
        vectors = torch.linalg.eigh(known.groups().mean(0)).eigenvectors[:, -size.directions :].to(combined.device)
    with of_part(problem.num_train) as during:
        whole = combinations(problem, backend, vectors.mT @ combined, workers, ranks, during)
    metric.whiten(whole)
    orthonormal(whole, workers)
    squares = torch.stack([metric.to_weight_space(row[None]).square().sum() for row in whole])
    span = settings.span * norm_of_snapshot(backend) / float(squares.mean().sqrt())
    if problem.observables:
        with of_part(len(whole)) as during:
            steps = Steps(len(whole), during)
            slopes = observable_slopes(
                problem, backend, partial(_in_weights, metric, whole), len(whole), span, workers, steps
            )
        columns = torch.cat([columns, slopes.to(columns) @ sketch(whole)])

    if known is None:
        still = still_progress(progress, of_part.done, of_part.total)
        hessians = hessians_along(problem, backend, metric.to_weight_space(whole), span, workers, ranks, still)
    else:
        hessians = known.groups().to(directions.device)
        combine = partial(_combine, metric, whole)
        project = partial(_project, metric, whole)
        _remark_error(problem, error_along(problem, backend, vectors.cpu(), combine, project, span, known, ranks))
    normal, eigenvectors = SubspaceGaussian.of(directions, hessians.mean(0), 1.0, 1.0, metric)
    if known is None:
        whole = eigenvectors.mT.to(whole) @ whole
    of_all = squares.mean().expand(len(directions))
    normal = tempered(normal, of_all, settings, problem.num_train, norm_of_snapshot(backend))
    posterior = LinearizedPosterior.of(normal, rotate(hessians, eigenvectors), train, columns)
    problem.remarks["gradients"] = (
        f"the gradients of {rows_of(problem)} examples take more than gradient_bytes={settings.gradient_bytes:.3g}: "
        f"sketches of {size.numbers} numbers each stand for {backend.layout.num_weights} weights, and chains correct "
        f"{len(whole)} directions"
    )
    for row in whole:
        row.copy_(metric.to_weight_space(row[None])[0])
    return SurrogatePosterior(posterior, whole, _of_examples(problem, backend, known, ranks))


def steps_of_sketched(problem: Problem, settings: ControlledSGLD, ranks: Ranks) -> int:
    """Steps of progress of `linearize_sketched` on this rank."""
    metric = 2 * steps_of_parts(problem, ranks) if settings.metric == "kronecker" else 0
    rows = _own(problem.num_train, ranks)
    if problem.query is not problem.train:
        rows += _own(problem.num_further_queries, ranks)
    slopes = size_of(problem, settings).directions if problem.observables else 0
    return metric + rows + steps_of_gauss_newton(problem, ranks) + problem.num_train + slopes


def seconds_for_sketched(
    problem: Problem, backend: WeightBackend, settings: ControlledSGLD, workers: int, ranks: Ranks
) -> float:
    """Estimate how long `linearize_sketched` takes, by timing parts of it. Collective."""
    size = size_of(problem, settings)
    sketch, metric = CountSketch.of(backend.center, size.numbers), unit_metric(backend)
    directions = backend.center.new_ones(settings.num_directions, size.numbers)

    def project(roots: Tensor) -> Tensor:
        return whitened(roots, metric, sketch) @ directions.mT

    with ranks.collective("timing the gradients at the snapshot"):
        streamed = seconds_to_stream(problem, backend, sketch, size.directions, workers, ranks)
        try:
            probes = _probes(problem, settings)
            return streamed + seconds_for_gauss_newton(problem, backend, project, probes, workers, ranks.world_size)
        except NoOutputsError:
            return streamed


def sketched_bytes(problem: Problem, backend: WeightBackend, settings: ControlledSGLD) -> int:
    """Bytes that stay: sketches, directions, and the metric."""
    item, layout = backend.center.element_size(), backend.layout
    size = size_of(problem, settings)
    rows = rows_of(problem) + sum(problem.column_counts[1:]) + settings.num_directions
    metric = metric_bytes(layout.places, item) if settings.metric == "kronecker" else 0
    return (rows * size.numbers + size.directions * layout.size) * item + metric


def streaming_bytes(problem: Problem, backend: WeightBackend, settings: ControlledSGLD, workers: int) -> int:
    """Bytes that `linearize_sketched` takes beside what stays: of the gradients under way, and their sums."""
    item, layout = backend.center.element_size(), backend.layout
    largest = max(shape.numel() for shape in layout.shapes)
    block = max(BLOCK_BYTES, _probes(problem, settings) * layout.size * item)
    sums = 8 * sum(side**2 for _, shape in layout.places for side in sides_of(shape) if is_rotated(side))
    shared = max(BLOCK * layout.size * item, 16 * layout.size, 2 * sums)
    return workers * (3 * (layout.size + largest) * item + 2 * block + sums) + shared


@dataclass
class _Progress:
    """Progress of one part after another."""

    progress: Progress | None
    total: int
    done: int = 0

    @contextmanager
    def __call__(self, steps: int) -> Generator[Progress | None]:
        """Of the next part, with so many steps."""
        yield offset_progress(self.progress, before=self.done, after=self.total - self.done - steps)
        self.done += steps


def _own(count: int, ranks: Ranks) -> int:
    return len(range(ranks.rank, count, ranks.world_size))


def _probes(problem: Problem, settings: ControlledSGLD) -> int:
    """Random backward passes for each example: some for all count for more than many for some."""
    return min(settings.num_probes, max(1, PASSES // min(len(problem.training), EXAMPLES)))


def _gauss_newton(
    problem: Problem,
    backend: WeightBackend,
    settings: ControlledSGLD,
    metric: KroneckerPreconditioner,
    sketch: CountSketch,
    directions: Float[Tensor, "direction place"],
    workers: int,
    ranks: Ranks,
    progress: Progress | None,
) -> GaussNewton | None:
    """The Gauss-Newton matrix along directions in the sketch; None where the loss has none."""

    def project(roots: Float[Tensor, "vector weight"]) -> Float[Tensor, "vector direction"]:
        return whitened(roots, metric, sketch) @ directions.mT

    try:
        return gauss_newton_along(problem, backend, project, _probes(problem, settings), workers, ranks, progress)
    except NoOutputsError as error:
        problem.remarks["curvature"] = f"the curvature is by products with the Hessian, since of the loss {error}"
        return None


def _of_examples(problem: Problem, backend: WeightBackend, known: GaussNewton | None, ranks: Ranks) -> OfExamples:
    if known is not None:
        return OfExamples(known.curvature, known.weights)
    weights = ranks.broadcast(example_weights(problem, backend, gauss_newton_rows(problem)))
    return OfExamples(torch.empty(0, device="cpu"), weights)


def _in_weights(
    metric: KroneckerPreconditioner, directions: Float[Tensor, "direction weight"], number: int
) -> Float[Tensor, " weight"]:
    return metric.to_weight_space(directions[number][None])[0]


def _combine(
    metric: KroneckerPreconditioner,
    directions: Float[Tensor, "direction weight"],
    mixed: Float[Tensor, "sum direction"],
) -> Float[Tensor, "sum weight"]:
    """Sums of directions, in weight space."""
    return metric.to_weight_space(mixed.to(directions) @ directions)


def _project(
    metric: KroneckerPreconditioner,
    directions: Float[Tensor, "direction weight"],
    vectors: Float[Tensor, "vector weight"],
) -> Float[Tensor, "vector direction"]:
    """Slopes along the directions of functions with these gradients, which are overwritten."""
    metric.whiten(vectors)
    return vectors @ directions.mT


def _remark_error(problem: Problem, error: float) -> None:
    if error > MOST_ERROR:
        problem.remarks["curvature"] = (
            f"the curvature is the Gauss-Newton matrix, from which the Hessian differs by {error:.0%} along the most "
            "curved directions; with gradient_bytes for all gradients it would be the Hessian there"
        )
