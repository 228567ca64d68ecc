"""Small modules that hold their weights in every way that PyTorch offers. All take [batch, 6] and give [batch, 3]."""

import warnings
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torchmetrics.classification import MulticlassAccuracy

from bif_lightning.data.dataset import Examples
from bif_lightning.losses.problem import Problem

BATCH = 5


def data(seed: int = 0, examples: int = 12) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, 6, generator=generator)
    return list(zip(x, torch.randint(0, 3, (examples,), generator=generator), strict=True))


def cross_entropy(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decode(self.encode(x).tanh()))


class Shared(nn.Module):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 6)
        self.other, self.head = self.one, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.one(x).tanh()))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 5, batch_first=True, bidirectional=True), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.view(len(x), 3, 2))[0].mean(1))


class Normalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.first(x)).relu())


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(2, 1, batch_first=True), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(len(x), 3, 2)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x[:, None])[:, 0])


class Checkpointed(nn.Module):
    """Activation checkpointing: the backward pass computes the forward pass again."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).tanh()
        return self.head(checkpoint(self._inner, hidden, use_reentrant=self.reentrant))

    def _inner(self, x: Tensor) -> Tensor:
        return self.second(x).tanh()


class Measured(nn.Module):
    """Has torchmetrics metrics inside, and updates one in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.accuracy = mlp(), MulticlassAccuracy(3)
        self.seen = nn.ModuleDict({"validation": MulticlassAccuracy(3)})

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        self.accuracy.update(out.detach(), torch.zeros(len(x), dtype=torch.long))
        return out


class Listing(nn.Module):
    """Keeps a list of its own parameters and computes with that."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.cached = [self.first.weight, self.first.bias]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.linear(x, *self.cached).tanh())


class Counting(nn.Module):
    """Writes to a buffer in every forward pass, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.body(x)


class Hiding(nn.Module):
    """Computes with a weight that it keeps in an object which is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.hidden = SimpleNamespace(weight=self.first.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.linear(x, self.hidden.weight).tanh())


class BoundMethod(nn.Module):
    """Keeps a bound method of itself, as some patching libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.body.forward = self.body.forward  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def weight_norm() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3))


def spectral_norm() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3))


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3))


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(6, 8), nn.Tanh())), nn.Linear(8, 3))


def compiled() -> nn.Module:
    return nn.Sequential(torch.compile(nn.Sequential(nn.Linear(6, 8), nn.Tanh()), backend="eager"), nn.Linear(8, 3))


class RandomInEvaluation(nn.Module):
    """Draws random numbers in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x + 0.1 * torch.randn_like(x))


class RandomAtFirst(nn.Module):
    """Draws random numbers in its first call only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.calls = mlp(), [0]

    def forward(self, x: Tensor) -> Tensor:
        if not self.calls[0]:
            torch.rand(1)
        self.calls[0] += 1
        return self.body(x)


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "tied weights": Tied,
    "shared module": Shared,
    "LSTM": Recurrent,
    "BatchNorm": Normalized,
    "parametrized weight_norm": weight_norm,
    "parametrized spectral_norm": spectral_norm,
    "old weight_norm": old_weight_norm,
    "MultiheadAttention": Attention,
    "TransformerEncoder": Encoder,
    "checkpoint": lambda: Checkpointed(False),
    "reentrant checkpoint": lambda: Checkpointed(True),
    "torchmetrics": Measured,
    "list of its parameters": Listing,
    "buffer that is written": Counting,
}


def problem_of(module: nn.Module) -> Problem:
    """Twelve train and four query examples."""
    train, query = Examples(data()), Examples(data(1, 4))
    return Problem(
        module=module, loss=cross_entropy, objective=lambda m, b: cross_entropy(m, b).mean(),
        train=train, query=query, training=train, prepare=lambda batch: batch,
    )  # fmt: skip


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The module, its weights drawn with this seed, in training mode and with a gradient left behind."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = make().train()
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    return module
