"""Training steps that cannot be taken apart: vmapped over examples, or run on batches of one, and proved."""

import threading
from collections import UserDict
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate
from torchmetrics import MeanMetric

import small_models as models
from bif_lightning.exceptions import LossChangedError, LossRefusedError
from bif_lightning.losses.derived.derive import derive_loss

pytestmark = pytest.mark.exact

ROWS = [0, 3, 5, 8]
VMAP, SINGLES = "training_step vmapped over examples", "training_step on batches of one"
Objective = Callable[[Tensor, Tensor, nn.Module], Any]


class Model(L.LightningModule):
    def __init__(self, objective: Objective, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net or nn.Sequential(
            nn.Linear(4, 12), nn.Dropout(0.5), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 5)
        )
        self.objective = objective
        self.scales = nn.Parameter(torch.tensor([0.3, -0.4]))
        self.gate = nn.Parameter(torch.tensor(0.0))

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
X6 = torch.randn(30, 6, generator=torch.Generator().manual_seed(2))
TOKENS = torch.randint(0, 11, (2, 30, 6), generator=torch.Generator().manual_seed(1))


def batch_of(rows: Sequence[int]) -> Any:
    return default_collate([DATA[row] for row in rows])


def alone(module: nn.Module, rows: Sequence[int], collate: Callable[[Sequence[int]], Any] = batch_of) -> Tensor:
    """The training step itself on each example alone, without any of our code."""
    module.eval()
    return torch.stack([step(module, collate([row])) for row in rows]).reshape(-1).float().detach()


def own_huber(o: Tensor, y: Tensor, module: nn.Module) -> Tensor:
    e = (o - F.one_hot(y, 5)).abs()
    return torch.where(e < 1, e.square() / 2, e - 0.5).mean()


def own_cross_entropy(o: Tensor, y: Tensor, module: nn.Module) -> Tensor:
    return (o.logsumexp(1) - o.gather(1, y[:, None])[:, 0]).mean()


def penalty(module: nn.Module) -> Tensor:
    return 0.01 * torch.stack([p.square().sum() for p in module.parameters()]).sum()


def focal(output: Tensor, y: Tensor, module: nn.Module) -> Tensor:
    factor = (1 - output.softmax(1).gather(1, y[:, None])[:, 0]) ** 2
    return (factor * F.cross_entropy(output, y, reduction="none")).mean()


def learned_scales(o: Tensor, y: Tensor, module: Any) -> Tensor:
    one, other = module.scales.exp()
    return one * F.cross_entropy(o, y) + other * F.mse_loss(o, F.one_hot(y, 5).float()) - module.scales.sum()


VMAPPED: dict[str, Objective] = {
    "huber by hand": own_huber,
    "cross entropy by hand": own_cross_entropy,
    "sum by hand": lambda o, y, m: len(y) * own_cross_entropy(o, y, m),
    "penalty by hand": lambda o, y, m: F.cross_entropy(o, y) + penalty(m),
    "small penalty by hand": lambda o, y, m: F.cross_entropy(o, y) + 2e-3 * penalty(m),
    "penalty by mse_loss": lambda o, y, m: F.cross_entropy(o, y) + F.mse_loss(m.net[4].bias, m.net[0].bias[:5]),
    "focal": focal,
    "focal from its own loss": lambda o, y, m: (
        (1 - (-(r := F.cross_entropy(o, y, reduction="none"))).exp()) ** 2 * r
    ).mean(),
    "learned scales": learned_scales,
    "loop": lambda o, y, m: sum(F.cross_entropy(o[i], y[i]) for i in range(len(y))) / len(y),
    "dict": lambda o, y, m: {"loss": own_huber(o, y, m), "logits": o},
}


