"""What is made of gradients one after another, against the same of all gradients at once."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from bif_lightning.config import Chains, ControlledSGLD
from bif_lightning.curvature import streamed
from bif_lightning.curvature.count_sketch import CountSketch
from bif_lightning.curvature.gradients import train_gradients
from bif_lightning.curvature.kronecker import KroneckerPreconditioner
from bif_lightning.curvature.sketched import SketchSize, linearize_sketched, steps_of_sketched
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.losses.problem import Problem
from bif_lightning.model.weights import WeightBackend, layout_of
from bif_lightning.sampling.choice import sampler_of
from bif_lightning.sampling.context import engine_context
from targets import problem_with

EXAMPLES = 37


def data(size: int = EXAMPLES, seed: int = 0) -> TensorDataset:
    made = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randn(size, 2, 4, 4, generator=made, dtype=torch.float64), torch.randint(0, 3, (size,), generator=made)
    )


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()


def classes(module: nn.Module, batch: list[Tensor]) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1], reduction="none")


@contextmanager
def snapshot(
    loss: Callable[[nn.Module, list[Tensor]], Tensor] = classes,
) -> Generator[tuple[Problem, WeightBackend, int]]:
    problem = problem_with(network(), loss, data(), data(6, 1))  # type: ignore[arg-type]
    with engine_context(problem, Chains()) as (backend, workers, _):
        yield problem, backend, workers


@pytest.mark.exact
def test_the_metric_of_a_stream_is_that_of_all_gradients() -> None:
    with snapshot() as (problem, backend, workers):
        train, vectors = train_gradients(problem, backend, 1), backend.center.new_ones(1, backend.layout.size)
        exact = KroneckerPreconditioner.whitening(train.clone(), backend.layout.places)
        found = streamed.metric_of_stream(problem, backend, workers, Ranks())
        # Bases are unique up to signs; lengths do not know of these.
        for row in train:
            assert found.squared_length(row) == pytest.approx(exact.squared_length(row), rel=1e-9)
        assert found.squared_length(vectors[0]) == pytest.approx(exact.squared_length(vectors[0]), rel=1e-9)


@pytest.mark.exact
def test_sketches_and_combinations_are_those_of_all_gradients() -> None:
    with snapshot() as (problem, backend, workers):
        train = train_gradients(problem, backend, 1)
        metric = KroneckerPreconditioner.whitening(train.clone(), backend.layout.places)
        sketch = CountSketch.of(backend.center, 50)
        found = streamed.sketches(problem, backend, problem.train_singles, metric, sketch, workers, Ranks())
        whitened = train.clone()
        metric.whiten(whitened)
        torch.testing.assert_close(found, sketch(whitened))
        weights = torch.randn(4, EXAMPLES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        torch.testing.assert_close(streamed.combinations(problem, backend, weights, workers, Ranks()), weights @ train)


@pytest.mark.bitwise
def test_the_number_of_threads_changes_no_bit() -> None:
    def found(threads: int) -> tuple[Tensor | None, Tensor, Tensor]:
        torch.set_num_threads(threads)
        with snapshot() as (problem, backend, workers):
            assert workers == threads
            found = linearize_sketched(problem, backend, ControlledSGLD(gradient_bytes=200_000), workers, Ranks())
            return found.posterior.normal.metric.scale, found.posterior.train, found.directions

    before = torch.get_num_threads()
    try:
        for one, other in zip(found(1), found(2), strict=True):
            assert one is not None
            assert torch.equal(one, other)
    finally:
        torch.set_num_threads(before)


def log_cosh(module: nn.Module, batch: list[Tensor]) -> Tensor:
    """A loss that has no Gauss-Newton matrix."""
    return (module(batch[0]) - batch[1][:, None]).cosh().log().sum(1)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 1)).double()


def squares(module: nn.Module, batch: list[Tensor]) -> Tensor:
    """Of one output, so that a random sign changes nothing."""
    return F.mse_loss(module(batch[0])[:, 0], batch[1].double(), reduction="none")


@pytest.mark.exact
@pytest.mark.parametrize(("module", "loss"), [(linear, squares), (network, log_cosh)])
def test_a_sketch_with_room_for_all_gives_the_influence_of_all_gradients(
    module: Callable[[], nn.Module], loss: Callable[[nn.Module, list[Tensor]], Tensor]
) -> None:
    """Also by products with the Hessian, where all directions are known in the whole space."""
    settings = ControlledSGLD(localization=1e4, num_directions=30, num_corrected=30)
    problem = problem_with(module(), loss, data(), data(6, 1))  # type: ignore[arg-type]
    with engine_context(problem, Chains()) as (backend, workers, _):
        exact = sampler_of(settings).prepare(problem, backend, workers, Ranks())
        found = linearize_sketched(problem, backend, settings, workers, Ranks())
    assert found.posterior.train.shape == (EXAMPLES, backend.layout.size)
    of_sketch, of_all = (
        each.products(slice(None)).covariance.sum(0)
        for each in (found.posterior, exact.surrogate.posterior)  # type: ignore[attr-defined]
    )
    np.testing.assert_allclose(of_sketch, of_all, rtol=1e-4, atol=1e-5 * abs(of_all).max())
    torch.testing.assert_close(found.along, exact.surrogate.along, rtol=1e-4, atol=1e-8)  # type: ignore[attr-defined]
    assert found.directions.shape == exact.surrogate.directions.shape  # type: ignore[attr-defined]
    # Eigenvectors of well separated eigenvalues are the same up to signs.
    apart = (found.directions @ exact.surrogate.directions.mT).abs().diagonal()  # type: ignore[attr-defined]
    torch.testing.assert_close(apart[-5:], found.directions.square().sum(1)[-5:], rtol=1e-3, atol=0)


@pytest.mark.exact
def test_the_memory_is_divided_and_kept() -> None:
    layout = layout_of({"weight": torch.zeros(1000, 100)})
    settings = ControlledSGLD(gradient_bytes=40_000_000)
    size = SketchSize.of(settings, layout, rows=500)
    assert size == SketchSize(numbers=14_000_000 // (4 * 628), directions=6_000_000 // 400_000)
    assert SketchSize.of(ControlledSGLD(gradient_bytes=1), layout, rows=500) == SketchSize(128, 4)


@pytest.mark.exact
@pytest.mark.parametrize("loss", [classes, log_cosh])
def test_progress_counts_each_step_once(loss: Callable[[nn.Module, list[Tensor]], Tensor]) -> None:
    seen, settings = list[tuple[int, int]](), ControlledSGLD(gradient_bytes=200_000)
    with snapshot(loss) as (problem, backend, workers):
        steps = steps_of_sketched(problem, settings, Ranks())
        linearize_sketched(problem, backend, settings, workers, Ranks(), lambda done, total: seen.append((done, total)))
    done, totals = zip(*seen, strict=True)
    assert set(totals) == {steps}
    assert list(done) == sorted(done)
    assert done[-1] == steps
