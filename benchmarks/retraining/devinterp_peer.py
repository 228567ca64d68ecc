"""The influence of devinterp 2.0.1 (pip install devinterp==2.0.1), an optional part of the benchmark."""

import tempfile
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from retraining.gradients import Solve
from retraining.tasks import Task, stack

_LARGEST_BATCH = 256


def devinterp(task: Task, model: nn.Module) -> Solve:
    """−Cov over its SGLD chains: 4 of 100 draws, nβ 200, γ 10,000; the knob is the step size.

    The library takes sequences of tokens, but the loss function may be one's own. Here a "sequence" is the number of an
    example, twice, and its loss that of this example, so that any model runs. It visits its observables in full
    batches only, and has one batch size: the largest one up to 256 that divides n + q.

    Raises:
        ImportError: devinterp is not installed.
    """
    from datasets import Dataset
    from devinterp.slt.bif import bif

    train, query = task.data()
    inputs, targets = stack([*train, *query])
    everything = len(inputs)
    batch = max(size for size in range(1, _LARGEST_BATCH + 1) if everything % size == 0)

    def numbers(count: int) -> Dataset:
        return Dataset.from_dict({"input_ids": [[row, row] for row in range(count)]}).with_format("torch")

    def losses(module: nn.Module, rows: Tensor) -> Tensor:
        chosen = rows[:, 0]
        return task.losses(module, (inputs[chosen], targets[chosen])).reshape(len(rows), -1).mean(1, keepdim=True)

    def solve(step_size: float) -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            found = bif(
                deepcopy(model), numbers(len(train)), {"all": (numbers(everything), everything // batch)},
                lr=step_size, n_beta=200.0, localization=1e4, num_chains=4, num_draws=100, batch_size=batch,
                correlation_method="sequence", compute_covariance=True, loss_fn=losses,
                output_path=Path(folder, "samples.zarr"),
            )  # fmt: skip
            place = torch.from_numpy(found["input_ids"].values[:, 0]).argsort()
            covariance = torch.from_numpy(found["influences"].values)[place][:, place]
        return -covariance[: len(train), len(train) :]

    return solve
