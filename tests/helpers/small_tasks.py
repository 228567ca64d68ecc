"""Tasks of the retraining test that take seconds from start to end."""

import torch
from torch import nn

from models import Pairs
from retraining.tasks import Recipe, Task, cross_entropy, half_square


def _network(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, outputs))


def classes() -> Task:
    """40 points of three classes, 12 queries, 6 halves x 2 seeds."""

    def data() -> tuple[Pairs, Pairs]:
        inputs = torch.randn(52, 4, generator=torch.Generator().manual_seed(0))
        examples = list(zip(inputs, inputs[:, :3].argmax(1), strict=True))
        return examples[:40], examples[40:]

    recipe = Recipe(30, 8, 0.2, 1e-2, "sgd", 6, 2)
    return Task("classes", lambda: _network(4, 3), data, cross_entropy, recipe)


def values() -> Task:
    """30 points of a product, 9 queries."""

    def data() -> tuple[Pairs, Pairs]:
        inputs = torch.randn(39, 2, generator=torch.Generator().manual_seed(1))
        examples = list(zip(inputs, inputs.prod(1) + 0.3, strict=True))
        return examples[:30], examples[30:]

    return Task("values", lambda: _network(2, 1), data, half_square, Recipe(60, 10, 0.1, 1e-3, "sgd", 6, 2))
