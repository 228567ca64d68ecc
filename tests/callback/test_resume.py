"""A run resumed from any of its checkpoints, or after kill -9 at any moment, leaves the dumps of one never stopped."""

import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

import bif_lightning as bl
from forked import start
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


@pytest.fixture(scope="module")
def by_default(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with the default sampler that nothing stopped."""
    folder = tmp_path_factory.mktemp("default")
    run(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "step"),
    [("before checkpoint", 4), ("after checkpoint", 4), ("next batch", 4), ("before checkpoint", 5), ("next batch", 7)],
)
def test_killed_and_resumed(tmp_path: Path, by_default: Path, hook: str, step: int) -> None:
    """The dump of step 4 lies there already when the run goes on from step 3, and is written again, equal."""
    killed = start(partial(run, hook=hook, step=step), tmp_path)
    killed.join(200)
    assert killed.exitcode == -signal.SIGKILL
    assert list(matrices(tmp_path)) == [s for s in STEPS if s <= step]
    checkpoints = sorted((tmp_path / "ckpt").glob("*.ckpt"))
    assert len(checkpoints) == (step - 1 if hook == "before checkpoint" else step)
    run(tmp_path, resume=checkpoints[-1])
    check_equal(matrices(tmp_path), matrices(by_default))
    sums = ({0: numbers(folder / "bif" / "integrated.h5")} for folder in (tmp_path, by_default))
    check_equal(*sums)
    assert leftovers(tmp_path / "bif") == []


def leftovers(folder: Path) -> list[str]:
    """Files that are neither dumps, nor the description of the examples, nor the sum over the training."""
    known = ("samples.h5", "integrated.h5")
    return [p.name for p in folder.iterdir() if not (p.name in known or p.match("step=*.h5"))]


@pytest.mark.slow
def test_another_folder_than_before_starts_one_of_its_own(tmp_path: Path, by_default: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(by_default, moved)
    run(moved, resume=by_default / "ckpt" / "step=5.ckpt")
    check_equal(matrices(moved), matrices(by_default))


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
