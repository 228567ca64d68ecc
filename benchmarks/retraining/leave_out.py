"""What leaving out the examples that a matrix calls most helpful does to a query: the query's loss after retraining."""

from collections.abc import Callable

import torch
from torch import Tensor

from retraining.tasks import Task
from retraining.training import query_losses, train


def losses_without(
    task: Task,
    influence: Tensor | None,
    queries: Tensor,
    fraction: float,
    seeds: list[int],
    progress: Callable[[int], None] = lambda models: None,
) -> Tensor:
    """Loss of each query after retraining without the examples that help it most, [query, seed].

    Args:
        influence: [n, q]; None leaves out random examples, the same for each seed whatever the query.
        queries: columns, [query].
        fraction: of the train set to leave out.
        seeds: of the retrainings: first weights and minibatches.
        progress: called with the number of models that are trained.
    """
    count, left_out = len(task.data()[0]), round(fraction * len(task.data()[0]))
    if influence is None:
        rows = torch.stack([_shuffled(count, seed)[:left_out] for seed in seeds])
        weights = train(task, _without(rows, count), seeds, progress)
        return query_losses(task, weights).mT[queries]
    rows = influence[:, queries].argsort(0)[:left_out].mT.repeat_interleave(len(seeds), 0)
    weights = train(task, _without(rows, count), seeds * len(queries), progress)
    of_each = query_losses(task, weights).view(len(queries), len(seeds), -1)
    return of_each[torch.arange(len(queries)), :, queries]


def _shuffled(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _without(rows: Tensor, count: int) -> Tensor:
    members = torch.ones(len(rows), count, dtype=torch.bool)
    return members.scatter_(1, rows, False)
