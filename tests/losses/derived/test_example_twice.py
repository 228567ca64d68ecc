"""Steps that fail on a batch of one: an example alone is in its batch twice."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bif_lightning.exceptions import LossRefusedError
from bif_lightning.losses.derived.derive import derive_loss
from bif_lightning.losses.derived.example_twice import TWICE, twice_alone

pytestmark = pytest.mark.exact

ROWS = [0, 3, 5, 8]
X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
NAMES = [f"{row}.png" for row in range(12)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 3)

    def losses(self) -> Tensor:
        return F.cross_entropy(self.body(X), Y, reduction="none")


def batch_of(rows: Sequence[int]) -> Any:
    return X[list(rows)], Y[list(rows)]


def squeezes(module: Net, batch: Any) -> Tensor:
    """The shape of a single example is lost."""
    return F.nll_loss(module.body(batch[0]).squeeze().log_softmax(1), batch[1])


def squeezes_by_hand(module: Net, batch: Any) -> Tensor:
    return -module.body(batch[0]).squeeze().log_softmax(1).gather(1, batch[1][:, None]).mean()


def needs_two(module: Net, batch: Any) -> Tensor:
    assert len(batch[0]) > 1
    return F.cross_entropy(module.body(batch[0]), batch[1])


@pytest.mark.parametrize("step", [squeezes, squeezes_by_hand, needs_two])
def test_losses_and_gradients_are_those_of_the_example_alone(step: Callable[[Net, Any], Tensor]) -> None:
    module = Net().eval()
    loss = derive_loss(step, module, batch_of, ROWS)
    assert loss.adapted.words == TWICE
    expected = module.losses()
    torch.testing.assert_close(loss(module, batch_of(range(12))), expected.detach())
    for row in (2, 7):
        torch.testing.assert_close(loss(module, batch_of([row])), expected[[row]].detach())
        (found,) = torch.autograd.grad(loss.objective(module, batch_of([row])), module.body.weight)
        (right,) = torch.autograd.grad(expected[row], module.body.weight, retain_graph=True)
        torch.testing.assert_close(found, right)


def test_a_step_that_takes_a_batch_of_one_gets_it() -> None:
    assert derive_loss(lambda m, b: F.cross_entropy(m.body(b[0]), b[1]), Net(), batch_of, ROWS).adapted.words == ""


def summed(module: Net, batch: Any) -> Tensor:
    return squeezes(module, batch) * len(batch[0])


def coupled(module: Net, batch: Any) -> Tensor:
    return squeezes(module, batch) + module.body(batch[0]).std(0).mean()


@pytest.mark.parametrize("step", [summed, coupled])
def test_other_reductions_are_refused(step: Callable[[Net, Any], Tensor]) -> None:
    with pytest.raises(LossRefusedError, match=r"raised .* on a batch of one, example 0"):
        derive_loss(step, Net(), batch_of, ROWS)


def test_sums_are_not_taken_for_means_where_there_are_two_examples() -> None:
    with pytest.raises(LossRefusedError, match="on a batch of one"):
        derive_loss(squeezes, Net(), batch_of, [0, 3])
    with pytest.raises(LossRefusedError, match="on a batch of one"):
        derive_loss(squeezes, Net(), batch_of, ROWS, per_sample="sum")


def test_what_a_batch_holds_beside_its_tensors() -> None:
    def step(module: Net, batch: Any) -> Any:
        return batch

    single = {"x": X[:1], "name": NAMES[:1], "weight": None, "size": [3, 3], "scale": torch.tensor(2.0)}
    found = twice_alone(step)(Net(), single)
    assert torch.equal(found["x"], X[[0, 0]])
    assert (found["name"], found["weight"], found["size"], float(found["scale"])) == (["0.png"] * 2, None, [3, 3], 2.0)
    several = {"x": X[:3]}
    assert twice_alone(step)(Net(), several) is several
