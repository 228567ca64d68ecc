"""Schedules in every form of numbers; what waits for the clock is named before training starts."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, Timer

from bif_lightning.trainer.schedule import Schedule
from matrix_run import Case, callback, loader, make_trainer

pytestmark = pytest.mark.trainer


@pytest.mark.parametrize(
    ("named", "others", "trainer"),
    [
        ("Timer", lambda folder: [Timer(duration={"hours": 1})], {}),
        ("Timer", lambda folder: [], {"max_time": "00:01:00:00"}),
        ("ModelCheckpoint", lambda folder: [ModelCheckpoint(folder, train_time_interval=timedelta(hours=1))], {}),
        ("val_check_interval", lambda folder: [], {"val_check_interval": timedelta(hours=1)}),
    ],
    ids=["callback", "max_time", "checkpoint", "validation"],
)
def test_what_waits_for_the_clock_is_named(tmp_path: Path, named: str, others: Any, trainer: Any) -> None:
    case = Case(trainer=trainer | {"enable_checkpointing": True, "max_epochs": 1})
    run = make_trainer(case, tmp_path, [callback(tmp_path), *others(tmp_path / "ckpt")])
    with pytest.warns(UserWarning, match=f"{named} acts by the clock.*bitwise"):
        run.fit(case.build(), loader())


def test_steps_and_epochs_are_not_named(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    case = Case(trainer={"enable_checkpointing": True, "max_epochs": 1})
    others = [ModelCheckpoint(tmp_path / "ckpt", every_n_train_steps=1)]
    make_trainer(case, tmp_path, [callback(tmp_path), *others]).fit(case.build(), loader())
    assert not [warning for warning in recwarn if "by the clock" in str(warning.message)]


@pytest.mark.parametrize(
    "steps",
    [np.unique(np.logspace(0, 0.7, 4).astype(int)), torch.tensor([1, 2, 3, 5]), pd.Index([1, 2, 3, 5]), range(1, 6, 4)],
    ids=["NumPy", "torch", "pandas", "range"],
)
def test_steps_as_people_have_them(steps: Any) -> None:
    taken = Schedule(at_steps=steps)
    assert taken == Schedule(at_steps=tuple(int(step) for step in steps))
    assert taken.crossed(4, 5)


@pytest.mark.parametrize("name", ["every_n_train_steps", "every_n_epochs", "num_snapshots"])
def test_numbers_of_numpy(name: str) -> None:
    assert type(getattr(Schedule(**{name: np.int64(3)}), name)) is int
    with pytest.raises(MisconfigurationException, match=f"{name} is True"):
        Schedule(**{name: True})


@pytest.mark.parametrize("steps", [np.logspace(0, 2, 3), [True, False], [-1], ["1"]])
def test_what_are_no_steps_is_refused(steps: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"at_steps.*whole numbers"):
        Schedule(at_steps=steps)
