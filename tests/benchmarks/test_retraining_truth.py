"""The ground truth: trained as it says, kept as it was, refused when it is of something else."""

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import models
import small_tasks
from retraining import truth as truths
from retraining.methods import METHODS
from retraining.score import ceiling, difference, lds, lds_with_error
from retraining.tasks import TASKS, Task, stack
from retraining.training import initial, query_losses, train


def plainly(task: Task, rows: torch.Tensor, seed: int) -> nn.Module:
    """The same model, trained by torch's own optimizer."""
    module = task.build()
    module.load_state_dict({name: value[0] for name, value in initial(task, [seed]).items()})
    recipe = task.recipe
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            module.parameters(), recipe.learning_rate, momentum=0.9, weight_decay=recipe.weight_decay
        )
    else:
        optimizer = torch.optim.Adam(module.parameters(), recipe.learning_rate, betas=(0.9, 0.99), eps=1e-8)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    inputs, targets = stack(task.data()[0])
    generator = torch.Generator().manual_seed(seed)
    order = list[torch.Tensor]()
    while sum(len(part) for part in order) < recipe.steps * recipe.batch_size:
        order.append(rows[torch.randperm(len(rows), generator=generator)])
    for batch in torch.cat(order)[: recipe.steps * recipe.batch_size].split(recipe.batch_size):
        optimizer.zero_grad()
        task.mean_loss(module, (inputs[batch], targets[batch])).backward()
        optimizer.step()
        schedule.step()
    return module


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_models_trained_together_are_models_trained_alone(optimizer: str) -> None:
    task = small_tasks.classes()
    task = replace(task, recipe=replace(task.recipe, optimizer=optimizer, learning_rate=0.05))
    members = truths.halves(40, 3)
    together = train(task, members, [4, 5, 6])
    for model in range(3):
        alone = plainly(task, members[model].nonzero().squeeze(1), 4 + model)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(together[name][model], value, rtol=1e-3, atol=1e-5)


def test_query_losses_are_those_of_each_model() -> None:
    task = small_tasks.values()
    weights = initial(task, [1, 2])
    module = task.build()
    module.load_state_dict({name: value[1] for name, value in weights.items()})
    expected = torch.stack([task.losses(module, (x[None], y[None]))[0] for x, y in task.data()[1]])
    torch.testing.assert_close(query_losses(task, weights)[1], expected.detach())


def test_truth_is_kept(tmp_path: Path) -> None:
    task = small_tasks.classes()
    truth = truths.make(task)
    assert truth.subsets.sum(1).tolist() == [20] * 6
    assert truth.losses.shape == (6, 2, 12)
    truths.save(truth, task, tmp_path, np.float32)
    found = truths.load(task, tmp_path)
    assert torch.equal(found.subsets, truth.subsets)
    assert torch.equal(found.losses, truth.losses)
    for ours, theirs in zip(found.reference(task).parameters(), truth.weights.values(), strict=True):
        assert torch.equal(ours, theirs)


def test_truth_of_another_recipe_model_or_data_is_refused(tmp_path: Path) -> None:
    task = small_tasks.classes()
    truths.save(truths.make(task), task, tmp_path, np.float16)
    truths.load(task, tmp_path)
    train_set, query_set = task.data()
    for other in (
        replace(task, recipe=replace(task.recipe, weight_decay=2e-2)),
        replace(task, build=lambda: nn.Linear(4, 3)),
        replace(task, data=lambda: (train_set[::-1], query_set)),
    ):
        with pytest.raises(truths.StaleTruthError, match="--task classes"):
            truths.load(other, tmp_path)
    with pytest.raises(FileNotFoundError, match="values"):
        truths.load(small_tasks.values(), tmp_path)


@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn", "tabular", "held_out"])
def test_the_truth_in_the_repository_is_of_the_tasks(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    truth = truths.load(task, tmp_path)
    assert truth.losses.shape == (task.recipe.subsets, task.recipe.seeds, len(task.data()[1]))
    assert ceiling(truth) > 0.3
    # What retraining did to the queries predicts itself; noise does not.
    generator = torch.Generator().manual_seed(0)
    assert abs(lds(torch.randn(truth.subsets.shape[1], truth.losses.shape[2], generator=generator), truth)) < 0.1


@pytest.mark.slow
def test_the_default_foretells_retraining_better_than_the_empirical_fisher() -> None:
    """On the network that no rule of the package was made on; by more than three of its standard errors."""
    task = TASKS["held_out"]
    truth = truths.load(task)
    methods = {method.name: method for method in METHODS}
    default, fisher = (
        methods[name].prepare(task, truth.reference(task))(0.0)
        for name in ("controlled SGLD, the default", "empirical Fisher, exact")
    )
    better, error = difference(default, fisher, truth)
    assert better > 3 * error


def test_images_of_fashion_mnist_are_read(tmp_path: Path) -> None:
    pixels, labels = np.arange(2 * 784, dtype=np.uint8).reshape(2, 28, 28), np.array([3, 9], np.uint8)
    for name, values in (("images-idx3", pixels), ("labels-idx1", labels)):
        head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes()))
    (first, three), (second, nine) = models.fashion_mnist(2, tmp_path)
    assert (int(three), int(nine)) == (3, 9)
    torch.testing.assert_close(torch.stack([first, second]), torch.from_numpy(pixels.reshape(2, -1)) / 255)
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        models.fashion_mnist(2, tmp_path / "nowhere")


def test_committed_truth_is_small() -> None:
    assert sum(path.stat().st_size for path in truths.COMMITTED.iterdir()) < 2_000_000


def test_scores_and_their_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    influence, noise = torch.randn(2, 30, 25, generator=generator)
    subsets = truths.halves(30, 50)
    clean = subsets.float() @ influence
    losses = torch.stack([clean, clean], 1) + torch.randn(50, 2, 25, generator=generator)
    truth = truths.Truth(subsets, losses, {}, "")
    best, worse = lds_with_error(influence, truth), lds_with_error(influence + noise, truth)
    gap, error = difference(influence, influence + noise, truth)
    assert gap == pytest.approx(best[0] - worse[0])
    assert 0 < error < best[1] + worse[1]
    assert difference(influence, influence, truth) == pytest.approx((0.0, 0.0))
    assert 0.5 < ceiling(truth) < best[0]
