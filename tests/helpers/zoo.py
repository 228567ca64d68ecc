"""Modules of every habit that a training can have, each small."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from matrix_run import CLASSES, Classifier, losses


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 4), nn.Linear(4, 4)
        self.decode.weight = self.encode.weight
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.decode(torch.relu(self.encode(x)))))


class Recurrent(nn.Module):
    """Two layers of an LSTM or GRU over the coordinates."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.cell: Any = kind(1, 5, num_layers=2, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x[..., None])[0][:, -1])


class Attention(nn.Module):
    """Self-attention over the coordinates."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.head = nn.Linear(1, 4), nn.Linear(4, CLASSES)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.lift(x[..., None])
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


class Encoder(nn.Module):
    """A transformer layer, which has a fast path of its own in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.head = nn.Linear(1, 4), nn.Linear(4, CLASSES)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.lift(x[..., None])).mean(1))


class Checkpointed(nn.Module):
    """A block whose activations are computed again in the backward pass; None keeps them."""

    def __init__(self, use_reentrant: bool | None) -> None:
        super().__init__()
        self.lift, self.head = nn.Linear(4, 6), nn.Linear(6, CLASSES)
        self.block = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.1), nn.Linear(6, 6), nn.Tanh())
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.lift(x)
        if self.use_reentrant is None:
            return self.head(self.block(hidden))
        return self.head(checkpoint(self.block, hidden, use_reentrant=self.use_reentrant))


class Replacing(nn.Module):
    """Buffers that are replaced, not written, at every pass."""

    count: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, CLASSES)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.net(x - self.mean)


def mlp(*extra: nn.Module) -> nn.Module:
    """Two layers, with others between them."""
    return nn.Sequential(nn.Linear(4, 8), *extra, nn.ReLU(), nn.Linear(8, CLASSES))


def weight_norm_of_old() -> nn.Module:
    """The form that recomputes the weight in a hook before each pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, CLASSES))


def weight_norm() -> nn.Module:
    """The form that parametrizes."""
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, CLASSES))


def spectral_norm() -> nn.Module:
    """Power iteration on a buffer at every pass of training."""
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, CLASSES))


def scripted() -> nn.Module:
    """A submodule in TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(4, 8), nn.ReLU())), nn.Linear(8, CLASSES))


class Silent(Classifier):
    """Logs nothing in the step: torch 2.13 cannot compile the `self.log` of Lightning 2.6."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.body(batch[0]), batch[1])


class Manual(Classifier):
    """Two optimizers, stepped by hand, with their schedulers."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = losses(self, batch).mean()
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            loss = losses(self, batch).mean()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, gradient_clip_val=1.0)
            optimizer.step()
            self.untoggle_optimizer(optimizer)
        for scheduler in self.lr_schedulers():
            scheduler.step()
        self.log("loss", loss)

    def configure_optimizers(self) -> Any:
        both = [torch.optim.Adam(self.body[i].parameters(), lr=0.01) for i in (0, 2)]
        return both, [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.9) for optimizer in both]


class Measured(Classifier):
    """Metrics inside: one, a collection, one in a list that is no submodule; a validation step too."""

    def __init__(self) -> None:
        super().__init__(mlp(nn.BatchNorm1d(8), nn.Dropout(0.2)))
        self.accuracy = MulticlassAccuracy(CLASSES)
        self.collection = MetricCollection(
            {"micro": MulticlassAccuracy(CLASSES, average="micro"), "table": MulticlassConfusionMatrix(CLASSES)}
        )
        self.hidden = [MulticlassAccuracy(CLASSES)]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self.body(batch[0])
        self.accuracy(logits, batch[1])
        self.collection.update(logits, batch[1])
        self.hidden[0].update(logits, batch[1])
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        return F.cross_entropy(logits, batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.body(batch[0]), batch[1]))

    def on_train_epoch_end(self) -> None:
        self.log("micro", self.collection["micro"].compute())
        self.log("corner", self.collection["table"].compute()[0, 0].float())
        self.log("hidden", self.hidden[0].compute())
        self.collection.reset()


class Growing(Classifier):
    """Lists that grow in the step and in hooks, and a loss that depends on a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []
        self.history: dict[str, list[Any]] = {"ends": [], "sizes": []}
        self.running: Tensor = torch.zeros(())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.body(batch[0]), batch[1])
        self.seen.append(float(loss.detach()))
        self.history["sizes"].append(len(batch[1]))
        self.running += loss.detach()
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.history["ends"].append((batch_idx, len(self.seen)))
        self.log("seen", float(len(self.seen)))

    def on_train_epoch_end(self) -> None:
        self.log("mean", sum(self.seen) / len(self.seen))
        self.log("running", self.running)
        self.seen.clear()


class Frozen(Classifier):
    """A backbone in evaluation mode without gradients, put there again at each epoch."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, CLASSES)))
        for part in list(self.body)[:3]:
            part.requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        for part in list(self.body)[:3]:
            part.eval()


GRADIENT_CALLS: list[str] = []
"""Outside every object that the guard can put back: a true count."""


class Watched(Classifier):
    """Hooks on parameters, on their accumulation and on modules, as tools that plot gradients set them."""

    def __init__(self) -> None:
        super().__init__(mlp(nn.BatchNorm1d(8)))
        for name, parameter in self.body.named_parameters():
            parameter.register_hook(_count(name))
            parameter.register_post_accumulate_grad_hook(_count(f"{name} accumulated"))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx)


def _count(name: str) -> Any:
    def hook(_: Any) -> None:
        GRADIENT_CALLS.append(name)

    return hook


class Prepared(Classifier):
    """Hooks that change the batch on its way, and one that draws random numbers on the device."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * 2, batch[1]]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        noise = 0.1 * torch.randn_like(batch[0]) if self.training else 0.0
        return [batch[0] / 2 + noise, batch[1]]
