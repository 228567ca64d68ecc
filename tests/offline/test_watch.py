"""`launch="snapshot"` and `watch`: training only writes weights, and workers make of them its dumps."""

import json
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

import bif_lightning as bl
from bif_lightning.trainer.snapshot_files import FOLDER, snapshot_path
from forked import start
from offline_run import CHAINS, SAMPLER, STEPS, Net, assert_same_dumps, points, train, watch, work

pytestmark = pytest.mark.bitwise

SETTINGS: dict[str, Any] = {"sampler": SAMPLER, "chains": CHAINS}


@pytest.mark.parametrize(
    "settings",
    [SETTINGS, {}, SETTINGS | {"params": "net.0.*", "store_traces": True, "precision": "10bit"}],
    ids=["SGLD", "default", "options"],
)
def test_the_dumps_are_those_of_the_callback(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Those of "auto" too: see test_replay.py."""
    inline = train(tmp_path / "inline", **settings)
    later = train(tmp_path / "later", launch="snapshot", **settings)
    assert [path.name for path in sorted(later.glob("step=*.h5"))] == []
    assert len(list((later / FOLDER).glob("step=*.ckpt"))) == len(STEPS)
    done = watch(later)
    assert done.written == tuple(STEPS)
    assert_same_dumps(inline, later)
    assert (inline / "integrated.h5").exists()
    assert (later / "integrated.h5").exists()


def test_training_is_untouched_and_the_snapshot_is_small(tmp_path: Path) -> None:
    """Weights, buffers and a few numbers: no optimizer, no generator states."""
    plain, kept = (
        train(tmp_path / name, launch=launch, **SETTINGS) for name, launch in (("a", "inline"), ("b", "snapshot"))
    )
    for step in STEPS:
        one, other = (
            torch.load(folder.parent / "saved" / f"at-{step}.ckpt", weights_only=True) for folder in (plain, kept)
        )
        for name, value in one["state_dict"].items():
            assert torch.equal(value, other["state_dict"][name])
        found = torch.load(snapshot_path(kept, step), weights_only=True)
        assert set(found) == {"global_step", "epoch", "hyper_parameters", "metrics", "loss_scale", "state_dict"}
        assert set(found["state_dict"]) == set(one["state_dict"])
        assert found["metrics"].keys() == {"loss"}


@pytest.mark.slow
def test_dumps_follow_the_training_while_it_runs(tmp_path: Path) -> None:
    """A worker in a thread's place: it starts before the first snapshot, and ends with the training."""
    directory = tmp_path / "bif"
    later = start(partial(train, launch="snapshot", **SETTINGS), tmp_path)
    while not (directory / "attribution.json").exists():
        assert later.exitcode is None
        time.sleep(0.1)
    done = watch(directory)
    later.join(60)
    assert later.exitcode == 0
    assert done.written == tuple(STEPS)


@pytest.mark.slow
def test_two_workers_share_the_work(tmp_path: Path) -> None:
    directory = train(tmp_path / "later", launch="snapshot", **SETTINGS)
    pair = [start(work, directory, tmp_path / f"{number}.json") for number in range(2)]
    for each in pair:
        each.join()
    written = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2)]
    assert sum(count for count, _ in written) == len(STEPS)
    assert sum(failed for _, failed in written) == 0
    assert_same_dumps(train(tmp_path / "inline", **SETTINGS), directory)


def killed_at_random(directory: Path, seed: int) -> None:
    """Start a worker and kill it after a random time: while it imports, reads, runs chains, writes, or is done."""
    one = start(work, directory, directory.parent / "counts.json")
    time.sleep(random.Random(seed).uniform(0.2, 2.5))
    one.kill()
    one.join()


@pytest.mark.slow
def test_workers_killed_at_random_lose_and_double_nothing(tmp_path: Path) -> None:
    inline, directory = (train(tmp_path / name, launch=name, **SETTINGS) for name in ("inline", "snapshot"))
    for number in range(15):
        killed_at_random(directory, number)
        if number % 5 == 4:  # else all would be done after the first few
            for dump in list(directory.glob("step=*.h5"))[:2]:
                dump.unlink()
    watch(directory)
    assert_same_dumps(inline, directory)
    assert not list((directory / "claims").glob("*.claim"))
    assert not list(directory.glob("chains/*/*"))


def test_bad_snapshots_are_named_and_the_others_done(tmp_path: Path) -> None:
    directory = train(tmp_path, launch="snapshot", **SETTINGS)
    whole = snapshot_path(directory, 5).read_bytes()
    snapshot_path(directory, 5).write_bytes(whole[: len(whole) // 2])
    torch.save({"global_step": 6, "state_dict": Net(width=9).state_dict()}, snapshot_path(directory, 6))
    done = watch(directory)
    assert done.written == (2, 8)
    reasons = {Path(path).name: why for path, why in done.failed.items()}
    assert "cannot be read" in reasons["step=000000005.ckpt"]
    assert "net.0.weight has shape (9, 4) there and (5, 4)" in reasons["step=000000006.ckpt"]


def test_a_snapshot_removed_under_a_worker_is_not_there_and_no_more(tmp_path: Path) -> None:
    directory = train(tmp_path, launch="snapshot", **SETTINGS)

    class Remove(Net):
        """Removes the last snapshot once the first is being worked on."""

        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            snapshot_path(directory, 8).unlink(missing_ok=True)
            return super().load_state_dict(*args, **kwargs)

    done = bl.watch(Remove(), directory, data=DataLoader(points(), batch_size=8))
    assert done.written == (2, 5)


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no BIFCallback"):
        watch(tmp_path)
    with pytest.raises(MisconfigurationException, match="leave the budget out"):
        train(tmp_path, launch="snapshot", budget=0.1)
    directory = train(tmp_path, launch="snapshot", **SETTINGS)
    with pytest.raises(MisconfigurationException, match="holds 3 snapshots of another run"):
        train(tmp_path, launch="snapshot", **SETTINGS)
    with pytest.raises(ValueError, match="other settings"):
        watch(directory, chains=bl.Chains(num_chains=1, num_draws=6, batch_size=8))
    with pytest.raises(ValueError, match="every_n_epochs applies to snapshots during training"):
        watch(directory, every_n_epochs=1)
