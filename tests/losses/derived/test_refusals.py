"""Training steps that cannot be taken apart are refused, with a loss_fn to paste."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate

from bif_lightning.exceptions import LossChangedError, LossRefusedError
from bif_lightning.losses.derived.batch_size import examples_in
from bif_lightning.losses.derived.derive import check_user_loss, derive_loss
from bif_lightning.losses.derived.intercept import NotSeparableError, capture
from bif_lightning.losses.derived.reduction import split

ROWS = [0, 3, 5, 8]
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 4.0, 0.1])


class Model(L.LightningModule):
    def __init__(self, objective: Callable[[Tensor, Tensor, nn.Module], Any]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 5))
        self.objective = objective

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return self.objective(self(x), y, self)


def step(module: nn.Module, batch: Any) -> object:
    return module.training_step(batch, 0)


DATA = [
    (x, int(y))
    for x, y in zip(
        torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) * 7 % 5, strict=True
    )
]


def batch_of(rows: Sequence[int]) -> Any:
    return default_collate([DATA[row] for row in rows])


def contrastive(o: Tensor, y: Tensor, module: nn.Module) -> Tensor:
    """SimCLR with a second view: cross entropy over similarities of all pairs in the batch."""
    views = F.normalize(torch.cat([o, o + 0.1 * o.flip(1)]), dim=1)
    logits = (views @ views.T / 0.5).masked_fill(torch.eye(len(views), dtype=torch.bool), -1e9)
    return F.cross_entropy(logits, torch.arange(len(views)).roll(len(o)))


def penalty(module: nn.Module) -> Tensor:
    return 0.01 * torch.stack([p.square().sum() for p in module.parameters()]).sum()


def unequal_penalty(o: Tensor, y: Tensor, module: nn.Module) -> Tensor:
    """A batch of one has four times the penalty of a batch of four."""
    return F.cross_entropy(o, y) + penalty(module) / len(y)


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor, nn.Module], Any], str, str]] = {
    "square root": (
        lambda o, y, m: F.cross_entropy(o, y).sqrt(),
        "not a weighted sum",
        "couples the examples of a batch, or divides them unequally: of a batch of [0, 3",
    ),
    "penalty by length": (unequal_penalty, "a part of the loss is written by hand", "divides them unequally"),
    "contrastive": (contrastive, "couples the examples", "all have the loss 0 in a batch of one"),
    "top k": (
        lambda o, y, m: F.cross_entropy(o, y, reduction="none").topk(3).values.mean(),
        "raised RuntimeError on a batch of one, example 0: selected index k out of range",
        "raised RuntimeError on a batch of one, example 0: selected index k out of range",
    ),
    "hardest half": (
        lambda o, y, m: F.cross_entropy(o, y, reduction="none").topk(max(1, len(y) // 2)).values.mean(),
        "couples the examples",
        "couples the examples",
    ),
    "squared length": (
        lambda o, y, m: F.cross_entropy(o, y, reduction="sum") / len(y) ** 2,
        "neither a mean nor a sum",
        "divides them unequally",
    ),
    "centred output": (lambda o, y, m: F.cross_entropy(o - o.mean(0), y), "couples", "all have the loss 1.60944"),
    "pairs": (lambda o, y, m: F.mse_loss(o[:-1], o[1:]), "", "the loss of example 0 is not finite"),
    "class weights by hand": (
        lambda o, y, m: -(WEIGHTS[y] * o.log_softmax(1).gather(1, y[:, None])[:, 0]).sum() / WEIGHTS[y].sum(),
        "called no loss of torch.nn.functional",
        "divides them unequally",
    ),
    "none": (lambda o, y, m: None, "returned NoneType", "returned NoneType"),
    "vector": (lambda o, y, m: F.cross_entropy(o, y, reduction="none"), "not a scalar", "not a scalar"),
    "constant": (lambda o, y, m: F.cross_entropy(0 * o, y), "all have the loss", "all have the loss"),
    "not finite": (
        lambda o, y, m: F.cross_entropy(o * torch.where(y == 0, torch.inf, 1)[:, None], y),
        "nan",
        "the loss of example 0 is not finite in a batch of one",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_reason_and_advice(name: str) -> None:
    objective, *reasons = REFUSED[name]
    torch.manual_seed(1)
    with pytest.raises(LossRefusedError) as error:
        derive_loss(step, Model(objective), batch_of, ROWS)
    message = str(error.value)
    captured, others = message.split("- captured from training_step: ")[1].split(
        "- training_step vmapped over examples"
    )
    assert reasons[0] in captured
    assert reasons[1] in others
    assert "def loss_fn(module, batch):\n    x, y = batch\n" in message
    assert "BIFCallback(..., loss_fn=loss_fn)" in message


def pasted(message: str) -> Callable[[nn.Module, Any], Tensor]:
    source = message[message.index("import torch.nn.functional") : message.index("BIFCallback(")]
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    return namespace["loss_fn"]


@pytest.mark.parametrize("name", ["penalty by length", "class weights by hand", "square root", "top k"])
def test_the_advice_can_be_pasted(name: str) -> None:
    torch.manual_seed(1)
    module = Model(REFUSED[name][0])
    with pytest.raises(LossRefusedError) as error:
        derive_loss(step, module, batch_of, ROWS)
    loss_fn = pasted(str(error.value))
    check_user_loss(loss_fn, module, batch_of, ROWS)
    x, y = batch_of(ROWS)
    torch.testing.assert_close(loss_fn(module, (x, y)), F.cross_entropy(module(x), y, reduction="none"))


def test_the_advice_keeps_options_and_keys() -> None:
    class Keyed(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step((batch["pixels"], batch["label"]), batch_idx)

    module = Keyed(lambda o, y, m: F.cross_entropy(o, y, label_smoothing=0.1, ignore_index=2) + penalty(m) / len(y))
    keyed = lambda rows: default_collate([{"label": DATA[r][1], "pixels": DATA[r][0]} for r in rows])  # noqa: E731
    with pytest.raises(LossRefusedError) as error:
        derive_loss(step, module, keyed, ROWS)
    found = pasted(str(error.value))(module, keyed(ROWS))
    x, y = batch_of(ROWS)
    torch.testing.assert_close(
        found, F.cross_entropy(module(x), y, label_smoothing=0.1, ignore_index=2, reduction="none")
    )


def test_the_advice_for_token_losses_gives_batch_by_token() -> None:
    class Tokens(Model):
        def __init__(self) -> None:
            super().__init__(lambda o, y, m: F.cross_entropy(o.flatten(0, 1), y.flatten()) + penalty(m) / len(y))

    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(9, 6, 4, generator=g), torch.randint(0, 5, (9, 6), generator=g)
    tokens = lambda rows: (x[list(rows)], y[list(rows)])  # noqa: E731
    module = Tokens()
    with pytest.raises(LossRefusedError) as error:
        derive_loss(step, module, tokens, ROWS)
    loss_fn = pasted(str(error.value))
    assert loss_fn(module, tokens(ROWS)).shape == (4, 6)
    check_user_loss(loss_fn, module, tokens, ROWS)


def test_a_loss_that_changes_later_is_an_error_and_not_a_wrong_number() -> None:
    module = Model(lambda o, y, m: F.cross_entropy(o, y) + m.strength * penalty(m))
    module.strength = 0.0
    loss = derive_loss(step, module, batch_of, ROWS)
    assert loss(module, batch_of(ROWS)).shape == (4,)
    module.strength = 1.0
    with pytest.raises(LossChangedError, match=r"on this batch of 4: .* written by hand.*Pass loss_fn"):
        loss(module, batch_of(ROWS))


def test_a_divisor_that_the_checked_examples_leave_open_is_an_error_where_it_matters() -> None:
    module = Model(lambda o, y, m: F.cross_entropy(o, y, torch.arange(1.0, 6.0), reduction="none").mean())
    same_class = [row for row in range(30) if DATA[row][1] == 1][:4]
    loss = derive_loss(step, module, batch_of, same_class)
    assert loss(module, batch_of(same_class)).isfinite().all()
    with pytest.raises(LossChangedError, match="is ambiguous"):
        loss(module, batch_of(ROWS))


def test_a_diverged_chain_is_no_changed_loss() -> None:
    module = Model(lambda o, y, m: F.cross_entropy(o, y))
    loss = derive_loss(step, module, batch_of, ROWS)
    module.net[0].weight.data.fill_(torch.inf)
    assert loss(module, batch_of(ROWS)).isnan().any()


def test_chains_in_threads_do_not_see_each_others_losses() -> None:
    torch.manual_seed(0)
    modules = [Model(lambda o, y, m: F.cross_entropy(o, y)).eval() for _ in range(4)]
    losses = derive_loss(step, modules[0], batch_of, ROWS)
    expected = [losses(module, batch_of(range(30))) for module in modules]
    wrong: list[int] = []

    def chain(index: int) -> None:
        for _ in range(40):
            if not torch.equal(losses(modules[index], batch_of(range(30))), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=chain, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_modes_of_submodules_come_back_also_after_a_refusal() -> None:
    module = Model(unequal_penalty)
    module.net[0].eval()
    with pytest.raises(LossRefusedError):
        derive_loss(step, module, batch_of, ROWS)
    assert [child.training for child in module.modules()] == [True, True, False, True, True]


@pytest.mark.parametrize("rows", [[], [3], [3, 3]])
def test_one_example_proves_nothing(rows: list[int]) -> None:
    with pytest.raises(ValueError, match="at least two different examples"):
        derive_loss(step, Model(contrastive), batch_of, rows)


def test_elements_that_do_not_divide_are_refused() -> None:
    module = Model(lambda o, y, m: F.cross_entropy(o, y))
    with pytest.raises(NotSeparableError, match=r"4 elements.*3 examples"):
        split(capture(step, module, batch_of(ROWS)), 3, [("mean",)])


def test_examples_in_a_batch_are_counted_or_asked_for() -> None:
    assert examples_in(batch_of(ROWS)) == 4
    assert examples_in([{"a": torch.zeros(2, 3)}, ["name", torch.zeros(2), 1.0]]) == 2
    for batch in ({"a": torch.zeros(2), "b": torch.zeros(3)}, "text", 3.0):
        with pytest.raises(NotSeparableError, match="pass size_of"):
            examples_in(batch)
    with pytest.raises(LossRefusedError, match="is 9 for a batch of 4 examples"):
        derive_loss(step, Model(contrastive), batch_of, ROWS, size_of=lambda batch: 9)
