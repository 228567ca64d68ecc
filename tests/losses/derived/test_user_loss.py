"""A loss_fn that the user wrote: right ones pass, each way to get it wrong has its own message."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import small_models as models
from bif_lightning.exceptions import LossRefusedError
from bif_lightning.losses.derived.derive import check_user_loss

ROWS = [2, 4, 7]
G = torch.Generator().manual_seed(0)
X, Y = torch.randn(9, 4, generator=G), torch.randint(0, 3, (9,), generator=G)
TOKENS = [torch.randint(1, 8, (length,), generator=G) for length in (3, 5, 2, 6, 4, 4, 2, 5, 3)]


def batch_of(rows: Sequence[int]) -> Any:
    return X[list(rows)], Y[list(rows)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))


def losses(module: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1], reduction="none")


def test_a_right_loss_passes_and_leaves_no_trace() -> None:
    module = network()
    module[0].eval()
    check_user_loss(losses, module, batch_of, ROWS)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
    assert [child.training for child in module.modules()] == [True, False, True, True]


def test_weights_that_take_no_gradient_pass_as_chains_have_them() -> None:
    check_user_loss(losses, network().requires_grad_(False), batch_of, ROWS)


def test_token_losses_pass_with_padding_of_any_length() -> None:
    def loss(module: nn.Module, batch: Tensor) -> Tensor:
        return F.cross_entropy(module(batch[:, :-1]).mT, batch[:, 1:], ignore_index=0, reduction="none")

    def padded(rows: Sequence[int]) -> Tensor:
        return nn.utils.rnn.pad_sequence([TOKENS[row] for row in rows], batch_first=True)

    module = nn.Sequential(nn.Embedding(8, 6), nn.Linear(6, 8))
    check_user_loss(loss, module, padded, ROWS)


def test_a_module_under_two_names_keeps_its_parameters() -> None:
    module = models.seeded(models.Shared)
    data = list(zip(*models.data(), strict=True))
    before = module.one.weight, module.one.weight.detach().clone()
    check_user_loss(losses, module, lambda rows: tuple(torch.stack([part[r] for r in rows]) for part in data), ROWS)
    assert module.one.weight is before[0]
    assert module.other.weight is before[0]
    assert torch.equal(before[0], before[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_in_half_precision_are_warned_of(dtype: torch.dtype) -> None:
    with pytest.warns(UserWarning, match=r"keeps about three digits(.|\n)*module\(x\)\.float\(\)"):
        check_user_loss(lambda m, b: losses(m, b).to(dtype), network(), batch_of, ROWS)


def test_losses_in_full_precision_are_not_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    check_user_loss(losses, network(), batch_of, ROWS)
    assert not recwarn.list


WRONG: dict[str, tuple[Callable[[nn.Module, Any], Any], str]] = {
    "scalar": (lambda m, b: losses(m, b).mean(), r'one number for a batch of 3(.|\n)*reduction="none"'),
    "number": (lambda m, b: losses(m, b).mean().item(), r"returned float; return a tensor of shape \[batch\]"),
    "length": (lambda m, b: losses(m, b)[:-1], r"shape \(2,\) for a batch of 3 examples"),
    "classes": (lambda m, b: m(b[0])[:, :, None], r"shape \(3, 3, 1\)"),
    "integer": (lambda m, b: (m(b[0]).argmax(1) == b[1]).long(), "returned torch.int64"),
    "not finite": (lambda m, b: losses(m, b) / torch.tensor([1.0, 0.0, 1.0]), r"not finite for the examples \[4\]"),
    "detached": (lambda m, b: losses(m, b).detach(), "no gradient to any weight"),
    "no weight": (lambda m, b: b[0].requires_grad_().sum(1), "no gradient to any weight"),
    "divided": (lambda m, b: losses(m, b) / len(b[1]), "must not depend on the others"),
    "coupled": (lambda m, b: losses(m, b) - losses(m, b).mean(), "must not depend on the others"),
    "reversed": (lambda m, b: losses(m, b).flip(0), "in the order of the examples"),
    "squeezed": (lambda m, b: losses(m, b).squeeze(), "one number for a batch of 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_loss_is_named(name: str) -> None:
    loss_fn, message = WRONG[name]
    with pytest.raises(LossRefusedError, match=message):
        check_user_loss(loss_fn, network(), batch_of, ROWS)


def test_one_example_proves_nothing() -> None:
    with pytest.raises(ValueError, match="at least two examples"):
        check_user_loss(losses, network(), batch_of, [1])


def test_an_order_that_equal_losses_hide_is_found() -> None:
    module = network()
    nn.init.zeros_(module[2].weight)
    nn.init.zeros_(module[2].bias)
    check_user_loss(losses, module, batch_of, ROWS)
    with pytest.raises(LossRefusedError, match="in the order of the examples"):
        check_user_loss(lambda m, b: losses(m, b).flip(0), module, batch_of, ROWS)


def test_a_small_part_of_the_others_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"example \d has loss .*more than rounding.*depends on the others"):
        check_user_loss(lambda m, b: losses(m, b) + 0.01 * losses(m, b).mean(), network(), batch_of, ROWS)


def test_margins_that_further_examples_keep_need_no_gradient() -> None:
    def margins(module: nn.Module, batch: Any) -> Tensor:
        return (losses(module, batch) - 100.0).relu()

    with pytest.raises(LossRefusedError, match="no gradient"):
        check_user_loss(margins, network(), batch_of, ROWS)
    check_user_loss(margins, network(), batch_of, ROWS, gradient=False)


def test_weights_with_noise_at_which_the_network_fails_are_left_out() -> None:
    def only_here(module: nn.Module, batch: Any) -> Tensor:
        if not torch.equal(module[2].bias, bias):
            raise ValueError("no factor of a matrix that is not positive")
        return losses(module, batch)

    module = network()
    bias = module[2].bias.detach().clone()
    check_user_loss(only_here, module, batch_of, ROWS, gradient=False)
