"""What waits for the clock cannot stay as it was: it is named before training starts."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint, Timer

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
