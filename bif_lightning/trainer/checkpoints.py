"""Finding checkpoints, reading their training position, and loading their weights into a module."""

import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as load_shards

from bif_lightning.exceptions import UnreadableCheckpointError
from bif_lightning.storage.places import local_path
from bif_lightning.trainer.position import TrainingPosition

_STEP = re.compile(r"step=(\d+)")
_SUFFIXES = (".ckpt", ".pt", ".pth")
_SHARDS, ABOUT_SHARDS = ".metadata", "meta.pt"
_WEIGHTS = ("state_dict.", "model.", "")
"""Prefixes of weights in sharded checkpoints of ModelParallelStrategy, of FSDPStrategy and without a strategy. A module
may have a part with the same name."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a training run.

    Attributes:
        path: a file, or the folder of a sharded checkpoint.
        position: position in training at which it was written.
    """

    path: Path
    position: TrainingPosition

    @property
    def step(self) -> int:
        """Global training step."""
        return self.position.step


def find_checkpoints(paths: Iterable[str | Path]) -> list[Path]:
    """Checkpoints among files and, recursively, folders, each once, sorted by name.

    Raises:
        FileNotFoundError: a path does not exist, or nothing looks like a checkpoint.
        ValueError: a path is not of this machine.
    """
    paths = [local_path(path, "a checkpoint", access="read") for path in paths]
    found = dict[Path, None]()
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; give checkpoints, or folders of them")
        inside = sorted(path.rglob("*")) if path.is_dir() and not _is_sharded(path) else [path]
        found |= {each.resolve(): None for each in inside if each == path or _may_be(each)}
    if not found:
        names = ", ".join(str(path) for path in paths) or "no path"
        raise FileNotFoundError(
            f"no checkpoint in {names}: no file ends in {', '.join(_SUFFIXES)}, and no folder is a sharded checkpoint"
        )
    return list(found)


def _may_be(path: Path) -> bool:
    shard = _is_sharded(path.parent)
    return not path.name.startswith(".") and not shard and (_is_sharded(path) or path.suffix in _SUFFIXES)


def _is_sharded(path: Path) -> bool:
    return (path / _SHARDS).is_file()


def inspect_checkpoint(path: Path) -> Checkpoint:
    """Read the position in training of a checkpoint, without its weights if the format allows.

    Raises:
        UnreadableCheckpointError: it cannot be read, or does not contain its step.
    """
    sharded = _is_sharded(path)
    about = {} if sharded and not (path / ABOUT_SHARDS).exists() else _load(path / ABOUT_SHARDS if sharded else path)
    step = about.get("global_step")
    if step is None and (named := _STEP.search(path.name)):
        step = int(named.group(1))
    if not isinstance(step, int):
        raise UnreadableCheckpointError(
            f"{path} does not contain its training step: it lacks the global_step of Lightning's checkpoints; rename "
            "it to contain the step, as in step=1000"
        )
    scaler = about.get("MixedPrecision") or {}
    position = TrainingPosition(
        step=step,
        epoch=int(about.get("epoch") or 0),
        metrics=about.get("metrics") or {},
        hyperparameters=dict(about.get("hyper_parameters") or {}),
        loss_scale=float(about.get("loss_scale") or scaler.get("scale") or 1.0),
        epoch_known=about.get("epoch") is not None,
    )
    return Checkpoint(path, position)


def in_order(found: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Checkpoints sorted by training step.

    Raises:
        ValueError: two have the same step.
    """
    ordered = sorted(found, key=lambda saved: saved.step)
    for one, other in pairwise(ordered):
        if one.step == other.step:
            raise ValueError(
                f"{one.path} and {other.path} both have step {one.step}, but a run has one snapshot for each step: "
                "list the checkpoints one by one, or leave out `last.ckpt`"
            )
    return ordered


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Load weights and buffers of a Lightning checkpoint, a state dict, or a sharded checkpoint of any number of ranks.

    Only tensors and plain values are read (`weights_only=True`). As in Lightning, `on_load_checkpoint` of the module
    gets the checkpoint first (not a sharded one): it may restore attributes that a loss uses. Collective if the module
    is sharded.

    Raises:
        OSError: the file does not exist.
        UnreadableCheckpointError: it is not a checkpoint.
        ValueError: it belongs to another module; the message names the keys.
    """
    path = Path(path)
    if _is_sharded(path):
        _load_shards(module, path)
        return
    found = dict(_load(path))
    if "state_dict" in found:
        _call_hook(module, found, path)
    state = found.get("state_dict", found)
    if not isinstance(state, Mapping):
        raise UnreadableCheckpointError(f"the state_dict of {path} is a {type(state).__name__}, not a mapping")
    _fill(module, cast(Mapping[str, Any], state), path)


def _call_hook(module: nn.Module, found: dict[str, Any], path: Path) -> None:
    hook: Callable[[dict[str, Any]], object] | None = getattr(module, "on_load_checkpoint", None)
    if hook is None:
        return
    try:
        hook(found)
    except Exception as error:
        raise UnreadableCheckpointError(
            f"on_load_checkpoint of {type(module).__name__} failed on {path}: {type(error).__name__}: {error}. It "
            "reads what on_save_checkpoint saves: give checkpoints that hold this as tensors and plain values"
        ) from error


def _fill(module: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    own = module.state_dict()
    _check_keys(module, own, state, path)
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape != own[name].shape:
            raise ValueError(
                f"{path} does not fit {type(module).__name__}: {name} has shape {tuple(value.shape)} there and "
                f"{tuple(own[name].shape)} in the module; construct it with the arguments that it was trained with"
            )
    module.load_state_dict(dict(state))


def _check_keys(module: nn.Module, own: Iterable[str], theirs: Iterable[str], path: Path) -> None:
    missing, surplus = sorted(set(own) - set(theirs)), sorted(set(theirs) - set(own))
    if missing or surplus:
        raise ValueError(
            f"{path} does not fit {type(module).__name__}: {_some('it lacks', missing)}{_some('it has', surplus)}"
            "pass the module that it was saved from"
        )


def _some(verb: str, names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{verb} {', '.join(names[:3])}{more}; " if names else ""


def _load_shards(module: nn.Module, path: Path) -> None:
    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    own = module.state_dict()
    prefix = max(_WEIGHTS, key=lambda each: (sum(each + name in stored for name in own), _begins(each, stored)))
    _check_keys(module, own, [name.removeprefix(prefix) for name in stored if name.startswith(prefix)], path)
    together = torch.distributed.is_initialized()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load_shards({prefix[:-1]: own} if prefix else own, checkpoint_id=path, no_dist=not together)
    module.load_state_dict(own)


def _begins(prefix: str, names: Iterable[str]) -> bool:
    return any(name.startswith(prefix) for name in names)


def _load(path: Path) -> Mapping[str, Any]:
    try:
        found = _read(path)
    except FileNotFoundError:
        raise
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError, OSError) as error:
        why = " ".join(str(error).split())
        raise UnreadableCheckpointError(
            f"{path} cannot be read as a checkpoint with weights_only=True: {why or type(error).__name__}"
        ) from error
    if not isinstance(found, Mapping):
        raise UnreadableCheckpointError(f"{path} contains a {type(found).__name__}, not a checkpoint or state dict")
    return cast(Mapping[str, Any], found)


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # reads only what is accessed
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)
