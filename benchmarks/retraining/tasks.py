"""The tasks of the retraining test: small models on real data that every machine has."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import Tensor, nn

import models
from models import Pairs


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, the reference and the retrained ones alike, and how many are retrained.

    Every model makes the same number of steps at the same batch size, whatever the size of its subset, so that all
    come equally near the end of their training; the learning rate falls to 0 along half a cosine.

    Attributes:
        optimizer: "sgd" has momentum 0.9 and adds the weight decay to the gradient; "adam" decays nothing.
        subsets: random subsets of the train set, each half of it.
        seeds: retrainings of each subset, each with weights and batches of its own.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    optimizer: Literal["sgd", "adam"]
    subsets: int
    seeds: int


@dataclass(frozen=True)
class Task:
    """A model, its train and query sets, and its loss.

    Attributes:
        build: makes the untrained model, from torch's global generator.
        data: makes the train and the query set, lists of (input, target).
        loss: (outputs, targets) -> loss of each example, [batch], or of each token, [batch, token]; an example's
            loss is then the sum over its tokens, and training takes the mean over tokens.
    """

    name: str
    build: Callable[[], nn.Module]
    data: Callable[[], tuple[Pairs, Pairs]]
    loss: Callable[[Tensor, Tensor], Tensor]
    recipe: Recipe

    def losses(self, module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Losses of a batch, [batch] or [batch, token]: the `loss_fn` of `bif_lightning.estimate`."""
        inputs, targets = batch
        return self.loss(module(inputs), targets)

    def mean_loss(self, module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """What training minimizes: the mean over the batch, and over its tokens."""
        return self.losses(module, batch).mean()


def stack(examples: Pairs) -> tuple[Tensor, Tensor]:
    """All inputs and all targets of a list of examples."""
    inputs, targets = zip(*examples, strict=True)
    return torch.stack(inputs), torch.stack(targets)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """−log p of each target, in nats; the classes are the last dimension of the logits."""
    return -logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared error of each example."""
    return 0.5 * (outputs.squeeze(-1) - targets).square()


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(-1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(-3),
        nn.Linear(512, 30),
        nn.ReLU(),
        nn.Linear(30, 10),
    )


def _tabular_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))


def _normalized_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(30, 64),
        nn.LayerNorm(64),
        nn.GELU(),
        nn.Linear(64, 64),
        nn.LayerNorm(64),
        nn.GELU(),
        nn.Linear(64, 2),
    )


def _fashion_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))


def _split(examples: Pairs, train: int, query: int) -> tuple[Pairs, Pairs]:
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [examples[row] for row in order[: train + query]]
    return chosen[:train], chosen[train:]


def _digits() -> tuple[Pairs, Pairs]:
    return _split(models.digits(1797), 1000, 200)


def _diabetes() -> tuple[Pairs, Pairs]:
    features, progression = load_diabetes(return_X_y=True, scaled=False)
    inputs, targets = torch.from_numpy(features), torch.from_numpy(progression)
    inputs, targets = ((x - x.mean(0)) / x.std(0) for x in (inputs, targets))
    return _split(list(zip(inputs.float(), targets.float(), strict=True)), 342, 100)


def _breast_cancer() -> tuple[Pairs, Pairs]:
    features, benign = load_breast_cancer(return_X_y=True)
    inputs = torch.from_numpy(features)
    inputs = ((inputs - inputs.mean(0)) / inputs.std(0)).float()
    return _split(list(zip(inputs, torch.from_numpy(benign), strict=True)), 400, 100)


def _fashion() -> tuple[Pairs, Pairs]:
    return _split(models.fashion_mnist(1100), 1000, 100)


def _sources() -> tuple[Pairs, Pairs]:
    return _split(models.sources(450), 400, 50)


TASKS = {
    task.name: task
    for task in (
        Task("digits_mlp", _mlp, _digits, cross_entropy, Recipe(600, 50, 0.1, 1e-3, "sgd", 100, 5)),
        Task("digits_cnn", _cnn, _digits, cross_entropy, Recipe(400, 50, 0.1, 3e-3, "sgd", 100, 5)),
        Task("tabular", _tabular_mlp, _diabetes, half_square, Recipe(600, 50, 0.05, 1e-2, "sgd", 100, 5)),
        Task(
            "bytes_gpt",
            partial(models.GPT, width=64, blocks=2),
            _sources,
            cross_entropy,
            Recipe(300, 16, 2e-3, 0.0, "adam", 60, 3),
        ),
        # Not looked at while any rule of one snapshot was made.
        # Retrained when the rule of influence over a whole training had been fixed.
        Task("fashion_mlp", _fashion_mlp, _fashion, cross_entropy, Recipe(400, 50, 2e-3, 0.0, "adam", 100, 3)),
        Task("held_out", _normalized_mlp, _breast_cancer, cross_entropy, Recipe(400, 50, 0.05, 1e-3, "sgd", 100, 5)),
    )
}
