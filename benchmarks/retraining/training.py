"""Training many small models of one task at once, each on a subset of its own."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from retraining.tasks import Recipe, Task, stack

Weights = dict[str, Tensor]
"""Parameters of several models, stacked along the first dimension."""

MOMENTUM = 0.9
"""Of SGD."""

_TOGETHER = 20  # models: more of them leave the cache


def train(
    task: Task, members: Tensor, seeds: list[int], progress: Callable[[int], None] = lambda models: None
) -> Weights:
    """Trains one model for each row of `members`.

    Args:
        members: which train examples each model sees, bool [models, n]; all rows hold equally many.
        seeds: one a model: of its first weights and of its minibatches.
        progress: called with the number of models that are done.

    Returns:
        The trained parameters, [models, ...] each.
    """
    inputs, targets = stack(task.data()[0])
    skeleton = task.build()

    def loss(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        return task.loss(functional_call(skeleton, weights, (x,)), y).mean()

    trained = list[Weights]()
    gradient = vmap(grad(loss))
    for start in range(0, len(seeds), _TOGETHER):
        group = slice(start, start + _TOGETHER)
        weights = initial(task, seeds[group])
        rows = torch.stack(
            [batches(member, seed, task.recipe) for member, seed in zip(members[group], seeds[group], strict=True)], 1
        )
        _descend(weights, lambda w, r: gradient(w, inputs[r], targets[r]), rows, task.recipe)
        trained.append(weights)
        progress(min(start + _TOGETHER, len(seeds)))
    return {name: torch.cat([part[name] for part in trained]) for name in trained[0]}


def trajectory(task: Task, seed: int = 0) -> dict[int, Weights]:
    """Parameters after each step of one training on all examples, a stack of one model each; bitwise those of `train`.

    Args:
        seed: of its first weights and minibatches; 0 is the reference checkpoint's.
    """
    inputs, targets = stack(task.data()[0])
    skeleton, path = task.build(), list[Weights]()

    def loss(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        return task.loss(functional_call(skeleton, weights, (x,)), y).mean()

    def gradient(weights: Weights, rows: Tensor) -> Weights:
        path.append({name: value.clone() for name, value in weights.items()})
        return vmap(grad(loss))(weights, inputs[rows], targets[rows])

    weights = initial(task, [seed])
    everyone = torch.ones(len(inputs), dtype=torch.bool)
    _descend(weights, gradient, batches(everyone, seed, task.recipe)[:, None], task.recipe)
    return dict(enumerate([*path, weights]))


def initial(task: Task, seeds: list[int]) -> Weights:
    """Untrained parameters, one model a seed."""
    modules = list[nn.Module]()
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.manual_seed(seed)
            modules.append(task.build())
    return {name: value.detach() for name, value in stack_module_state(modules)[0].items()}


def query_losses(task: Task, weights: Weights) -> Tensor:
    """Loss of every query under every model, summed over tokens where there are tokens: [models, q]."""
    inputs, targets = stack(task.data()[1])
    skeleton = task.build()

    def losses(one: Weights) -> Tensor:
        return task.loss(functional_call(skeleton, one, (inputs,)), targets).reshape(len(targets), -1).sum(1)

    count = len(next(iter(weights.values())))
    with torch.no_grad():
        return torch.stack([losses({name: value[i] for name, value in weights.items()}) for i in range(count)])


def batches(member: Tensor, seed: int, recipe: Recipe) -> Tensor:
    """Rows of each step's minibatch, [steps, batch]: one shuffled pass over the subset after the other."""
    generator = torch.Generator().manual_seed(seed)
    rows = member.nonzero().squeeze(1)
    needed = recipe.steps * recipe.batch_size
    passes = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(math.ceil(needed / len(rows)))]
    return torch.cat(passes)[:needed].view(recipe.steps, recipe.batch_size)


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate of a step, counted from 0."""
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def _descend(weights: Weights, gradient: Callable[[Weights, Tensor], Weights], rows: Tensor, recipe: Recipe) -> None:
    """All steps of the recipe, in place."""
    first = {name: torch.zeros_like(value) for name, value in weights.items()}
    second = {name: torch.zeros_like(value) for name, value in weights.items()}
    for step in range(recipe.steps):
        rate = learning_rate(recipe, step)
        # The plain kernel: the fused ones have no rule for vmap on CPUs.
        with sdpa_kernel(SDPBackend.MATH):
            gradients = gradient(weights, rows[step])
        for name, value in weights.items():
            g = gradients[name]
            if recipe.optimizer == "sgd":
                first[name].mul_(MOMENTUM).add_(g).add_(value, alpha=recipe.weight_decay)
                value.sub_(first[name], alpha=rate)
            else:
                first[name].lerp_(g, 0.1)
                second[name].lerp_(g.square(), 0.01)
                debias = math.sqrt(1 - 0.99 ** (step + 1)) / (1 - 0.9 ** (step + 1))
                value.addcdiv_(first[name], second[name].sqrt().add_(1e-8), value=-rate * debias)
