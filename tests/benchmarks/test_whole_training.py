"""The study of influence over a whole training: its moments, its sums, and all of it on a small task."""

from pathlib import Path

import numpy as np
import pytest
import torch

import small_tasks
import whole_training
from retraining import truth as truths
from retraining.tasks import TASKS
from retraining.training import learning_rate, train, trajectory


def test_the_trajectory_ends_where_training_does() -> None:
    task = small_tasks.classes()
    path = trajectory(task, seed=4)
    trained = train(task, torch.ones(1, 40, dtype=torch.bool), [4])
    assert list(path) == list(range(31))
    for name, value in trained.items():
        assert torch.equal(path[30][name], value)
    assert any(not torch.equal(path[29][name], value) for name, value in trained.items())


def test_the_rate_falls_to_nothing() -> None:
    recipe = small_tasks.classes().recipe
    assert learning_rate(recipe, 0) == recipe.learning_rate
    assert learning_rate(recipe, recipe.steps) == 0


def test_moments_end_with_the_training() -> None:
    assert whole_training.squares(640, 8) == [10, 40, 90, 160, 250, 360, 490, 640]
    assert whole_training.evenly(600, 3) == [200, 400, 600]
    assert whole_training.by_logarithm(1000, 3) == [10, 100, 1000]
    assert whole_training.late(1000, 3) == [950, 975, 1000]
    assert whole_training.squares(3, 8) == [1, 2, 3]


def test_a_sum_has_each_column_on_its_own_scale() -> None:
    matrices = list(torch.randn(3, 20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    scaled = [matrix / matrix.std(0, correction=0) for matrix in matrices]
    torch.testing.assert_close(whole_training.summed(matrices), scaled[0] + scaled[1] + scaled[2], atol=1e-9, rtol=0)
    weighted = whole_training.summed(matrices, [1, 0.5, 0])
    torch.testing.assert_close(weighted, scaled[0] + scaled[1] / 2, atol=1e-9, rtol=0)


@pytest.mark.slow
def test_the_study_from_start_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = small_tasks.classes()
    monkeypatch.setitem(TASKS, task.name, task)
    truths.save(truths.make(task), task, tmp_path, np.float32)
    whole_training.main(["--task", task.name, "--cache", str(tmp_path), "--threads", "1", "--count", "4"])
    lines = {line.split(" | ")[0].strip("| "): line for line in capsys.readouterr().out.splitlines()}
    for name in ("sum of 4 at equal distances of √t", "sum of 4 in the last 5 %", "gradient dot product, sum of 4"):
        assert lines[name].count(" ± ") == 2, lines
