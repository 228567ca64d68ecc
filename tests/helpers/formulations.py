"""Ways to write one problem: modules, losses, batches and data, and the matrices that the callback estimates of them.

All are small and in float64: an estimate takes a fraction of a second.
"""

from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import datasets
import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset, TensorDataset, default_collate

import bif_lightning as bl
from bif_lightning.estimation.estimator import estimate_problem
from bif_lightning.losses.problem import disable_compile
from bif_lightning.offline.fit_start import at_fit_start
from bif_lightning.trainer.guard.guard import training_guard
from bif_lightning.trainer.problem import AttributionRequest, attribution_of

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(26, 4, dtype=torch.float64, generator=G), torch.arange(26) * 7 % 3
DATA = TensorDataset(X, Y)
ITEMS = list(zip(X, Y, strict=True))
TRAIN, QUERY = range(12), range(20, 25)
PAD = -100

CHAINS = bl.Chains(num_chains=2, num_draws=6, batch_size=8)
MOVES = bl.SGLD(step_size=1e-3, inverse_temperature=100.0, localization=100.0)
CLOSED = bl.Subspace(inverse_temperature=1e3, localization=1e2)
CONTROLLED = bl.ControlledSGLD(inverse_temperature=1e3, localization=1e2, metric="euclidean", alpha=1.0)
SAMPLERS: dict[str, tuple[Any, bl.Chains]] = {
    "closed form": (CLOSED, bl.Chains(num_chains=1, num_draws=2)),
    "closed form, euclidean": (bl.Subspace(inverse_temperature=1e3, localization=1e2, metric="euclidean"), CHAINS),
    "controlled, full batch": (CONTROLLED, bl.Chains(num_chains=2, num_draws=6, batch_size=1000)),
    "SGLD": (MOVES, CHAINS),
    "SGLD, full batch": (MOVES, bl.Chains(num_chains=2, num_draws=6, batch_size=1000)),
}


def mlp(*middle: nn.Module, outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), *middle, nn.Tanh(), nn.Linear(6, outputs))


