"""Losses captured from training_step: every accepted form is the loss of the example alone."""

import math
from collections import UserDict
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate

from bif_lightning.losses.derived.derive import derive_loss

pytestmark = pytest.mark.exact

CLASSES, TOKENS, VOCABULARY, PAD = 5, 6, 11, -100
ROWS = [0, 3, 5, 8, 13, 21]
FEW_ROWS = [1, 2, 9]
Objective = Callable[[Tensor, Tensor, nn.Module], Any]


class Lit(L.LightningModule):
    """A network and an objective(output, target, module)."""

    def __init__(self, net: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.net = net
        self.objective = objective
        self.register_buffer("classes", torch.tensor([0.5, 2.0, 1.0, 4.0, 0.1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return self.objective(self(x), y, self)


class Internal(L.LightningModule):
    """Computes its loss inside the network, from a mapping that is no dict, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.model = token_net()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self.model(batch["input_ids"])
        shifted = logits[:, :-1].reshape(-1, VOCABULARY), batch["labels"][:, 1:].reshape(-1)
        return {"loss": F.cross_entropy(*shifted, ignore_index=PAD), "logits": logits}


def step(module: nn.Module, batch: Any) -> object:
    return module.training_step(batch, 0)


def net(outputs: int = CLASSES) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Tanh(), nn.BatchNorm1d(16), nn.Linear(16, outputs))


def token_net() -> nn.Module:
    return nn.Sequential(nn.Embedding(VOCABULARY, 8), nn.Tanh(), nn.Linear(8, VOCABULARY))


def batches_of(examples: Sequence[Any], collate: Callable[[list[Any]], Any] = default_collate) -> Any:
    return lambda rows: collate([examples[row] for row in rows])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def examples(target: str) -> list[tuple[Tensor, Tensor]]:
    g = generator(1)
    x = torch.randn(30, 4, generator=g)
    y = {
        "class": torch.randint(0, CLASSES, (30,), generator=g),
        "soft": torch.rand(30, CLASSES, generator=g).softmax(1),
        "real": torch.randn(30, CLASSES, generator=g),
        "binary": torch.rand(30, CLASSES, generator=g).round(),
    }[target]
    return list(zip(x, y, strict=True))


def padded(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    x, y = zip(*rows, strict=True)
    return (
        nn.utils.rnn.pad_sequence(list(x), batch_first=True),
        nn.utils.rnn.pad_sequence(list(y), batch_first=True, padding_value=PAD),
    )


def sequences(lengths: Sequence[int] | None = None) -> list[tuple[Tensor, Tensor]]:
    g = generator(2)
    sizes = lengths or [2 + int(torch.randint(0, TOKENS, (), generator=g)) for _ in range(30)]
    return [tuple(torch.randint(0, VOCABULARY, (2, n), generator=g)) for n in sizes]


def alone(module: nn.Module, batch_of: Any, rows: Sequence[int]) -> Tensor:
    """The oracle: training_step itself on each example alone, in eval mode, without any of our code."""
    module.eval()
    values: list[float] = []
    for row in rows:
        out = step(module, batch_of([row]))
        values.append(float((out["loss"] if isinstance(out, dict) else out).detach()))
    return torch.tensor(values)


def masked_in_place(output: Tensor, y: Tensor, module: nn.Module) -> Tensor:
    losses = F.cross_entropy(output, y, reduction="none")
    losses[y == 0] = 0.0
    return losses.sum() / len(losses)


def logged(output: Tensor, y: Tensor, module: nn.Module) -> Tensor:
    with torch.no_grad():
        F.mse_loss(output.softmax(1), F.one_hot(y, CLASSES).float())  # a metric, no part of the loss
    return F.cross_entropy(output, y)


def two_terms(output: Tensor, y: Tensor, module: nn.Module) -> Tensor:
    return F.cross_entropy(output, y) + 0.3 * F.mse_loss(output.softmax(1), F.one_hot(y, CLASSES).float())


def mixed_rules(output: Tensor, y: Tensor, module: nn.Module) -> Tensor:
    error = F.mse_loss(output, F.one_hot(y, CLASSES).float(), reduction="sum")
    return F.cross_entropy(output, y, weight=module.classes) + error / len(y)


ACCEPTED: dict[str, tuple[str, Objective]] = {
    "cross entropy": ("class", lambda o, y, m: F.cross_entropy(o, y)),
    "nn.CrossEntropyLoss": ("class", lambda o, y, m: nn.CrossEntropyLoss()(o, y)),
    "label smoothing": ("class", lambda o, y, m: F.cross_entropy(o, y, label_smoothing=0.2)),
    "class weights": ("class", lambda o, y, m: F.cross_entropy(o, y, weight=m.classes)),
    "smoothing and weights": ("class", lambda o, y, m: F.cross_entropy(o, y, m.classes, label_smoothing=0.2)),
    "ignored class": ("class", lambda o, y, m: F.cross_entropy(o, y, ignore_index=2)),
    "nll of log_softmax": ("class", lambda o, y, m: F.nll_loss(o.log_softmax(1), y)),
    "weighted nll": ("class", lambda o, y, m: F.nll_loss(o.log_softmax(1), y, weight=m.classes)),
    "sum by length": ("class", lambda o, y, m: F.cross_entropy(o, y, reduction="sum") / len(y)),
    "sum": ("class", lambda o, y, m: F.cross_entropy(o, y, reduction="sum")),
    "sum by a constant": ("class", lambda o, y, m: F.cross_entropy(o, y, reduction="sum") / 64),
    "legacy sum": ("class", lambda o, y, m: nn.CrossEntropyLoss(size_average=False)(o, y) / len(y)),
    "mean by hand": ("class", lambda o, y, m: F.cross_entropy(o, y, reduction="none").mean()),
    "weighted, mean by hand": ("class", lambda o, y, m: F.cross_entropy(o, y, m.classes, reduction="none").mean()),
    "weighted sum by the weights": (
        "class",
        lambda o, y, m: F.cross_entropy(o, y, m.classes, reduction="sum") / m.classes[y].sum(),
    ),
    "masked in place": ("class", masked_in_place),
    "two terms": ("class", two_terms),
    "two rules": ("class", mixed_rules),
    "logged metric": ("class", logged),
    "dict": ("class", lambda o, y, m: {"loss": F.cross_entropy(o, y), "n": 3}),
    "larger of two": (
        "class",
        lambda o, y, m: torch.maximum(F.cross_entropy(o, y), F.mse_loss(o.softmax(1), F.one_hot(y, CLASSES).float())),
    ),
    "multi margin": ("class", lambda o, y, m: F.multi_margin_loss(o, y)),
    "soft targets": ("soft", lambda o, y, m: F.cross_entropy(o, y)),
    "soft targets and weights": ("soft", lambda o, y, m: F.cross_entropy(o, y, weight=m.classes)),
    "kl batchmean": ("soft", lambda o, y, m: F.kl_div(o.log_softmax(1), y, reduction="batchmean")),
    "kl of logs": ("soft", lambda o, y, m: F.kl_div(o.log_softmax(1), y.log(), reduction="batchmean", log_target=True)),
    "mse": ("real", lambda o, y, m: F.mse_loss(o, y)),
    "weighted mse": ("real", lambda o, y, m: F.mse_loss(o, y, weight=y.abs())),
    "l1": ("real", lambda o, y, m: F.l1_loss(o, y)),
    "smooth l1": ("real", lambda o, y, m: F.smooth_l1_loss(o, y, beta=0.3)),
    "huber": ("real", lambda o, y, m: F.huber_loss(o, y, delta=0.4)),
    "gaussian nll": ("real", lambda o, y, m: F.gaussian_nll_loss(o, y, F.softplus(o.flip(1)))),
    "poisson nll": ("real", lambda o, y, m: F.poisson_nll_loss(o, y.abs())),
    "bce": ("binary", lambda o, y, m: F.binary_cross_entropy(o.sigmoid(), y)),
    "bce with logits": ("binary", lambda o, y, m: F.binary_cross_entropy_with_logits(o, y, pos_weight=m.classes)),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_rows_of_random_batches_are_the_losses_alone(name: str) -> None:
    target, objective = ACCEPTED[name]
    torch.manual_seed(3)
    module = Lit(net(), objective)
    batch_of = batches_of(examples(target))
    loss = derive_loss(step, module, batch_of, ROWS)
    assert (loss.method, loss.eval_batch_size, loss.per_sample) == ("captured from training_step", None, "mean")
    assert module.training
    assert module.net[1].training
    g = generator(4)
    for size in (1, 2, 7, 12):
        rows = torch.randperm(30, generator=g)[:size].tolist()
        expected = alone(module, batch_of, rows).nan_to_num()  # all ignored: torch has 0/0, here it is 0
        found = loss(module, batch_of(rows))
        assert found.shape == (size,)
        assert found.dtype == torch.float32
        assert not found.requires_grad
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    "divide",
    [
        lambda r, y: r.sum() / (y != PAD).sum(),
        lambda r, y: r.sum() / len(y),
        lambda r, y: r.sum(),
        lambda r, y: (r.reshape(len(y), -1).sum(1) / (y != PAD).sum(1)).mean(),
    ],
    ids=["by tokens", "by sequences", "sum", "mean of means"],
)
def test_each_way_to_divide_padded_sequences_is_found(divide: Callable[[Tensor, Tensor], Tensor]) -> None:
    def objective(o: Tensor, y: Tensor, module: nn.Module) -> Tensor:
        return divide(F.cross_entropy(o.flatten(0, 1), y.flatten(), ignore_index=PAD, reduction="none"), y)

    torch.manual_seed(0)
    module = Lit(token_net(), objective)
    batch_of = batches_of(sequences(), padded)
    loss = derive_loss(step, module, batch_of, ROWS)
    rows = [4, 6, 7, 11, 12, 20, 25]
    assert len({len(sequences()[row][0]) for row in rows}) > 2
    torch.testing.assert_close(loss(module.eval(), batch_of(rows)), alone(module, batch_of, rows), rtol=1e-5, atol=1e-6)


def test_mean_over_tokens_is_found_inside_a_network_with_a_mapping_batch() -> None:
    def collate(rows: list[tuple[Tensor, Tensor]]) -> UserDict[str, Tensor]:
        x, y = padded(rows)
        return UserDict(input_ids=x, labels=y)

    module = Internal()
    batch_of = batches_of(sequences(), collate)
    loss = derive_loss(step, module, batch_of, ROWS)
    rows = [4, 6, 7, 11]
    torch.testing.assert_close(loss(module.eval(), batch_of(rows)), alone(module, batch_of, rows), rtol=1e-5, atol=1e-6)


def test_segmentation_with_ignored_pixels_and_an_image_without_any_other() -> None:
    g = generator()
    x, y = torch.randn(8, 3, 4, 4, generator=g), torch.randint(0, CLASSES, (8, 4, 4), generator=g)
    y[torch.rand(8, 4, 4, generator=g) < 0.4] = 255
    y[2] = 255
    module = Lit(nn.Conv2d(3, CLASSES, 3, padding=1), lambda o, t, m: F.cross_entropy(o, t, ignore_index=255))
    batch_of = batches_of(list(zip(x, y, strict=True)))
    loss = derive_loss(step, module, batch_of, [0, 1, 2, 3])
    found, expected = loss(module, batch_of(range(8))), alone(module, batch_of, range(8))
    assert math.isnan(expected[2])
    assert found[2] == 0
    torch.testing.assert_close(found, expected.nan_to_num(), rtol=1e-5, atol=1e-6)
    assert loss(module, batch_of([2])).tolist() == [0.0]


def test_a_head_of_zeros_is_proved_at_other_weights_which_are_gone_afterwards() -> None:
    module = Lit(net(), lambda o, y, m: F.cross_entropy(o, y))
    nn.init.zeros_(module.net[-1].weight)
    nn.init.zeros_(module.net[-1].bias)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    batch_of = batches_of(examples("class"))
    loss = derive_loss(step, module, batch_of, ROWS)
    torch.testing.assert_close(loss(module.eval(), batch_of(ROWS)), torch.full((6,), math.log(CLASSES)))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_memorised_examples_are_proved() -> None:
    module = Lit(nn.Linear(CLASSES, CLASSES, bias=False), lambda o, y, m: F.cross_entropy(o, y))
    module.net.weight.data = 25 * torch.eye(CLASSES)
    batch_of = batches_of([(F.one_hot(torch.tensor(k), CLASSES).float(), k) for k in range(CLASSES)])
    assert derive_loss(step, module, batch_of, [0, 1, 2])(module, batch_of([0, 1])).max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_proved(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = Lit(net().to(dtype), lambda o, y, m: F.cross_entropy(o, y))
    batch_of = batches_of([(x.to(dtype), y) for x, y in examples("class")])
    loss = derive_loss(step, module, batch_of, ROWS)
    found = loss(module.eval(), batch_of(ROWS))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = Lit(module.net.double(), module.objective)
    expected = alone(exact, batches_of([(x.double(), y) for x, y in batches_list(batch_of)]), range(30))[ROWS]
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)


def batches_list(batch_of: Any) -> list[tuple[Tensor, Tensor]]:
    x, y = batch_of(range(30))
    return list(zip(x, y, strict=True))


def test_losses_under_autocast_are_not_rounded_to_bfloat16() -> None:
    def autocast_step(module: nn.Module, batch: Any) -> object:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return step(module, batch)

    torch.manual_seed(0)
    module = Lit(net(), lambda o, y, m: F.huber_loss(o, F.one_hot(y, CLASSES).to(o.dtype)))
    batch_of = batches_of(examples("class"))
    loss, (x, y) = derive_loss(autocast_step, module, batch_of, ROWS), batch_of(range(30))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = module.eval()(x)
    assert output.dtype == torch.bfloat16
    expected = F.huber_loss(output.float(), F.one_hot(y, CLASSES).float(), reduction="none").mean(1)
    torch.testing.assert_close(loss(module, (x, y)), expected, rtol=1e-5, atol=1e-6)


def test_capture_works_under_no_grad_and_inference_mode() -> None:
    module = Lit(net(), lambda o, y, m: F.cross_entropy(o, y)).eval()
    batch_of = batches_of(examples("class"))
    expected = alone(module, batch_of, ROWS)
    loss, batch = derive_loss(step, module, batch_of, ROWS), batch_of(ROWS)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(loss(module, batch), expected)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_losses_of_bfloat16_outputs_are_computed_in_float32() -> None:
    torch.manual_seed(0)
    module = Lit(net().bfloat16(), lambda o, y, m: F.huber_loss(o, F.one_hot(y, CLASSES).to(o.dtype)))
    batch_of = batches_of([(x.bfloat16(), y) for x, y in examples("class")])
    loss, (x, y) = derive_loss(step, module, batch_of, ROWS), batch_of(range(30))
    output = module.eval()(x).detach()
    expected = F.huber_loss(output.float(), F.one_hot(y, CLASSES).float(), reduction="none").mean(1)
    torch.testing.assert_close(loss(module, (x, y)), expected, rtol=1e-5, atol=1e-6)
