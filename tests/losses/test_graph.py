"""A call that differentiates inside is known by failing, or by another value, where no graph is recorded."""

import pytest
import torch
from torch import Tensor

from bif_lightning.losses.graph import needs_graph

pytestmark = pytest.mark.exact

X = torch.linspace(-1, 1, 5)


def slope() -> Tensor:
    x = X.detach().requires_grad_()
    return torch.autograd.grad(x.tanh().sum(), x, create_graph=True)[0]


def penalty_in_training() -> Tensor:
    """As people write who found that validation has no gradients."""
    return X.sum() + (slope().square().sum() if torch.is_grad_enabled() else 0.0)


def fails() -> Tensor:
    raise KeyError("labels")


def test_calls_that_differentiate_need_one() -> None:
    assert needs_graph(slope)
    assert needs_graph(penalty_in_training)


def test_others_need_none() -> None:
    assert not needs_graph(X.tanh)
    assert not needs_graph(lambda: torch.func.grad(lambda x: x.tanh().sum())(X))


def test_an_error_with_a_graph_is_that_of_the_call() -> None:
    with pytest.raises(KeyError, match="labels"):
        needs_graph(fails)
