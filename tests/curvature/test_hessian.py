"""Products with the Hessian: exact where second derivatives exist, differences where they do not."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bif_lightning.config import Chains
from bif_lightning.curvature.hessian import Hessian, check_twice, plain_attention
from bif_lightning.losses.problem import Problem
from bif_lightning.sampling.context import engine_context
from small_models import Attention, data, mlp, problem_of, seeded

pytestmark = pytest.mark.exact


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


class OnceOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(_Square.apply(self.first(x)))


class Twice(OnceOnly):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x) ** 2)


def dense(module: nn.Module) -> Tensor:
    """The Hessian of the mean loss of the twelve examples, in the order of the parameters."""
    inputs, targets = (torch.stack(part) for part in zip(*data(), strict=True))
    names, shapes = zip(*((name, p.shape) for name, p in module.named_parameters()), strict=True)

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        named = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(functional_call(module, named, (inputs,)), targets)

    with sdpa_kernel(SDPBackend.MATH):
        return hessian(loss, torch.cat([p.detach().flatten() for p in module.parameters()]))


def whole(problem: Problem) -> Tensor:
    """The Hessian of its mean loss, by a product for every weight, in minibatches of at most 5."""
    with engine_context(problem, Chains()) as (backend, _, _):
        layout = backend.layout
        ranges = zip(layout.starts, layout.shapes, strict=True)
        places = torch.cat([start + torch.arange(shape.numel()) for start, shape in ranges])
        units = torch.eye(layout.size)[places]
        return Hessian.of_training(problem, backend, chunk=5).times(units)[:, places]


@pytest.mark.parametrize("make", [mlp, Attention, Twice])
def test_products_are_those_of_the_dense_hessian(make: Callable[[], nn.Module]) -> None:
    """Also where minibatches are of unequal size, and more directions than are held at once."""
    module = seeded(make).eval()
    found = whole(problem_of(module))
    torch.testing.assert_close(found, dense(module), rtol=1e-4, atol=1e-6)


def test_one_graph_serves_all_products_of_a_single_minibatch() -> None:
    module = seeded(Attention).eval()
    problem, passes = problem_of(module), 0
    objective = problem.objective

    def counted(of: nn.Module, batch: Any) -> Tensor:
        nonlocal passes
        passes += 1
        return objective(of, batch)

    problem.objective = counted
    with engine_context(problem, Chains()) as (backend, _, _):
        some = torch.randn(3, backend.layout.size, generator=torch.Generator().manual_seed(0))
        one, parts = Hessian.of_training(problem, backend), Hessian.of_training(problem, backend, chunk=6)
        passes = 0
        products = torch.cat([one.times(direction[None]) for direction in some])
        assert passes == 1
        torch.testing.assert_close(products, parts.times(some), rtol=1e-4, atol=1e-5)


def test_a_function_that_is_marked_as_differentiable_once_is_found() -> None:
    weights = torch.ones(3, requires_grad=True)
    for function, refused in ((_Square.apply, True), (torch.square, False)):
        loss = torch.tanh(function(2 * weights)).sum()  # the function lies in the middle of the graph
        (slope,) = torch.autograd.grad(loss, weights, create_graph=True)
        with pytest.raises(NotImplementedError, match="once_differentiable") if refused else nullcontext():
            check_twice([slope])


def test_what_can_be_differentiated_once_has_differences() -> None:
    once = seeded(OnceOnly).eval()
    found = whole(problem_of(once))
    torch.testing.assert_close(found, dense(seeded(Twice).eval()), rtol=0, atol=2e-3)
    problem = problem_of(once)
    with engine_context(problem, Chains()) as (backend, _, _):
        made = Hessian.of_training(problem, backend)
        made.times(torch.nn.functional.normalize(torch.ones(1, backend.layout.size)))
        assert torch.equal(made.weights.flat, backend.center), "the weights are at the snapshot again"


def test_a_linear_loss_has_no_curvature() -> None:
    linear = problem_of(seeded(mlp))
    linear.objective = lambda module, batch: module[0].bias.sum()
    found = whole(linear)
    assert float(found.abs().max()) == 0


def test_only_what_is_seen_of_the_products_is_kept() -> None:
    problem = problem_of(seeded(mlp))
    with engine_context(problem, Chains()) as (backend, _, _):
        some = torch.randn(40, backend.layout.size, generator=torch.Generator().manual_seed(0))
        widest = list[int]()

        def project(products: Tensor) -> Tensor:
            widest.append(len(products))
            return products @ some.mT

        made = Hessian.of_training(problem, backend)
        torch.testing.assert_close(made.times(some, project), made.times(some) @ some.mT, rtol=1e-4, atol=1e-4)
        assert max(widest) < 40


def test_attention_is_as_it_was_however_threads_overlap() -> None:
    """The choice of attention kernels is the process's own: training must find it as it left it."""
    flags = torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.mem_efficient_sdp_enabled
    before = [flag() for flag in flags]
    first_is_in, second_is_in = threading.Event(), threading.Event()

    def one() -> None:
        with plain_attention():
            first_is_in.set()
            assert second_is_in.wait(5)

    def other() -> list[bool]:
        assert first_is_in.wait(5)
        with plain_attention():
            second_is_in.set()
            left.result(5)  # the first is out
            return [flag() for flag in flags]

    with ThreadPoolExecutor(2) as pool:
        left = pool.submit(one)
        meanwhile = pool.submit(other).result(10)
    assert meanwhile == [False, False], "still plain for the second"
    assert [flag() for flag in flags] == before


def test_threads_find_the_second_derivatives_of_attention() -> None:
    problem = problem_of(seeded(Attention).eval())
    with engine_context(problem, Chains()) as (backend, _, _):
        direction = torch.nn.functional.normalize(torch.ones(1, backend.layout.size))
        alone = Hessian.of_training(problem, backend).times(direction)
        with ThreadPoolExecutor(4) as pool:
            made = [Hessian.of_training(problem, backend) for _ in range(8)]
            found = list(pool.map(lambda each: each.times(direction), made))
    assert all(torch.equal(alone, each) for each in found)
