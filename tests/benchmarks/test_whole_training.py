"""The study of influence over a whole training: moments, sums, exact derivatives, and all of it on a small task."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import small_tasks
import whole_training
from retraining import truth as truths
from retraining.leave_out import losses_without
from retraining.over_training import account, by_logarithm, evenly, late, models, squares, summed, tracin
from retraining.tasks import TASKS, Task, stack
from retraining.training import batches, learning_rate, query_losses, train, trajectory
from retraining.truth import Truth
from retraining.unrolled import unrolled


def test_the_trajectory_ends_where_training_does() -> None:
    task = small_tasks.classes()
    path = trajectory(task, seed=4)
    trained = train(task, torch.ones(1, 40, dtype=torch.bool), [4])
    assert list(path) == list(range(31))
    for name, value in trained.items():
        assert torch.equal(path[30][name], value)
    assert any(not torch.equal(path[29][name], value) for name, value in trained.items())


def test_models_are_those_of_the_trajectory() -> None:
    task = small_tasks.classes()
    first, last = models(task, (3, 30))
    assert not first.training
    for step, model in ((3, first), (30, last)):
        for name, value in model.named_parameters():
            assert torch.equal(value, trajectory(task)[step][name][0])


def test_the_rate_falls_to_nothing() -> None:
    recipe = small_tasks.classes().recipe
    assert learning_rate(recipe, 0) == recipe.learning_rate
    assert learning_rate(recipe, recipe.steps) == 0


def test_moments_end_with_the_training() -> None:
    assert squares(640, 8) == [10, 40, 90, 160, 250, 360, 490, 640]
    assert evenly(600, 3) == [200, 400, 600]
    assert by_logarithm(1000, 3) == [10, 100, 1000]
    assert late(1000, 3) == [950, 975, 1000]
    assert squares(3, 8) == [1, 2, 3]


def test_a_sum_has_each_column_on_its_own_scale() -> None:
    matrices = list(torch.randn(3, 20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    scaled = [matrix / matrix.std(0, correction=0) for matrix in matrices]
    torch.testing.assert_close(summed(matrices), scaled[0] + scaled[1] + scaled[2], atol=1e-9, rtol=0)
    torch.testing.assert_close(summed(matrices, [1, 0.5, 0]), scaled[0] + scaled[1] / 2, atol=1e-9, rtol=0)


def test_a_sum_scores_what_its_members_and_their_agreement_say() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = list(torch.randn(3, 20, 4, dtype=torch.float64, generator=generator))
    subsets = truths.halves(20, 30)
    losses = torch.randn(30, 2, 4, generator=generator) + (subsets.double() @ matrices[0]).float()[:, None]
    found = account(matrices, Truth(subsets, losses, {}, ""))
    predicted = [subsets.double() @ matrix for matrix in matrices]
    scaled = sum((each - each.mean(0)) / each.std(0) for each in predicted)
    by_query = [np.corrcoef(scaled[:, at], losses.mean(1)[:, at])[0, 1] for at in range(4)]
    assert found.together == pytest.approx(np.mean(by_query), abs=1e-6)
    one = account(matrices[:1], Truth(subsets, losses, {}, ""))
    assert one.alone == pytest.approx(one.together, abs=1e-12)
    assert -1 < found.agreement < 1


def in_double(task: Task) -> Task:
    """The task in float64."""

    def data() -> tuple[list, list]:
        train_set, queries = task.data()
        return tuple([(x.double(), y if y.dtype == torch.int64 else y.double()) for x, y in each]
                     for each in (train_set, queries))  # fmt: skip

    return replace(task, build=lambda: task.build().double(), data=data)


def retrained(task: Task, seed: int, example: int, more: float) -> torch.Tensor:
    """Query losses of a training in which an example's loss counts 1 + more times, by torch's own SGD."""
    inputs, targets = stack(task.data()[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = task.build()
    recipe = task.recipe
    optimizer = torch.optim.SGD(model.parameters(), 1, momentum=0.9, weight_decay=recipe.weight_decay)
    for step, rows in enumerate(batches(torch.ones(len(inputs), dtype=torch.bool), seed, recipe)):
        optimizer.param_groups[0]["lr"] = learning_rate(recipe, step)
        optimizer.zero_grad()
        weights = 1 + more * (rows == example).double()
        (weights * task.losses(model, (inputs[rows], targets[rows]))).mean().backward()
        optimizer.step()
    with torch.no_grad():
        return task.losses(model, stack(task.data()[1]))


@pytest.mark.exact
@pytest.mark.parametrize("name", ["classes", "values"])
def test_the_exact_derivative_is_that_of_retraining(name: str) -> None:
    task, seed, more = in_double(getattr(small_tasks, name)()), 5, 1e-5
    found = unrolled(task, seed)
    assert found.shape == (len(task.data()[0]), len(task.data()[1]))
    for example in (0, 7, 19):
        moved = (retrained(task, seed, example, more) - retrained(task, seed, example, -more)) / (2 * more)
        torch.testing.assert_close(found[example], moved, rtol=1e-5, atol=1e-8)


def test_the_exact_derivative_is_written_for_sgd() -> None:
    task = small_tasks.classes()
    with pytest.raises(NotImplementedError, match="adam"):
        unrolled(replace(task, recipe=replace(task.recipe, optimizer="adam")))


def test_tracin_weights_by_the_learning_rate() -> None:
    task = small_tasks.classes()
    model = models(task, (30,))[0]
    assert tracin(task, model)(0).shape == (40, 12)
    # One step of descent on an example lowers its own loss: the sum of −|∇l|², weighted, is negative.
    same = replace(task, data=lambda: (task.data()[0], task.data()[0]))
    assert float(tracin(same, model)(0).diagonal().max()) < 0


def test_examples_are_left_out_by_the_ranking_of_each_query() -> None:
    task, fraction, seeds = small_tasks.classes(), 0.1, [1, 2]
    influence = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    queries = torch.tensor([3, 5])
    found = losses_without(task, influence, queries, fraction, seeds)
    for row, query in enumerate(queries):
        members = torch.ones(2, 40, dtype=torch.bool)
        members[:, influence[:, query].argsort()[:4]] = False
        expected = query_losses(task, train(task, members, seeds))[:, query]
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-6)
    assert losses_without(task, None, queries, fraction, seeds).shape == (2, 2)


@pytest.mark.slow
def test_the_study_from_start_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = small_tasks.classes()
    monkeypatch.setitem(TASKS, task.name, task)
    monkeypatch.setattr(whole_training, "SEEDS", (0, 1))
    truths.save(truths.make(task), task, tmp_path, np.float32)
    whole_training.main(["--task", task.name, "--cache", str(tmp_path), "--threads", "1", "--count", "4"])
    printed = capsys.readouterr().out
    lines = {line.split(" | ")[0].strip("| "): line for line in printed.splitlines()}
    for name in ("4 at equal distances of √t", "the exact derivatives of 2 trainings"):
        assert lines[name].count(" ± ") == 2, printed
    # The last 5 % of thirty steps are two: they may score exactly as the last, and have no difference to print.
    for name in ("4 moments in the last 5 %", "seed 1", "1%", "5%"):
        assert " ± " in lines[name], printed
