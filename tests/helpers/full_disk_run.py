"""A disk that fills, in a mount namespace of its own: python full_disk_run.py DISK, with a small empty disk there."""

import contextlib
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

import bif_lightning as bl
import bif_lightning.commands.cli
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.trainer.checkpoints import load_weights
from bif_lightning.trainer.position import TrainingPosition
from bif_lightning.trainer.snapshot_files import write_snapshot
from offline_run import CHAINS, SAMPLER, STEPS, Keep, Net, assert_same_dumps, points, train

SETTINGS: dict[str, Any] = {"sampler": SAMPLER, "chains": CHAINS}


class Disk:
    """Takes and gives back the room of a small disk."""

    def __init__(self, folder: Path) -> None:
        self.ballast = folder / "ballast"

    def fill(self, leave: int = 0) -> None:
        """Leave so many bytes, rounded up to pages."""
        self.empty()
        free = os.statvfs(self.ballast.parent).f_bavail * os.statvfs(self.ballast.parent).f_frsize
        with self.ballast.open("wb", buffering=0) as file:
            file.write(bytes(max(0, free - leave)))

    def empty(self) -> None:
        """Give all back."""
        self.ballast.unlink(missing_ok=True)


class FullBetween(L.Callback):
    """No room from one step on to another."""

    def __init__(self, disk: Disk, first: int, last: int) -> None:
        self.disk, self.first, self.last = disk, first, last

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step + 1 == self.first:
            self.disk.fill()
        if trainer.global_step == self.last:
            self.disk.empty()


def training_goes_on(disk: Disk, folder: Path, plain: Path) -> None:
    """A snapshot for which there is no room is left out, the others are whole, training is as ever."""
    for last, left in ((5, [2, 8]), (99, [2])):
        directory, saved = folder / f"until-{last}" / "bif", plain / f"until-{last}"
        L.seed_everything(3, verbose=False)
        bif = bl.BIFCallback(
            train=range(10), query=range(30, 36), at_steps=STEPS, at_end=False, log=False, dirpath=directory,
            launch="snapshot", on_error="warn", **SETTINGS,
        )  # fmt: skip
        trainer = L.Trainer(
            max_steps=10, accelerator="cpu", callbacks=[FullBetween(disk, 5, last), bif, Keep(saved)], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(Net(), DataLoader(points(), batch_size=8))
        disk.empty()
        said = [str(each.message) for each in caught if "could not write" in str(each.message)]
        assert f"{directory}/snapshots/step=000000005.ckpt" in said[0], said
        assert "bytes, and 0 bytes are free there" in said[0], said
        assert ("will not notice the end of training" in said[-1]) == (last == 99), said
        names = sorted(path.name for path in (directory / "snapshots").iterdir())
        assert [name for name in names if name != "end.json"] == [f"step=00000000{step}.ckpt" for step in left], names
        for step in STEPS:
            one, other = (
                torch.load(at / f"at-{step}.ckpt", weights_only=True)["state_dict"] for at in (plain / "saved", saved)
            )
            assert all(torch.equal(one[name], other[name]) for name in one)
        done = bl.watch(Net(), directory, data=DataLoader(points(), batch_size=8), idle=0)
        assert done.written == tuple(left), done


def no_half_shards(disk: Disk, folder: Path) -> None:
    """A model in shards, of one rank, which are written by torch.distributed.checkpoint."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    module = fully_shard(nn.Linear(200, 200), mesh=init_device_mesh("cpu", (1,)))
    write_snapshot(folder, module, TrainingPosition(1, 0), Ranks())
    disk.fill(leave=32768)
    with pytest.raises(OSError, match=r"(?s)could not write the shards of .* bytes are free there"):
        write_snapshot(folder, module, TrainingPosition(2, 0), Ranks())
    assert [path.name for path in (folder / "snapshots").iterdir()] == ["step=000000001.ckpt"]
    disk.empty()
    write_snapshot(folder, module, TrainingPosition(2, 0), Ranks())
    assert torch.equal(
        look_at_weights(folder / "snapshots" / "step=000000002.ckpt"), module.weight.full_tensor().detach()
    )
    dist.destroy_process_group()


def look_at_weights(path: Path) -> torch.Tensor:
    plain = nn.Linear(200, 200)
    load_weights(plain, path)
    return plain.weight.detach()


def watch(directory: Path) -> int:
    """The exit status of the command; it stops where no room is, rather than to compute what does not fit."""
    command = ["watch", str(directory), "--model", "offline_run.Net", "--data", "offline_run.points"]
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = bif_lightning.commands.cli.main([*command, "--accelerator", "cpu", "--idle", "5"])
    print(said.getvalue(), file=sys.stderr)  # noqa: T201
    assert said.getvalue().count("could not write") <= 1, "it went on"
    return status


def watching_ends_and_is_taken_up_again(disk: Disk, folder: Path, plain: Path) -> None:
    """With every amount of room: an exit status, a message, no half dump, no lease; with enough, the inline dumps."""
    directory = train(folder, launch="snapshot", **SETTINGS)
    statuses = list[int]()
    for room in [0, 4096, *range(16384, 10**6, 49152)]:
        disk.fill(room)
        statuses.append(watch(directory))
        disk.empty()
        assert not list(directory.glob("claims/*")), room
        assert not list(directory.glob("**/.*")), room
        bl.open_run(directory).load() if list(directory.glob("step=*.h5")) else None
        if statuses[-1] == 0:
            break
    assert statuses[0] == 1
    assert statuses[-1] == 0
    assert set(statuses) == {0, 1}
    print("full", statuses.count(1), "times", file=sys.stderr)  # noqa: T201
    assert_same_dumps(plain / "bif", directory)


def main(folder: Path) -> None:
    disk, plain = Disk(folder), Path(sys.argv[2])
    train(plain, **SETTINGS)
    torch.set_num_threads(1)
    no_half_shards(disk, folder / "shards")
    training_goes_on(disk, folder / "training", plain)
    watching_ends_and_is_taken_up_again(disk, folder / "watching", plain)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
