"""Second derivatives that autograd gets wrong are found, and right ones are not suspected, kinks or not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import small_models as models
from bif_lightning.config import Chains, Subspace
from bif_lightning.curvature.hessian import ONCE_ONLY
from bif_lightning.curvature.second_derivatives import DIFFERENCES, second_derivatives_hold
from bif_lightning.estimation.estimate import estimate
from bif_lightning.model.functional import FunctionalBackend
from small_models import PLAIN, problem_of

pytestmark = pytest.mark.exact


class Fused(torch.autograd.Function):
    """A cross entropy that makes its gradient in the forward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        logs = logits.log_softmax(-1)
        ctx.save_for_backward(logs.exp() - F.one_hot(target, logits.shape[-1]))
        return -logs.gather(1, target[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient[:, None] * ctx.saved_tensors[0], None


class InSingle(Fused):
    """The same as a kernel that takes single precision only."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        assert logits.dtype == torch.float32
        return Fused.forward(ctx, logits, target)


class InNumpy(torch.autograd.Function):
    """A tanh outside of autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x = x.detach()
        return torch.from_numpy(np.tanh(ctx.x.numpy()))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.from_numpy(gradient.detach().numpy() * (1 - np.tanh(ctx.x.numpy()) ** 2))


class Marked(InNumpy):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return InNumpy.backward(ctx, gradient)


class Bent(nn.Module):
    def __init__(self, bend: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.lift, self.head, self.bend = nn.Linear(6, 8), nn.Linear(8, 3), bend

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bend(self.lift(x)))


def bent(bend: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Bent(bend)


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 3))


def fused(module: nn.Module, batch: Any) -> Tensor:
    return Fused.apply(module(batch[0]), batch[1])


def in_single(module: nn.Module, batch: Any) -> Tensor:
    return InSingle.apply(module(batch[0]), batch[1])


def holds(make: Callable[[], nn.Module], loss: Any = models.cross_entropy) -> bool:
    module = models.seeded(make).eval()
    problem = problem_of(module)
    problem.objective = lambda m, batch: loss(m, batch).mean()
    return second_derivatives_hold(problem, FunctionalBackend(module), seed=0)


class NormedByHand(nn.Module):
    """Weight normalization by its formula, with parameters of the names and order of torch's."""

    def __init__(self) -> None:
        super().__init__()
        normed = models.weight_norm()
        self.bias, self.head = normed[0].bias, normed[2]
        self.size, self.way = normed[0].parametrizations.weight.original0, normed[0].parametrizations.weight.original1

    def forward(self, x: Tensor) -> Tensor:
        weight = self.size * self.way / self.way.norm(dim=1, keepdim=True)
        return self.head(F.linear(x, weight, self.bias).tanh())


@pytest.mark.parametrize("name", PLAIN)
def test_modules_of_every_kind_are_not_suspected(name: str) -> None:
    """But weight normalization, of which torch gives other second derivatives than its formula has."""
    assert holds(PLAIN[name]) == ("weight_norm" not in name)


def test_weight_normalization_has_the_influence_of_its_formula() -> None:
    settings: Any = {"sampler": Subspace(metric="euclidean"), "chains": Chains(num_chains=2, num_draws=4)}
    data = models.data(), models.data(1, 4)
    assert holds(NormedByHand)
    right = estimate(models.seeded(NormedByHand), models.cross_entropy, *data, **settings)
    found = estimate(models.seeded(models.weight_norm), models.cross_entropy, *data, **settings)
    assert DIFFERENCES in found.notes
    assert np.abs(found.influence - right.influence).max() < 0.01 * np.abs(right.influence).max()


@pytest.mark.parametrize("make", [wide, bent(F.relu), bent(F.gelu), bent(F.hardtanh)])
def test_kinks_are_not_suspected(make: Any) -> None:
    assert holds(make)


@pytest.mark.parametrize("loss", [fused, in_single])
def test_fused_losses_are_found(loss: Any) -> None:
    assert not holds(models.mlp, loss)


def test_functions_outside_of_autograd_are_found() -> None:
    assert not holds(bent(InNumpy.apply))


@pytest.mark.parametrize("metric", ["kronecker", "euclidean"])
@pytest.mark.parametrize(
    ("bend", "loss", "note"),
    [
        (torch.tanh, fused, DIFFERENCES),
        (InNumpy.apply, models.cross_entropy, DIFFERENCES),
        (Marked.apply, models.cross_entropy, ONCE_ONLY),
    ],
)
def test_their_influence_is_that_of_the_plain_function(bend: Any, loss: Any, note: str, metric: Any) -> None:
    settings: Any = {"sampler": Subspace(metric=metric), "chains": Chains(num_chains=2, num_draws=4)}
    data = models.data(), models.data(1, 4)
    right = estimate(models.seeded(bent(torch.tanh)), models.cross_entropy, *data, **settings)
    found = estimate(models.seeded(bent(bend)), loss, *data, **settings)
    assert right.notes == ()
    assert note in found.notes
    assert np.abs(found.influence - right.influence).max() < 0.01 * np.abs(right.influence).max()
