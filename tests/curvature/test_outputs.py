"""Random vectors of outputs have the curvature of each loss as second moment: by all signs, against autograd."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bif_lightning.curvature.outputs import NoOutputsError, outputs_of

pytestmark = pytest.mark.exact

LABELS = torch.tensor([2, 0])
SOFT = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]], dtype=torch.float64)
WEIGHT = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
TARGET = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.4, 1.0]], dtype=torch.float64)
BITS = (TARGET > 0.2).double()

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "cross-entropy": lambda z: F.cross_entropy(z, LABELS),
    "sum": lambda z: F.cross_entropy(z, LABELS, reduction="sum"),
    "without reduction, weighted": lambda z: F.cross_entropy(z, LABELS, reduction="none") @ WEIGHT[:2],
    "class weights": lambda z: F.cross_entropy(z, LABELS, weight=WEIGHT),
    "an ignored label": lambda z: F.cross_entropy(z, torch.tensor([2, -100])),
    "label smoothing": lambda z: F.cross_entropy(z, LABELS, label_smoothing=0.3, weight=WEIGHT, reduction="sum"),
    "soft targets": lambda z: F.cross_entropy(z, SOFT),
    "soft targets, class weights and smoothing": lambda z: F.cross_entropy(z, SOFT, weight=WEIGHT, label_smoothing=0.2),
    "classes first": lambda z: F.cross_entropy(z.mT[None], LABELS[None]),
    "log-probabilities": lambda z: F.nll_loss(F.log_softmax(z, 1), LABELS, weight=WEIGHT),
    "distillation": lambda z: F.kl_div(F.log_softmax(z, 1), SOFT, reduction="batchmean"),
    "cross-entropy by hand": lambda z: -z.log_softmax(-1).gather(1, LABELS[:, None]).mean(),
    "squares": lambda z: 0.5 * F.mse_loss(z, TARGET),
    "squares by hand": lambda z: 0.5 * ((z - TARGET) ** 2).sum(1) @ WEIGHT[:2],
    "logarithms of sigmoids": lambda z: -(F.logsigmoid(z) * TARGET.abs()).mean(),
    "logistic": lambda z: F.binary_cross_entropy_with_logits(z, BITS, weight=WEIGHT, pos_weight=WEIGHT + 1),
    "probabilities": lambda z: F.binary_cross_entropy(z.sigmoid(), BITS),
    "huber": lambda z: F.huber_loss(z, TARGET, delta=0.7),
    "smooth l1": lambda z: F.smooth_l1_loss(z, TARGET, beta=0.7),
    "two losses": lambda z: F.cross_entropy(z, LABELS) + 0.1 * F.mse_loss(z, TARGET),
}


class Logits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.z = nn.Parameter(torch.randn(2, 3, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("name", LOSSES)
def test_the_second_moment_is_the_curvature(name: str) -> None:
    module, loss = Logits(), LOSSES[name]
    outputs = outputs_of(lambda module, batch: loss(module.z), module, None, [module.z], check=True)
    total = torch.zeros(6, 6, dtype=torch.float64)
    for each in outputs:  # the signs of different calls are independent
        size = each.values.numel()
        for signs in itertools.product((-1.0, 1.0), repeat=size):
            vector = each.root(torch.tensor(signs, dtype=torch.float64).view(each.values.shape))
            (slope,) = torch.autograd.grad(each.values, module.z, vector, retain_graph=True)
            total += torch.outer(slope.flatten(), slope.flatten()) / 2**size
    exact = torch.autograd.functional.hessian(lambda z: loss(z.view(2, 3)), module.z.detach().flatten())
    torch.testing.assert_close(total, exact, rtol=1e-9, atol=1e-12)


def test_signs_are_those_of_the_generator() -> None:
    module = Logits()
    (output,) = outputs_of(lambda module, batch: F.cross_entropy(module.z, LABELS), module, None, [module.z])
    first, second = (output.slopes(torch.Generator().manual_seed(3)) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    draws = torch.stack([output.slopes(torch.Generator().manual_seed(seed)) for seed in range(40)])
    assert len(draws.unique(dim=0)) > 20


@pytest.mark.parametrize(
    ("step", "match"),
    [
        (lambda m, b: m.z.softmax(1).log()[:, 0].mean(), "not shown to be a weighted sum"),
        (lambda m, b: F.cross_entropy(m.z, LABELS) + 0.1 * m.z.exp().sum(), "not shown to be a weighted sum"),
        (lambda m, b: F.l1_loss(m.z, TARGET), "not shown to be a weighted sum"),
        (lambda m, b: -F.cross_entropy(m.z, LABELS), "not convex"),
        (lambda m, b: F.log_softmax(m.z, 1).mean(), "not convex"),
        (lambda m, b: F.nll_loss(m.z, LABELS), "no logarithms of probabilities"),
        (lambda m, b: F.cross_entropy(m.z, m.z.softmax(1)), "targets depend on the weights"),
        (lambda m, b: F.huber_loss(m.z, m.z.mT.reshape(2, 3)), "targets depend on the weights"),
    ],
)
def test_other_losses_are_refused(step: Any, match: str) -> None:
    module = Logits()
    with pytest.raises(NoOutputsError, match=match):
        outputs_of(step, module, None, [module.z], check=True)


def test_what_is_inside_the_network_is_no_output() -> None:
    """A square, a softplus and a log-softmax of a layer before the loss leave its Gauss-Newton matrix what it is."""
    module = Logits()

    def network(z: Tensor) -> Tensor:
        return F.log_softmax(z.square() + F.softplus(z), 1) * 3

    (output,) = outputs_of(lambda m, b: F.cross_entropy(network(m.z), LABELS), module, None, [module.z], check=True)
    torch.testing.assert_close(output.values, network(module.z))


def test_a_penalty_of_squared_weights_has_its_own_curvature() -> None:
    module = Logits()
    step: Any = lambda m, b: F.cross_entropy(m.z, LABELS) + 0.1 * m.z.pow(2).sum()  # noqa: E731
    _, penalty = outputs_of(step, module, None, [module.z], check=True)
    torch.testing.assert_close(penalty.root(torch.ones(2, 3)), torch.full((2, 3), 0.2**0.5, dtype=torch.float64))


def test_a_loss_that_does_not_depend_on_the_weights_has_no_outputs() -> None:
    module, other = Logits(), Logits()
    step: Any = lambda module, batch: F.cross_entropy(other.z.detach(), LABELS)  # noqa: E731
    assert outputs_of(step, module, None, [module.z], check=True) == []
