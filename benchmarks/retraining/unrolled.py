"""The exact derivative of one training: what a little more weight on an example does to each query's final loss.

SOURCE (Bae et al. 2024) approximates it segment by segment; MAGIC (Ilyas & Engstrom 2025) computes it, as here.
"""

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

from retraining.gradients import Called
from retraining.tasks import Task, stack
from retraining.training import MOMENTUM, batches, learning_rate, trajectory

Tensors = dict[str, Tensor]


def unrolled(task: Task, seed: int = 0) -> Tensor:
    """dφ_j(w_T)/dε_i for every train example i and query j, [n, q], of the training of this seed.

    Training minimizes the mean of (1 + ε_i)·l_i over each minibatch by SGD with momentum μ and weight decay δ,

        v_{t+1} = μ·v_t + g_t + δ·w_t,   w_{t+1} = w_t − η_t·v_{t+1}.

    With a and b the derivatives of φ_j(w_T) by w and v, from a = ∇φ_j(w_T) and b = 0 at the end, each step back is

        c = b − η_t·a,   dφ_j/dε_i += c·∇l_i(w_t)/m for i in the minibatch,   a += H_t·c + δ·c,   b = μ·c,

    H_t the Hessian of the minibatch. Exact but for rounding and, of ReLUs, for kinks.

    Raises:
        NotImplementedError: the task is not trained by SGD.
    """
    recipe = task.recipe
    if recipe.optimizer != "sgd":
        raise NotImplementedError(f"it is written for SGD, and {task.name} is trained by {recipe.optimizer}")
    inputs, targets = stack(task.data()[0])
    skeleton = task.build()
    path = trajectory(task, seed)
    rows = batches(torch.ones(len(inputs), dtype=torch.bool), seed, recipe)
    of_weights = _query_gradients(task, skeleton, {name: value[0] for name, value in path[recipe.steps].items()})
    of_velocity = {name: torch.zeros_like(value) for name, value in of_weights.items()}
    effect = torch.zeros(len(inputs), len(next(iter(of_weights.values()))), dtype=torch.float64)
    for step in reversed(range(recipe.steps)):
        rate = learning_rate(recipe, step)
        through = {name: of_velocity[name] - rate * value for name, value in of_weights.items()}
        weights = {name: value[0] for name, value in path[step].items()}
        batch = inputs[rows[step]], targets[rows[step]]
        curved, slopes = _products(task, skeleton, weights, batch, through)
        # An example can occur twice, where a minibatch holds the end of one pass and the beginning of the next.
        effect.index_add_(0, rows[step], slopes.double().mT / recipe.batch_size)
        of_weights = {
            name: value + curved[name] + recipe.weight_decay * through[name] for name, value in of_weights.items()
        }
        of_velocity = {name: MOMENTUM * value for name, value in through.items()}
    return effect


def _products(
    task: Task, skeleton: nn.Module, weights: Tensors, batch: tuple[Tensor, Tensor], vectors: Tensors
) -> tuple[Tensors, Tensor]:
    """The minibatch's Hessian times each vector, [q, ...], and the slope of each example's loss along it, [q, m]."""

    def losses(at: Tensors) -> Tensor:
        return task.losses(Called(skeleton, at), batch)

    def both(at: Tensors) -> tuple[Tensors, Tensor]:
        return grad(lambda inner: losses(inner).mean())(at), losses(at)

    return vmap(lambda vector: jvp(both, (weights,), (vector,))[1])(vectors)


def _query_gradients(task: Task, skeleton: nn.Module, weights: Tensors) -> Tensors:
    inputs, targets = stack(task.data()[1])

    def loss(at: Tensors, x: Tensor, y: Tensor) -> Tensor:
        return task.losses(Called(skeleton, at), (x[None], y[None])).sum()

    return vmap(grad(loss), in_dims=(None, 0, 0))(weights, inputs, targets)