@pytest.mark.parametrize("name", VMAPPED)
def test_vmapped_rows_are_the_losses_alone(name: str) -> None:
    torch.manual_seed(1)
    module = Model(lambda o, y, m: value["loss"] if isinstance(value := VMAPPED[name](o, y, m), dict) else value)
    loss = derive_loss(step, module, batch_of, ROWS)
    assert (loss.method, loss.eval_batch_size, loss.per_sample) == (VMAP, None, "mean")
    assert module.training
    assert module.net[1].training
    for rows in ([7], [1, 2], list(range(10, 30))):
        expected = alone(module, rows)
        found = loss(module, batch_of(rows))
        assert (found.shape, found.dtype, found.requires_grad) == (expected.shape, torch.float32, False)
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("zero_head", [False, True])
def test_time_major_flattening_is_vmapped(zero_head: bool) -> None:
    """Capture refuses it, since its elements are not in the order of the examples."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(11, 8), nn.Tanh(), nn.Linear(8, 11))
    module = Model(lambda o, y, m: F.cross_entropy(o.transpose(0, 1).flatten(0, 1), y.T.flatten()), net)
    if zero_head:
        nn.init.zeros_(net[2].weight)
        nn.init.zeros_(net[2].bias)
    collate = lambda rows: tuple(TOKENS[:, list(rows)])  # noqa: E731
    loss = derive_loss(step, module, collate, ROWS)
    assert loss.method == VMAP
    nn.init.normal_(net[2].weight)
    rows = list(range(5, 20))
    torch.testing.assert_close(loss(module, collate(rows)), alone(module, rows, collate), rtol=2e-5, atol=2e-6)


def clipped(o: Tensor, y: Tensor, module: nn.Module) -> Tensor:
    loss = own_cross_entropy(o, y, module)
    return loss if loss.item() < 100 else loss / loss.detach()


class OwnCrossEntropy(torch.autograd.Function):
    """A fused loss, as kernels outside torch have them: nothing sees its parts."""

    @staticmethod
    def forward(ctx: Any, o: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(o, y)
        return own_cross_entropy(o, y, None)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        o, y = ctx.saved_tensors
        return gradient * (o.softmax(1) - F.one_hot(y, 5)) / len(y), None


class Ragged(Model):
    """Graphs as lists of nodes of different numbers."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        values = torch.stack([self.net(nodes).square().sum() for nodes in batch["nodes"]])
        return (values - batch["y"]).square().mean()


class Keyed(Model):
    """A batch that is no plain dict, as tokenizers make them."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step((batch["x"], batch["y"]), batch_idx)


class Slopes(Model):
    """Fits the slope of the network in its inputs, as models of forces do: differentiates inside the step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = batch[0].detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        return self.objective(slope, batch[1], self)


