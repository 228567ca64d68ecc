"""Snapshot files for offline workers: weights, buffers and training position, and the run's manifest."""

import io
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from bif_lightning.distributed.ranks import Ranks
from bif_lightning.model.sharded import is_sharded
from bif_lightning.storage.atomic import atomic_write
from bif_lightning.trainer.checkpoints import ABOUT_SHARDS
from bif_lightning.trainer.position import TrainingPosition

FOLDER = "snapshots"
"""Subfolder of the snapshots in the folder of the dumps."""

END = "end.json"
"""File in the snapshots' folder that marks the end of training."""


@dataclass(frozen=True)
class RunManifest:
    """Settings and data of a run, written beside its dumps for other processes that continue it.

    Attributes:
        settings: settings that all snapshots share (`setup.settings_of`).
        data: fingerprints of the data.
        train, query: rows of the training data, if given as indices.
        options: further settings of the callback, by name.
    """

    NAME: ClassVar[str] = "attribution.json"

    settings: Mapping[str, Any]
    data: Mapping[str, str]
    train: Sequence[int] | None = None
    query: Sequence[int] | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def write(self, directory: Path) -> None:
        """Write the manifest atomically.

        Raises:
            OSError: the folder cannot be written.
        """
        text = json.dumps(asdict(self), default=str).encode()
        with atomic_write(directory / self.NAME, len(text)) as sink:
            sink.write(text)


def read_manifest(directory: Path) -> RunManifest | None:
    """Read the manifest of the run in a folder; None if there is none.

    Raises:
        ValueError: it cannot be read.
    """
    path = directory / RunManifest.NAME
    try:
        return RunManifest(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); choose another folder, or remove this one") from error


def snapshot_path(directory: Path, step: int) -> Path:
    """Path of the snapshot of a step: a file, or a folder of shards."""
    return directory / FOLDER / f"step={step:09d}.ckpt"


def write_snapshot(directory: Path, module: nn.Module, position: TrainingPosition, ranks: Ranks) -> Path:
    """Write weights and buffers atomically. Collective.

    Raises:
        OSError: the disk is full, or cannot be written to.
    """
    path = snapshot_path(directory, position.step)
    about = {
        "global_step": position.step,
        "epoch": position.epoch,
        "hyper_parameters": _plain(position.hyperparameters),
        "metrics": dict(position.metrics),
        "loss_scale": position.loss_scale,
    }
    if is_sharded(module):
        _write_shards(path, module, about, ranks)
        return path
    about = _told_by_hook(module, about) | about
    with ranks.collective(f"writing the snapshot of step {position.step}"):
        if ranks.rank == 0:
            _write_whole(path, module, about)
    return path


def _told_by_hook(module: nn.Module, about: dict[str, Any]) -> dict[str, Any]:
    """What `on_save_checkpoint` of the module adds to a checkpoint, where `weights_only=True` can read it."""
    hook: Callable[[dict[str, Any]], object] | None = getattr(module, "on_save_checkpoint", None)
    if hook is None:
        return {}
    whole = about | {"state_dict": dict(module.state_dict())}
    hook(whole)
    return {name: value for name, value in whole.items() if name != "state_dict" and _readable(value)}


def _readable(value: Any) -> bool:
    sink = io.BytesIO()
    try:
        torch.save(value, sink)
        torch.load(io.BytesIO(sink.getvalue()), weights_only=True)
    except Exception:  # of any pickle
        return False
    return True


def _write_whole(path: Path, module: nn.Module, about: dict[str, Any]) -> None:
    state = {name: value.detach() for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    size = sum(value.numel() * value.element_size() for value in state.values())
    with atomic_write(path, size) as sink:
        torch.save(about | {"state_dict": state}, cast(Any, sink))


def reopen(directory: Path) -> None:
    """Remove the mark of the end of training, since the run continues."""
    (directory / FOLDER / END).unlink(missing_ok=True)


def write_end(directory: Path, step: int) -> None:
    """Mark the end of training, and warn if the mark cannot be written."""
    text = json.dumps({"global_step": step}).encode()
    try:
        with atomic_write(directory / FOLDER / END, len(text)) as sink:
            sink.write(text)
    except OSError as error:
        rank_zero_warn(f"watching workers will not notice the end of training; give them --idle. {error}")


def check_no_snapshots(directory: Path) -> None:
    """Check that a folder has no snapshots of another run, which workers would mix.

    Raises:
        MisconfigurationException: it has some.
    """
    found = sorted(path.name for path in (directory / FOLDER).glob("step=*.ckpt"))
    if found or has_ended(directory / FOLDER):
        raise MisconfigurationException(
            f"{directory / FOLDER} holds {len(found)} snapshots of another run; choose another dirpath, resume that "
            "run from its checkpoint, or remove the folder"
        )


def has_ended(folder: Path) -> bool:
    """Whether training has ended, so that no more snapshots will appear in this folder."""
    return (folder / END).is_file()


def _write_shards(path: Path, module: nn.Module, about: dict[str, Any], ranks: Ranks) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with ranks.collective("making room for a snapshot"):
        if ranks.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
    try:
        save_shards({"state_dict": module.state_dict()}, checkpoint_id=temporary)
    except CheckpointException as error:  # on every rank, and not an Exception
        with ranks.collective("removing an incomplete snapshot"):
            if ranks.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
        raise _first_of(error, path) from error
    with ranks.collective("naming the snapshot"):
        if ranks.rank == 0:
            torch.save(about, temporary / ABOUT_SHARDS)
            if path.exists():
                shutil.rmtree(path)
            os.rename(temporary, path)


def _first_of(error: CheckpointException, path: Path) -> OSError:
    ((rank, (first, _)), *_) = error.failures.items()
    free = shutil.disk_usage(path.parent).free
    return OSError(
        f"could not write the shards of {path} (rank {rank}: {first}); {free:,} bytes are free there. Earlier "
        "snapshots are complete, and no part of this one remains. Free some space, or choose another dirpath"
    )


def _plain(values: Any) -> Any:
    """Convert values to types that `weights_only=True` can read; other values become their text."""
    if isinstance(values, dict):
        return {str(key): _plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    return values if values is None or isinstance(values, bool | int | float | str) else str(values)
