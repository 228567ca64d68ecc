"""Settings by measurement, and a budget, on several processes over gloo and in half precision."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bif_lightning as bl
import strategy_run
from strategy_run import launch

pytestmark = [pytest.mark.trainer, pytest.mark.bitwise]

AT_START: dict[str, Any] = {"at_start": True, "at_steps": [], "at_end": False, "sampler": "auto", "chains": None}


def dump(folder: Path) -> Any:
    return bl.open_run(folder / "bif").load()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights off their start, without BatchNorm, whose running statistics half precision would move."""
    path = tmp_path_factory.mktemp("start") / "start.pt"
    torch.manual_seed(5)
    torch.save(strategy_run.Net(norm=False).state_dict(), path)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision",
    ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.slow), pytest.param("bf16-true", marks=pytest.mark.slow),
     pytest.param("16-true", marks=pytest.mark.slow)],
)  # fmt: skip
def test_two_ranks_settle_on_what_one_settles_on(tmp_path: Path, start: str, precision: str) -> None:
    """The same settings, in words and in numbers, and the same bits of everything made with them."""
    trainer = {"max_steps": 1, "precision": precision}
    for ranks, kind in ((1, "single"), (2, "ddp")):
        left = launch(
            tmp_path / str(ranks), ranks, strategy=kind, start=start, norm=False, options=AT_START, trainer=trainer
        )
        assert all(isinstance(found, list) for found in left), left
    one, two = dump(tmp_path / "1"), dump(tmp_path / "2")
    assert one.sizes == two.sizes
    for name in one.data_vars:
        if name != "seconds" and np.issubdtype(one[name].dtype, np.number) and "cost" not in name:
            assert np.array_equal(one[name].values, two[name].values, equal_nan=True), name


@pytest.mark.slow
def test_a_budget_on_two_ranks_leaves_training_alone_and_ranks_in_step(tmp_path: Path) -> None:
    """The clock of one rank decides for both: they skip and take the same snapshots, with the same free draws."""
    options = {"every_n_train_steps": 1, "sampler": "auto", "chains": None, "budget": 0.5}
    left = launch(tmp_path, 2, strategy="ddp", compare=True, options=options)
    for plain, watched in left:
        assert plain == watched
    steps = dump(tmp_path).step.values.tolist()
    assert steps
    assert set(steps) <= set(range(1, 7))
