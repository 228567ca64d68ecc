"""per_sample="sum": the example's elements added up with the factor of the loss, which is its own loss times Z_i."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bif_lightning.exceptions import LossRefusedError
from bif_lightning.losses.derived.derive import check_user_loss, derive_loss

pytestmark = pytest.mark.exact

PAD = -100
G = torch.Generator().manual_seed(0)
X, Y = torch.randn(30, 4, generator=G), torch.arange(30) * 7 % 5
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 4.0, 0.1])
LENGTHS = [1 + row * 5 % 6 for row in range(30)]
SEQUENCES = [torch.randn(length, 4, generator=G) for length in LENGTHS]
LABELS = [torch.randint(0, 5, (length,), generator=G) for length in LENGTHS]
ROWS = [0, 3, 5, 8, 9]
Objective = Callable[[Tensor, Tensor], Tensor]


class Model(nn.Module):
    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 5))
        self.objective = objective

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def step(module: nn.Module, batch: Any) -> Tensor:
    return module.objective(module(batch[0]), batch[1])


def classes(rows: Sequence[int]) -> Any:
    return X[list(rows)], Y[list(rows)]


def padded(rows: Sequence[int]) -> Any:
    pad = nn.utils.rnn.pad_sequence
    return pad([SEQUENCES[r] for r in rows], True), pad([LABELS[r] for r in rows], True, PAD)


def one_hot(y: Tensor) -> Tensor:
    return F.one_hot(y, 5).float()


def tokens(o: Tensor, y: Tensor, **options: Any) -> Tensor:
    return F.cross_entropy(o.flatten(0, 1), y.flatten(), ignore_index=PAD, **options)


def by_hand_mask(o: Tensor, y: Tensor) -> Tensor:
    mask = (y != PAD).float()
    return (F.cross_entropy(o.mT, y.clamp(min=0), reduction="none") * mask).sum() / mask.sum()


def half(o: Tensor, y: Tensor) -> Tensor:
    return 0.5 * tokens(o, y) + 0.5 * tokens(-o, y)


# name: (batches, loss of training_step, loss of one example by its elements, its divisor)
SUMS: dict[str, tuple[Callable[..., Any], Objective, Objective, Callable[[Tensor], float]]] = {
    "cross entropy": (
        classes, lambda o, y: F.cross_entropy(o, y), lambda o, y: F.cross_entropy(o, y, reduction="sum"), len,
    ),
    "class weights": (
        classes,
        lambda o, y: F.cross_entropy(o, y, WEIGHTS),
        lambda o, y: WEIGHTS[y[0]] * F.cross_entropy(o, y),
        lambda y: float(WEIGHTS[y[0]]),
    ),
    "weights and smoothing": (
        classes,
        lambda o, y: F.cross_entropy(o, y, WEIGHTS, label_smoothing=0.1),
        lambda o, y: F.cross_entropy(o, y, WEIGHTS, label_smoothing=0.1, reduction="sum"),
        lambda y: float(WEIGHTS[y[0]]),
    ),
    "factor": (
        classes,
        lambda o, y: 0.3 * F.mse_loss(o, one_hot(y)),
        lambda o, y: 0.3 * (o - one_hot(y)).square().sum(),
        lambda y: 5.0,
    ),
    "sum by length": (
        classes,
        lambda o, y: F.cross_entropy(o, y, reduction="sum") / len(y),
        lambda o, y: F.cross_entropy(o, y),
        lambda y: 1.0,
    ),
    "batchmean": (
        classes,
        lambda o, y: F.kl_div(o.log_softmax(1), one_hot(y), reduction="batchmean"),
        lambda o, y: F.cross_entropy(o, y),
        lambda y: 1.0,
    ),
    "tokens": (padded, tokens, lambda o, y: tokens(o, y, reduction="sum"), lambda y: float(y.numel())),
    "tokens by hand": (padded, by_hand_mask, lambda o, y: tokens(o, y, reduction="sum"), lambda y: float(y.numel())),
    "two over the same tokens": (
        padded,
        half,
        lambda o, y: 0.5 * tokens(o, y, reduction="sum") + 0.5 * tokens(-o, y, reduction="sum"),
        lambda y: float(y.numel()),
    ),
    "sum over tokens": (
        padded,
        lambda o, y: tokens(o, y, reduction="sum"),
        lambda o, y: tokens(o, y, reduction="sum"),
        lambda y: 1.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SUMS)
def test_sums_over_elements(name: str) -> None:
    batch_of, objective, elements, divisor = SUMS[name]
    torch.manual_seed(0)
    module = Model(objective)
    mean, total = (derive_loss(step, module, batch_of, ROWS, per_sample=kind) for kind in ("mean", "sum"))
    assert (mean.per_sample, total.per_sample) == ("mean", "sum")
    rows = [4, 6, 7, 11, 12, 20, 25]
    batch, singles = batch_of(rows), [batch_of([row]) for row in rows]
    found = total(module, batch)
    expected = torch.stack([elements(module(x).detach(), y) for x, y in singles])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    own = torch.tensor([divisor(y) for _, y in singles])
    torch.testing.assert_close(found, mean(module, batch) * own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["cross entropy", "class weights", "factor", "tokens", "tokens by hand"])
def test_sums_add_up_to_the_objective_times_its_divisor(name: str) -> None:
    """Σ_i l_i Z_i = Z·L, so that they share out the training objective."""
    batch_of, objective, _, divisor = SUMS[name]
    module = Model(objective)
    total = derive_loss(step, module, batch_of, ROWS, per_sample="sum")
    rows = list(range(12, 24))
    whole = sum(divisor(batch_of([row])[1]) for row in rows) * float(step(module, batch_of(rows)).detach())
    assert float(total(module, batch_of(rows)).sum()) == pytest.approx(whole, rel=1e-5)


POSITIONS = torch.arange(1.0, 6.0)
NO_SUM: dict[str, tuple[Objective, str]] = {
    "mean by hand over elements": (
        lambda o, y: F.mse_loss(o, one_hot(y), reduction="none").mean(),
        r"\(mse_loss\) is ambiguous",
    ),
    "different divisors": (
        lambda o, y: F.cross_entropy(o, y, WEIGHTS) + F.mse_loss(o, one_hot(y)),
        r"\(cross_entropy, mse_loss\) is ambiguous",
    ),
    "huber by hand": (
        lambda o, y: (o - one_hot(y)).abs().clamp(max=1).mean(),
        r"called no loss(.|\n)*vmapped over examples, and on batches of one: they return .* per_sample='mean'",
    ),
}


@pytest.mark.parametrize("name", NO_SUM)
def test_a_sum_without_a_known_divisor_is_refused(name: str) -> None:
    objective, message = NO_SUM[name]
    torch.manual_seed(0)
    module = Model(objective)
    derive_loss(step, module, classes, ROWS)
    with pytest.raises(LossRefusedError, match=message):
        derive_loss(step, module, classes, ROWS, per_sample="sum")


def test_weights_by_position_are_no_plain_sum() -> None:
    def by_position(o: Tensor, y: Tensor) -> Tensor:
        weights = torch.arange(1.0, 1 + y.shape[1]).expand_as(y) * (y != PAD)
        losses = F.cross_entropy(o.mT, y, ignore_index=PAD, reduction="none")
        return (weights * losses).sum() / weights.sum()

    torch.manual_seed(0)
    derive_loss(step, Model(by_position), padded, ROWS)
    with pytest.raises(LossRefusedError, match="is ambiguous"):
        derive_loss(step, Model(by_position), padded, ROWS, per_sample="sum")


def test_the_advice_adds_elements_up() -> None:
    torch.manual_seed(0)
    module = Model(lambda o, y: F.mse_loss(o, y, reduction="none").mean())
    with pytest.raises(LossRefusedError) as error:
        derive_loss(step, module, lambda rows: (X[list(rows)], one_hot(Y[list(rows)])), ROWS, per_sample="sum")
    message = str(error.value)
    assert 'reduction="none").flatten(1).sum(1)' in message
    namespace: dict[str, Any] = {}
    exec(message[message.index("import torch.nn.functional") : message.index("BIFCallback(")], namespace)
    check_user_loss(namespace["loss_fn"], module, lambda rows: (X[list(rows)], one_hot(Y[list(rows)])), ROWS)


MIXED_X, MIXED_Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(3)), torch.arange(12) * 7 % 5


class Reduced(nn.Module):
    """A linear classifier with a training step of any form."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.form = nn.Linear(4, 5), form