class Counted(Model):
    """Divides by a number that the batch brings along in every row: vmapped, a row still has the whole batch's."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        *pair, count = batch
        return super().training_step(pair, batch_idx) * len(count) / count[0]


def keyed(rows: Sequence[int]) -> Any:
    x, y = batch_of(rows)
    return UserDict(x=x, y=y)


def ragged(rows: Sequence[int]) -> Any:
    nodes = [DATA[row][0].repeat(1 + row % 3, 1) for row in rows]
    return {"nodes": nodes, "y": torch.tensor([float(row) for row in rows])}


def counted(rows: Sequence[int]) -> Any:
    return [*batch_of(rows), torch.full((len(rows),), len(rows))]


ONE_BY_ONE: dict[str, tuple[type[Model], Objective, Callable[[Sequence[int]], Any], str]] = {
    "item": (Model, clipped, batch_of, "RuntimeError: vmap: It looks like you're calling .item() on a Tensor"),
    "random": (Model, lambda o, y, m: own_huber(o, y, m) + 0 * torch.rand(()), batch_of, "random operation"),
    "fused": (Model, lambda o, y, m: OwnCrossEntropy.apply(o, y), batch_of, "setup_context"),
    "slopes": (Slopes, lambda o, y, m: (o - y[:, None]).square().mean(), batch_of, "requires_grad_()"),
    "ragged": (Ragged, own_huber, ragged, "lengths"),
    "mapping": (Keyed, own_huber, keyed, "UserDict"),
    "differs": (Counted, own_huber, counted, "it differs from them by"),
}


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_losses_one_by_one_where_vmap_does_not_do(name: str) -> None:
    kind, objective, collate, why = ONE_BY_ONE[name]
    torch.manual_seed(1)
    module = kind(objective)
    loss = derive_loss(step, module, collate, ROWS)
    assert (loss.method, loss.eval_batch_size, loss.per_sample) == (SINGLES, 1, "mean")
    assert why in loss.cost
    rows = list(range(10, 20))
    with torch.no_grad():
        found = torch.cat([loss(module.eval(), collate([row])) for row in rows])
    assert (found.shape, found.dtype, found.requires_grad) == ((10,), torch.float32, False)
    torch.testing.assert_close(found, alone(module, rows, collate))


def test_a_scripted_loss_is_not_taken_apart() -> None:
    scripted = torch.jit.CompilationUnit(
        "def f(o, y):\n    return -o.log_softmax(1).gather(1, y.unsqueeze(1)).mean()\n"
    ).f
    module = Model(lambda o, y, m: scripted(o, y)).eval()
    loss = derive_loss(step, module, batch_of, ROWS)
    assert loss.method in (VMAP, SINGLES)
    found = torch.cat([loss(module, batch_of([row])) for row in range(9)])
    torch.testing.assert_close(found, alone(module, range(9)), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("make", [*models.PLAIN.values(), models.scripted, models.compiled])
@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("objective", [own_cross_entropy, lambda o, y, m: F.cross_entropy(o, y)])
def test_every_kind_of_module_is_as_it_was_after_the_proof(make: Any, objective: Objective) -> None:
    module = Model(lambda o, y, m: objective(o.repeat(1, 2)[:, :5], y, m), models.seeded(make))
    collate = lambda rows: (X6[list(rows)], batch_of(rows)[1])  # noqa: E731
    before = [(name, p, p.detach().clone()) for name, p in module.named_parameters(remove_duplicate=False)]
    loss = derive_loss(step, module, collate, ROWS)
    now = list(module.named_parameters(remove_duplicate=False))
    assert [name for name, _ in now] == [name for name, _, _ in before]
    assert all(p is q and torch.equal(p, value) for (_, p), (_, q, value) in zip(now, before, strict=True))
    assert all(isinstance(p, nn.Parameter) for _, p in now)
    rows = [[row] for row in range(9)] if loss.eval_batch_size else [list(range(9))]
    found = torch.cat([loss(module.eval(), collate(part)) for part in rows])
    torch.testing.assert_close(found, alone(module, range(9), collate), rtol=2e-5, atol=2e-6)


def test_a_step_that_differentiates_inside_is_captured() -> None:
    module = Slopes(lambda o, y, m: F.mse_loss(o, y[:, None].expand_as(o).float())).eval()
    loss = derive_loss(step, module, batch_of, ROWS)
    assert loss.method == "captured from training_step"
    with torch.no_grad():
        found = loss(module, batch_of(range(9)))
    torch.testing.assert_close(found, alone(module, range(9)), rtol=2e-5, atol=2e-6)


def hidden_coupling(o: Tensor, y: Tensor, module: Any) -> Tensor:
    return own_cross_entropy(o, y, module) + module.gate * o.std(0, correction=0).mean()


def coupled_in_halves(o: Tensor, y: Tensor, module: nn.Module) -> Tensor:
    return own_huber(o, y, module) * (2 if len(y) == 2 else 1)


def mean_or_sum(o: Tensor, y: Tensor, module: nn.Module) -> Tensor:
    return own_huber(o, y, module) * (len(y) if len(y) == 2 else 1)


@pytest.mark.parametrize("objective", [hidden_coupling, coupled_in_halves, mean_or_sum])
def test_coupling_that_shows_only_at_other_weights_or_in_a_half_is_refused(objective: Objective) -> None:
    torch.manual_seed(1)
    with pytest.raises(LossRefusedError, match=r"couples the examples of a batch.*\[0, 3\]|\[0, 3, 5, 8\]"):
        derive_loss(step, Model(objective), batch_of, ROWS)


def test_a_sum_over_examples_is_a_sum_in_every_batch() -> None:
    """Divided by the length of the checked batch it is the mean there, and not in a half of it."""
    module = Model(lambda o, y, m: len(y) * own_huber(o, y, m) / 4).eval()
    loss = derive_loss(step, module, batch_of, ROWS)
    torch.testing.assert_close(loss(module, batch_of(range(9))), alone(module, range(9)), rtol=2e-5, atol=2e-6)


def test_what_a_vmapped_step_stores_does_not_stay() -> None:
    def storing(o: Tensor, y: Tensor, module: Any) -> Tensor:
        loss = own_huber(o, y, module)
        module.average = 0.9 * module.average + 0.1 * loss.detach()
        module.seen.append(loss.detach())
        return loss

    module = Model(storing)
    module.seen, module.average = [], torch.zeros(())
    module.register_buffer("same", torch.zeros(()))
    loss = derive_loss(step, module, batch_of, ROWS)
    # The average of a vmapped pass is no use to the plain step, whose gradient moves the chains.
    assert loss.method == SINGLES
    assert float(module.average) > 0
    assert all(value.isfinite() for value in module.seen)
    assert float(step(module.eval(), batch_of([0])).detach()) > 0


def test_a_metric_inside_the_step_can_be_used_afterwards() -> None:
    def measured(o: Tensor, y: Tensor, module: Any) -> Tensor:
        loss = own_huber(o, y, module)
        module.metric(loss.detach())
        return loss

    module = Model(measured)
    module.metric = MeanMetric()
    loss = derive_loss(step, module, batch_of, ROWS)
    assert loss.method == SINGLES
    torch.testing.assert_close(loss(module.eval(), batch_of([4])), alone(module, [4]))
    assert module.metric.compute().isfinite()


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_proved(autocast: bool) -> None:
    def in_precision(module: nn.Module, batch: Any) -> object:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return step(module, batch)

    torch.manual_seed(0)
    module = Model(own_cross_entropy)
    data = lambda rows: batch_of(rows)  # noqa: E731
    if not autocast:
        module = module.bfloat16()
        data = lambda rows: (batch_of(rows)[0].bfloat16(), batch_of(rows)[1])  # noqa: E731
    loss = derive_loss(in_precision, module, data, ROWS)
    assert loss.method == VMAP
    found = loss(module.eval(), data(range(9)))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, alone(module, range(9), data), rtol=0.03, atol=0.03)


def test_double_precision_is_kept() -> None:
    module = Model(own_huber).double()
    double = lambda rows: (batch_of(rows)[0].double(), batch_of(rows)[1])  # noqa: E731
    assert derive_loss(step, module, double, ROWS)(module.eval(), double([1, 2])).dtype == torch.float64


def test_a_later_batch_of_another_form_is_an_error() -> None:
    module = Model(own_huber)
    loss = derive_loss(step, module.eval(), batch_of, ROWS)
    x, y = batch_of(ROWS)
    with pytest.raises(LossChangedError, match=r"holds Tensor, Tensor, str, in other containers.*Pass loss_fn"):
        loss(module, (x, y, "name"))
    with pytest.raises(LossChangedError, match=r"lengths \[3, 4\]"):
        loss(module, (x, y[:3]))
    module.objective = lambda o, y, m: None
    with pytest.raises(LossChangedError, match="returned NoneType"):
        loss(module, batch_of(ROWS))


def test_a_single_loss_without_a_scalar_later_is_an_error() -> None:
    module = Model(clipped)
    loss = derive_loss(step, module, batch_of, ROWS)
    module.objective = lambda o, y, m: None
    with pytest.raises(LossChangedError, match="returned NoneType"):
        loss(module.eval(), batch_of([0]))


def test_a_diverged_chain_is_no_changed_loss() -> None:
    module = Model(own_cross_entropy)
    loss = derive_loss(step, module, batch_of, ROWS)
    module.net[0].weight.data.fill_(torch.inf)
    assert loss(module.eval(), batch_of(ROWS)).isnan().any()


def test_chains_in_threads_do_not_see_each_others_losses() -> None:
    torch.manual_seed(0)
    modules = [Model(own_cross_entropy).eval() for _ in range(4)]
    losses = derive_loss(step, modules[0], batch_of, ROWS)
    assert losses.method == VMAP
    expected = [losses(module, batch_of(range(30))) for module in modules]
    wrong: list[int] = []

    def chain(index: int) -> None:
        for _ in range(20):
            if not torch.equal(losses(modules[index], batch_of(range(30))), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=chain, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
