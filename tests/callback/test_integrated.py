"""The callback keeps integrated.h5 up to date: bitwise that of all dumps, after a resume and on any number of ranks."""

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import bif_lightning as bl
import lifecycle_run
from strategy_run import launch
from tiny_run import Leaky, Points, bif, fit

pytestmark = [pytest.mark.trainer, pytest.mark.bitwise]


def content(folder: Path) -> dict[str, np.ndarray]:
    """Every number in the file of a run: all but the times of writing."""
    with h5py.File(folder / "bif" / "integrated.h5") as file:
        return {name: file[name][...] for name in file if name != "created_utc"}


def check_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_it_is_up_to_date_after_each_dump_and_that_of_all_dumps(tmp_path: Path) -> None:
    seen: list[list[int]] = []

    class Looking(bl.BIFCallback):
        def _take(self, trainer: Any, module: Any, **how: Any) -> None:
            super()._take(trainer, module, **how)
            file = tmp_path / "bif" / "integrated.h5"
            seen.append(h5py.File(file)["step"][...].tolist() if file.exists() else [])

    made = bif(tmp_path, at_steps=[1, 2, 4], at_end=False)
    made.__class__ = Looking
    fit(tmp_path, [made])
    assert seen == [[], [1, 2], [1, 2, 4]], "of one dump there is nothing to sum"
    grown = content(tmp_path)
    np.testing.assert_array_equal(bl.open_run(tmp_path / "bif").integrated, grown["integrated"].T)
    (tmp_path / "bif" / "integrated.h5").unlink()
    bl.write_integrated(tmp_path / "bif")
    check_equal(grown, content(tmp_path))


@pytest.mark.slow
def test_a_run_that_went_on_from_a_checkpoint_leaves_the_same_sum(tmp_path: Path) -> None:
    """As after a kill in step 5: the dump of step 4 is there, and is written again, equal, with another time."""
    lifecycle_run.run(tmp_path / "whole")
    expected = content(tmp_path / "whole")
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole", killed)
    for step in (6, 8):
        (killed / "bif" / f"step={step:09d}.h5").unlink()
    (killed / "bif" / "integrated.h5").unlink()
    bl.write_integrated(killed / "bif")
    assert content(killed)["step"].tolist() == [2, 4]
    lifecycle_run.run(killed, resume=killed / "ckpt" / "step=3.ckpt")
    check_equal(content(killed), expected)
    assert expected["step"].tolist() == [2, 4, 6, 8]


@pytest.mark.slow
def test_weights_that_stand_still_count_once(tmp_path: Path) -> None:
    class Still(Leaky):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    module = Still()
    module.net[1] = torch.nn.LayerNorm(8)
    fit(tmp_path, [bif(tmp_path, every_n_train_steps=2)], module=module, data=Points(augment=False))
    found = content(tmp_path)
    assert found["step"].tolist() == [2, 4, 6]
    assert found["status"].tolist() == [[1] * 5, [0] * 5, [0] * 5]


@pytest.mark.slow
def test_a_failure_costs_no_snapshot(tmp_path: Path, dumps: Any) -> None:
    """A folder lies where the file should be."""
    (tmp_path / "bif" / "integrated.h5" / "in the way").mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"integrated\.h5 was not brought up to date: could not write"):
        fit(tmp_path, [bif(tmp_path, every_n_train_steps=2)])
    assert dumps() == [2, 4, 6]
    assert bl.integrated(bl.open_run(tmp_path / "bif")).attrs["steps"] == [2, 4, 6]
    assert not list((tmp_path / "bif").glob(".*"))


@pytest.mark.slow
def test_two_ranks_leave_the_sum_of_one(tmp_path: Path) -> None:
    """Of weights that move by the step alone: two ranks would train others than one."""
    case: dict[str, Any] = {"drifting": True, "options": {"at_steps": [1, 2], "at_start": True, "at_end": False}}
    for name, ranks, strategy in (("one", 1, "single"), ("two", 2, "ddp")):
        left = launch(tmp_path / name, ranks, strategy=strategy, **case)
        assert not [each for each in left if isinstance(each, BaseException)]
    found, expected = content(tmp_path / "two"), content(tmp_path / "one")
    check_equal(found, expected)
    assert expected["step"].tolist() == [0, 1, 2]
    assert (expected["status"] == 1).all()