def own_sum(o: Tensor, y: Tensor) -> Tensor:
    """Written by hand, so that it is vmapped."""
    return (o.logsumexp(1) - o.gather(1, y[:, None])[:, 0]).sum()


REDUCTIONS: dict[str, tuple[Any, Any]] = {
    "sum": (lambda o, y: F.cross_entropy(o, y, reduction="sum"), lambda o, y: F.cross_entropy(o, y)),
    "own divisor": (lambda o, y: F.cross_entropy(o, y, reduction="sum") / 64, lambda o, y: F.cross_entropy(o, y) / 64),
    "none and sum": (lambda o, y: F.cross_entropy(o, y, reduction="none").sum(), lambda o, y: F.cross_entropy(o, y)),
    "weights in a sum": (
        lambda o, y: F.cross_entropy(o, y, torch.arange(1.0, 6.0), reduction="sum"),
        lambda o, y: F.cross_entropy(o, y, torch.arange(1.0, 6.0), reduction="none").mean(),
    ),
    "labels that are ignored": (
        lambda o, y: F.cross_entropy(o, y, ignore_index=2, reduction="sum"),
        lambda o, y: F.cross_entropy(o, y, ignore_index=2),
    ),
    "a mean and a sum": (
        lambda o, y: F.cross_entropy(o, y) + 0.1 * F.mse_loss(o, 0 * o, reduction="sum"),
        lambda o, y: F.cross_entropy(o, y) + 0.1 * F.mse_loss(o, 0 * o, reduction="none").sum(1).mean(),
    ),
    "by hand": (own_sum, lambda o, y: own_sum(o, y) / len(y)),
    "mean": (lambda o, y: F.cross_entropy(o, y), lambda o, y: F.cross_entropy(o, y)),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_objective_is_the_mean_over_examples_whatever_the_reduction(name: str) -> None:
    form, mean = REDUCTIONS[name]
    module = Reduced(form)
    step = lambda m, batch: m.form(m.net(batch[0]), batch[1])  # noqa: E731
    batch_of = lambda rows: (MIXED_X[list(rows)], MIXED_Y[list(rows)])  # noqa: E731
    loss = derive_loss(step, module, batch_of, [0, 3, 5, 8])
    assert loss.adds_up == (name != "mean")
    for rows in (range(12), [7], [1, 2, 4]):
        x, y = batch_of(rows)
        found, right = loss.objective(module, (x, y)), mean(module.net(x), y)
        torch.testing.assert_close(found, right)
        gradients = [torch.autograd.grad(each, module.net.weight)[0] for each in (found, right)]
        torch.testing.assert_close(*gradients)


def test_a_sum_over_a_batch_of_unknown_size_is_refused() -> None:
    module = Reduced(own_sum)
    step = lambda m, batch: m.form(m.net(batch[0]), batch[1])  # noqa: E731
    batch_of = lambda rows: (MIXED_X[list(rows)], MIXED_Y[list(rows)], torch.zeros(3))  # noqa: E731
    with pytest.raises(LossRefusedError, match=r"adds up the losses of examples|number of examples in a batch"):
        derive_loss(step, module, batch_of, [0, 3, 5, 8])