class Lit(L.LightningModule):
    """A network, a loss of outputs and labels, and how a batch is taken apart."""

    def __init__(self, loss: Any = F.cross_entropy, net: Any = mlp, unpack: Callable[[Any], Any] = tuple) -> None:
        super().__init__()
        self.net, self.loss, self.unpack = net(), loss, unpack
        self.double()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = self.unpack(batch)
        return self.loss(self.net(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One formulation.

    Attributes:
        module: makes the module; the global generator has a seed of its own.
        data: makes the training loader or data module.
        train, query: as in the callback.
        options: further arguments of the callback.
        trainer: settings of the Trainer.
    """

    module: Callable[[], L.LightningModule] = Lit
    data: Callable[[], Any] = lambda: DataLoader(DATA, batch_size=5)
    train: Any = TRAIN
    query: Any = QUERY
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    trainer: Mapping[str, Any] = field(default_factory=dict[str, Any])


def matrices(way: Way, samplers: Sequence[str]) -> dict[str, np.ndarray]:
    """The influence by each sampler at the start of a fit, estimated once for each way."""
    if (id(way), *samplers) not in _ESTIMATED:
        _ESTIMATED[id(way), *samplers] = way, _estimated(way, samplers)
    return _ESTIMATED[id(way), *samplers][1]


_ESTIMATED: dict[tuple[Any, ...], tuple[Way, dict[str, np.ndarray]]] = {}


def _estimated(way: Way, samplers: Sequence[str]) -> dict[str, np.ndarray]:
    found = dict[str, np.ndarray]()
    given: dict[str, Any] = {
        "observables": (), "params": None, "loss_fn": None, "per_sample": "mean", "collate_fn": None,
        "eval_batch_size": 256, "check_gradient": True,
    }  # fmt: skip
    request = AttributionRequest(train=way.train, query=way.query, **(given | dict(way.options)))

    def at_start(trainer: Any, module: Any) -> None:
        with training_guard(trainer, module, [way.train, way.query]), disable_compile():
            attribution = attribution_of(trainer, module, request)
            for name in samplers:
                if attribution.derived is not None:
                    attribution.derived.reset_coefficients()
                with attribution.around():
                    result = estimate_problem(attribution.problem, *SAMPLERS[name])
                assert result is not None
                found[name] = result.influence

    torch.manual_seed(0)
    module = way.module()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **way.trainer,
    )  # fmt: skip
    at_fit_start(trainer, module, way.data(), at_start)
    return found


# ---- modules


def with_step(step: Callable[..., Any]) -> Callable[[], L.LightningModule]:
    """A module with another training step."""
    return type("Stepping", (Lit,), {"training_step": step})


def without_index(self: Any, batch: Any) -> Tensor:
    return F.cross_entropy(self.net(batch[0]), batch[1])


def any_arguments(self: Any, *arguments: Any) -> Tensor:
    (x, y), _ = arguments
    return F.cross_entropy(self.net(x), y)


def logging(self: Any, batch: Any, batch_idx: int) -> Tensor:
    logits = self.net(batch[0])
    loss = F.cross_entropy(logits, batch[1])
    with torch.no_grad():
        self.log("distance", F.mse_loss(logits.softmax(1), F.one_hot(batch[1], 3).double()))
    self.log_dict({"loss": loss, "accuracy": (logits.argmax(1) == batch[1]).double().mean()}, on_epoch=True)
    return loss


class Nested(L.LightningModule):
    """The step of another module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Lit()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.inner.training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return self.inner.configure_optimizers()


class Tied(nn.Module):
    """One weight under two names, or one layer that is used twice."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 3)
        if not twice:
            self.second = nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        return self.head(torch.tanh(self.first(hidden) if self.twice else self.second(hidden)))


class Affine(nn.Module):
    """What BatchNorm computes in evaluation mode."""

    mean: Tensor
    variance: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6))
        self.register_buffer("mean", torch.linspace(-0.2, 0.3, 6))
        self.register_buffer("variance", torch.linspace(0.5, 2.0, 6))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / (self.variance + 1e-5).sqrt() * self.weight + self.bias


def normalized(*, frozen: bool = False) -> nn.Module:
    norm, same = nn.BatchNorm1d(6), Affine()
    norm.running_mean, norm.running_var = same.mean, same.variance
    return mlp(norm.requires_grad_(not frozen))


def folded() -> nn.Module:
    """The normalization as a part of the layer before it, both frozen."""
    net, same = mlp().double(), Affine().double()
    scale = 1 / (same.variance + 1e-5).sqrt()
    first = net[0].requires_grad_(False)
    first.weight.mul_(scale[:, None])
    first.bias.sub_(same.mean).mul_(scale)
    return net


def frozen_before_norm() -> nn.Module:
    net = normalized(frozen=True)
    net[0].requires_grad_(False)
    return net


class Transposed(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.mT

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.mT.contiguous()


def parametrized() -> nn.Module:
    net = mlp()
    parametrize.register_parametrization(net[0], "weight", Transposed())
    return net


def frozen() -> nn.Module:
    net = mlp()
    net[0].requires_grad_(False)
    return net


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))


IMAGES = TensorDataset(torch.randn(26, 2, 4, 4, dtype=torch.float64, generator=G), Y)
STRIDED = [(x.mT.contiguous().mT, y) for x, y in IMAGES]
"""The same images, in memory column by column."""


class ChannelsLast(Lit):
    def __init__(self) -> None:
        super().__init__(net=convolution)
        self.to(memory_format=torch.channels_last)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step((batch[0].contiguous(memory_format=torch.channels_last), batch[1]), batch_idx)


class Doubling(Lit):
    """A hook that prepares a batch on its way."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * 2, batch[1]]


class Writing(Lit):
    """Writes into its batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(self.net(batch[0].mul_(2)), batch[1])


class Popping(Lit):
    """Takes the labels out of its batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        labels = batch.pop("y")
        return self.loss(self.net(batch["x"]), labels)


def popping(module: Any, batch: Any) -> Tensor:
    labels = batch.pop("y")
    return F.cross_entropy(module.net(batch["x"]), labels, reduction="none")


def writing(module: Any, batch: Any) -> Tensor:
    return F.cross_entropy(module.net(batch[0].mul_(2)), batch[1], reduction="none")


class Manual(Lit):
    """Optimizes by itself, with two optimizers."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.net[0], self.net[2])]


class Compiled(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(self.net, backend="eager")


class Centred(Lit):
    """Keeps running means in a buffer, and counts its calls in another."""

    running: Tensor
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.zeros(4, dtype=torch.float64))
        self.register_buffer("calls", torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.calls += 1
        if self.training:
            self.running.lerp_(batch[0].mean(0), 0.1)
        return self.loss(self.net(batch[0] - self.running), batch[1])


class Decaying(Lit):
    """Adds a weight decay to its loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) + decay(self)


def decay(module: Any) -> Tensor:
    return 0.05 * torch.stack([p.square().sum() for p in module.parameters()]).sum()


# ---- losses


def by_hand(o: Tensor, y: Tensor) -> Tensor:
    """No call of a known loss: vmapped."""
    return (o.logsumexp(1) - o.gather(1, y[:, None])[:, 0]).mean()


def one_at_a_time(o: Tensor, y: Tensor) -> Tensor:
    """Looks at a value, which vmap cannot: on batches of one."""
    loss = by_hand(o, y)
    return loss if loss.item() < 1e9 else loss / 2


def looped(o: Tensor, y: Tensor) -> Tensor:
    """A call for each example."""
    return torch.stack([F.cross_entropy(one, label) for one, label in zip(o, y, strict=True)]).mean()


def two_terms(o: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(o, y) + 0.3 * F.mse_loss(o, 0 * o, reduction="sum") / len(y)


def per_example(module: Any, batch: Any) -> Tensor:
    return F.cross_entropy(module.net(batch[0]), batch[1], reduction="none")


def decayed(module: Any, batch: Any) -> Tensor:
    return per_example(module, batch) + decay(module)


def masked(o: Tensor, y: Sequence[Tensor]) -> Tensor:
    """A mean over the examples whose mask is 1."""
    losses = F.cross_entropy(o, y[0], reduction="none")
    return (losses * y[1]).sum() / y[1].sum().clamp(min=1)


COUNTED = torch.arange(26) % 4 != 1
IGNORED, MASKED = TensorDataset(X, torch.where(COUNTED, Y, PAD)), TensorDataset(X, Y, COUNTED.double())


def focal(o: Tensor, y: Tensor) -> Tensor:
    losses = F.cross_entropy(o, y, reduction="none")
    return ((1 - torch.exp(-losses)) ** 2 * losses).mean()


def focal_per_example(module: Any, batch: Any) -> Tensor:
    losses = per_example(module, batch)
    return (1 - torch.exp(-losses)) ** 2 * losses


def two_terms_per_example(module: Any, batch: Any) -> Tensor:
    o = module.net(batch[0])
    return F.cross_entropy(o, batch[1], reduction="none") + 0.3 * o.square().sum(1)


CLASS_WEIGHTS = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
REPEATED = [i for i, y in enumerate(Y.tolist()) for _ in range(int(CLASS_WEIGHTS[y]))]

MANY = Y * 78
"""Labels of 200 classes, among them 156, which is 2**8 - 100: that of ignored labels, in 8 bits."""
MANY_WEIGHTS = torch.linspace(0.5, 2.0, 200, dtype=torch.float64)


def weighted_by_hand(o: Tensor, y: Tensor) -> Tensor:
    weights = CLASS_WEIGHTS[y]
    return (weights * F.cross_entropy(o, y, reduction="none")).sum() / weights.sum()


def one_output() -> nn.Module:
    return nn.Linear(4, 1)


def squares(o: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(o[:, 0], y)


def weighted_squares(o: Tensor, y: Sequence[Tensor]) -> Tensor:
    return F.mse_loss(o[:, 0], y[0], weight=y[1])


def with_weight(batch: Any) -> Any:
    return batch[0], batch[1:]


VALUES, TIMES = torch.randn(26, dtype=torch.float64, generator=G), 1 + torch.arange(26) * 5 % 4
WEIGHTED, SINGLE = TensorDataset(X, VALUES, TIMES.double()), TensorDataset(X, VALUES)
COPIES = Subset(SINGLE, torch.arange(26).repeat_interleave(TIMES).tolist())
OF_WEIGHTED: dict[str, Any] = {"train": Subset(WEIGHTED, TRAIN), "query": Subset(WEIGHTED, QUERY)}
OF_COPIES: dict[str, Any] = {"train": Subset(SINGLE, TRAIN), "query": Subset(SINGLE, QUERY)}


def labelled(labels: Tensor, loss: Any = F.cross_entropy) -> Way:
    """Many classes, with labels of any dtype."""
    return Way(module=partial(Lit, loss, partial(mlp, outputs=200)), data=lambda: loaded(TensorDataset(X, labels)))


# ---- sequences

LENGTHS = [2 + 5 * i % 7 for i in range(26)]
SEQUENCES = [
    (torch.randint(7, (n,), generator=G), torch.randint(7, (n,), generator=G))
    for n in LENGTHS
]  # fmt: skip


def padded(items: Sequence[Any], length: int = 0) -> list[Tensor]:
    """Sequences of a batch, filled up to the longest of them, or to a length."""
    width = max(length, *(len(x) for x, _ in items))
    fill = lambda each, value: F.pad(each, (0, width - len(each)), value=value)  # noqa: E731
    return [torch.stack([fill(x, 0) for x, _ in items]), torch.stack([fill(y, PAD) for _, y in items])]


def tokens() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 4), nn.Tanh(), nn.Linear(4, 7))


def over_tokens(o: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(o.flatten(0, 1), y.flatten(), ignore_index=PAD)


def masked_by_hand(o: Tensor, y: Tensor) -> Tensor:
    losses = F.cross_entropy(o.mT, y.clamp(min=0), reduction="none")
    return (losses * (y != PAD)).sum() / (y != PAD).sum()


def token_sums(o: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(o.mT, y, ignore_index=PAD, reduction="sum") / len(y)


def mean_of_means(o: Tensor, y: Tensor) -> Tensor:
    losses = F.cross_entropy(o.mT, y, ignore_index=PAD, reduction="none")
    return (losses.sum(1) / (y != PAD).sum(1)).mean()


def by_token(module: Any, batch: Any) -> Tensor:
    return F.cross_entropy(module.net(batch[0]).mT, batch[1], ignore_index=PAD, reduction="none")


def with_mask(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    return F.cross_entropy(module.net(batch[0]).mT, batch[1].clamp(min=0), reduction="none"), batch[1] != PAD


def token_means(module: Any, batch: Any) -> Tensor:
    return by_token(module, batch).sum(1) / (batch[1] != PAD).sum(1)


def sequences(loss: Any = over_tokens, collate: Any = padded, order: Sequence[int] = range(26), **more: Any) -> Way:
    return Way(
        module=partial(Lit, loss, tokens),
        data=lambda: DataLoader(Subset(SEQUENCES, order), batch_size=5, collate_fn=collate),  # type: ignore[arg-type]
        **more,
    )


OF_SEQUENCES: dict[str, Any] = {
    "train": [SEQUENCES[i] for i in TRAIN], "query": [SEQUENCES[i] for i in QUERY]
}  # fmt: skip


# ---- data


def loaded(data: Any, **more: Any) -> DataLoader[Any]:
    return DataLoader(data, **{"batch_size": 5} | more)


def loader(data: Any, **more: Any) -> Callable[[], DataLoader[Any]]:
    return lambda: loaded(data, **more)


class Own(Dataset[Any]):
    def __len__(self) -> int:
        return 26

    def __getitem__(self, index: int) -> Any:
        return ITEMS[index]


class Loading(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return loaded(DATA)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(ITEMS)


class Drawing(Sampler[int]):
    """Draws half of the rows, others in each epoch, by numbers of its own."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 13

    def __iter__(self) -> Iterator[int]:
        numbers = torch.Generator().manual_seed(self.epoch)
        return iter(torch.randperm(26, generator=numbers)[:13].tolist())


Named = namedtuple("Named", ["x", "y"])


@dataclass
class Fields:
    x: Tensor
    y: Tensor


def in_form(make: Callable[[Tensor, Tensor], Any], unpack: Callable[[Any], Any]) -> Way:
    """Batches of another form."""
    collate = lambda items: make(*default_collate(items))  # noqa: E731
    return Way(module=partial(Lit, unpack=unpack), data=loader(DATA, collate_fn=collate))


def keyed(batch: Any) -> Any:
    return batch["x"], batch["y"]


def fields_of(batch: Any) -> Any:
    return batch.x, batch.y


def columns_of(batch: Any) -> Any:
    """Of a Hugging Face dataset without a format: one list for each coordinate."""
    return torch.stack(batch["x"], 1), batch["y"]


HUB = datasets.Dataset.from_dict({"x": X.tolist(), "y": Y.tolist()})
ORDER = torch.randperm(26, generator=G).tolist()
ROWS = torch.randperm(12, generator=G).tolist()
COLUMNS = [3, 0, 4, 2, 1]
SETS: dict[str, Any] = {"train": Subset(DATA, TRAIN), "query": Subset(DATA, QUERY)}
FIRST = range(18)
