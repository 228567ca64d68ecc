"""A run resumed from any of its checkpoints, or after kill -9 at any moment, leaves the dumps of one never stopped."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

import bif_lightning as bl
import lifecycle_run
from lifecycle_run import run

pytestmark = [pytest.mark.trainer, pytest.mark.bitwise, pytest.mark.crash]

STEPS = [2, 4, 6, 8]
NOT_BITWISE = {"seconds", "peak_bytes"}
"""What a dump says of its cost."""


def matrices(folder: Path) -> dict[int, dict[str, np.ndarray]]:
    """Every number of every dump, by step; but what it cost."""
    return {int(path.stem.split("=")[1]): numbers(path) for path in sorted((folder / "bif").glob("step=*.h5"))}


def numbers(path: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def visit(name: str, item: Any) -> None:
        timed = name.rsplit("/", 1)[-1] in NOT_BITWISE
        if isinstance(item, h5py.Dataset) and np.issubdtype(item.dtype, np.number) and not timed:
            found[name] = item[...]

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def check_equal(found: dict[int, Any], expected: dict[int, Any]) -> None:
    assert list(found) == list(expected)
    for step, values in found.items():
        assert list(values) == list(expected[step])
        different = [n for n, v in values.items() if not np.array_equal(v, expected[step][n], equal_nan=True)]
        assert not different, f"step {step}: {different}"


@pytest.fixture(scope="module", params=["given", pytest.param("auto", marks=pytest.mark.slow)])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder, settings, dumps, weights at the end) of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp(request.param)
    given = bl.SGLD(step_size=1e-4, inverse_temperature=100.0, localization=10.0)
    settings = {"sampler": "auto" if request.param == "auto" else given}
    trainer = run(folder, **settings)
    return folder, settings, matrices(folder), trainer.lightning_module.state_dict()


@pytest.mark.parametrize("step", range(1, 9))
def test_resumed_from_every_checkpoint(whole: Any, tmp_path: Path, step: int) -> None:
    folder, settings, expected, weights = whole
    assert list(expected) == STEPS
    trainer = run(tmp_path, resume=folder / "ckpt" / f"step={step}.ckpt", **settings)
    end = trainer.lightning_module.state_dict()
    assert all(torch.equal(end[name], value) for name, value in weights.items()), "Lightning itself did not resume"
    check_equal(matrices(tmp_path), {at: dump for at, dump in expected.items() if at > step})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "step"),
    [("before checkpoint", 4), ("after checkpoint", 4), ("next batch", 4), ("before checkpoint", 5), ("next batch", 7)],
)
def test_killed_and_resumed(tmp_path: Path, hook: str, step: int) -> None:
    """The dump of step 4 lies there already when the run goes on from step 3, and is written again, equal."""
    run(tmp_path / "whole")
    expected = matrices(tmp_path / "whole")
    killed = start(tmp_path / "killed", "--kill", hook, str(step))
    assert killed == -signal.SIGKILL
    assert list(matrices(tmp_path / "killed")) == [s for s in STEPS if s <= step]
    checkpoints = sorted((tmp_path / "killed" / "ckpt").glob("*.ckpt"))
    assert len(checkpoints) == (step - 1 if hook == "before checkpoint" else step)
    assert start(tmp_path / "killed", "--resume", str(checkpoints[-1])) == 0
    check_equal(matrices(tmp_path / "killed"), expected)
    assert leftovers(tmp_path / "killed" / "bif") == []


def start(folder: Path, *arguments: str) -> int:
    """The run in a process of its own; its exit status."""
    environment = os.environ | {"PYTHONPATH": str(Path(bl.__file__).parents[1])}
    command = [sys.executable, lifecycle_run.__file__, str(folder), *arguments]
    return subprocess.run(command, check=False, env=environment, capture_output=True, timeout=200).returncode


def leftovers(folder: Path) -> list[str]:
    """Files that are neither dumps nor the description of the examples."""
    return [p.name for p in folder.iterdir() if not (p.name == "samples.h5" or p.match("step=*.h5"))]


@pytest.mark.slow
def test_another_folder_than_before_starts_one_of_its_own(tmp_path: Path) -> None:
    run(tmp_path / "one")
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "one", moved)
    run(moved, resume=tmp_path / "one" / "ckpt" / "step=5.ckpt")
    check_equal(matrices(moved), matrices(tmp_path / "one"))


OTHER = {
    "chains": (bl.Chains(num_chains=3, common_random_numbers=False), "'num_chains': 2.*then.*'num_chains': 3"),
    "sampler": (
        bl.SGLD(step_size=1e-4, inverse_temperature=1.0, localization=1.0),
        "sampler.*then.*'inverse_temperature': 1.0",
    ),
    "params": ("body.0.*", r"params: \[\] then, .*body\.0"),
}


@pytest.mark.parametrize("name", OTHER)
def test_other_settings_are_refused(whole: Any, tmp_path: Path, name: str) -> None:
    folder, settings, *_ = whole
    value, shown = OTHER[name]
    with pytest.raises(MisconfigurationException, match=f"{shown}.*now"):
        run(tmp_path, resume=folder / "ckpt" / "step=3.ckpt", **(settings | {name: value}))
