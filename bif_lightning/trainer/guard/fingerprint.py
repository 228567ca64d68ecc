"""Hashes, by category, of everything in a training run that a snapshot must leave unchanged.

Equal bits have equal hashes in every run on the same kind of device; NaN equals itself, and −0 is not 0.
"""

import array
import hashlib
import random
import re
import types
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from functools import singledispatch
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from bif_lightning.losses.metric_states import is_metric
from bif_lightning.model.object_graph import ATOMS, GlobalName, Node, contents, walk_objects
from bif_lightning.trainer.guard.guard import SETTINGS, Scope
from bif_lightning.trainer.guard.random_state import generator_states
from bif_lightning.trainer.guard.tensors import bits, has_values

_CHUNK = 2**22
_ODD = 0x5851F42D4C957F2D
_CACHE_BY_ADDRESS = "._metric_attributes"  # of Lightning: its keys are the ids of metrics, which differ between runs
_ADDRESS = "_torchdynamo_wrapper_id"  # of what torch.compile wraps
_UNIQUE = "__composable_api_state_key_"  # of fully_shard: a name that is new in every process
_HOOK_NUMBER = re.compile(r"(?<=_hooks)\.\d+")
# Torch numbers hooks over the whole process, so that the keys differ between two runs in it.
_NUMBERED = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")
_LARGE = 2**20  # bytes; a larger array of a dataset is bulk data and not read
_MANY = ("schedulers", "attributes", "datasets")
_LONG, _SHOWN = 80, 4  # letters of a content that is kept as it is; attributes in a message


class Fingerprint(dict[str, str]):
    """Hashes of the state of training by category.

    Attributes:
        parts: of a category that is made of many objects, the hash of each attribute by its path.
    """

    def __init__(self, hashes: Mapping[str, str], parts: Mapping[str, Mapping[str, str]]) -> None:
        super().__init__(hashes)
        self.parts = parts


def fingerprint(trainer: Any, module: nn.Module) -> Fingerprint:
    """Hashes of the state of training by category; equal states have equal hashes, also in two runs.

    It only reads, and draws from no generator. The cost is about one pass over all parameters, gradients, buffers and
    optimizer states.

    Args:
        trainer: the Trainer, of `lightning` or `pytorch_lightning`, inside `fit`.
        module: its LightningModule, unwrapped.

    Returns:
        A hash for each category, such as "parameters" or "random numbers (numpy)".
    """
    reached = Scope(trainer, module).reached
    random_numbers = {f"random numbers ({name})": state for name, (state, _) in generator_states(module).items()}
    named = dict(module.named_parameters())
    state: dict[str, object] = {
        "parameters": named,
        "gradients": {name: parameter.grad for name, parameter in named.items()},
        "buffers": dict(module.named_buffers()),
        "train flags": {name: child.training for name, child in module.named_modules()},
        "optimizers": [_optimizer(optimizer) for optimizer in trainer.optimizers],
        "schedulers": _shallow(walk_objects({"schedulers": [c.scheduler for c in trainer.lr_scheduler_configs]})),
        "loss scaler": trainer.precision_plugin.state_dict(),
        "progress": _progress(trainer),
        "logged values": _logged(trainer),
        "metrics": {path: _metric(obj) for path, obj in reached if is_metric(obj)},
        "attributes": _shallow(reached),
        "datasets": _shallow(walk_objects({"train data": trainer.train_dataloader}, elements=10_000), largest=_LARGE),
        "settings": [read() for read, _ in SETTINGS.values()],
        **random_numbers,
    }
    parts = {category: _by_path(cast(Any, value)) for category, value in state.items() if category in _MANY}
    return Fingerprint({category: _hash(value) for category, value in state.items()}, parts)


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Categories whose hashes differ, or that only one of two fingerprints has, in the order of `before`."""
    names = dict.fromkeys([*before, *after])
    return [name for name in names if before.get(name) != after.get(name)]


def named_difference(before: Fingerprint, after: Fingerprint) -> list[str]:
    """Categories whose hashes differ, with the attributes that changed, as in "attributes (module.net.calls)"."""
    found = difference(before, after)
    return [name + _changed(before.parts.get(name, {}), after.parts.get(name, {})) for name in found]


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    paths = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return f" ({', '.join(paths[:_SHOWN])}{more})" if paths else ""


def _optimizer(optimizer: torch.optim.Optimizer) -> object:
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    states = [optimizer.state.get(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    return groups, states


def _progress(trainer: Any) -> object:
    epochs, batches = trainer.fit_loop, trainer.fit_loop.epoch_loop
    counts = [epochs.epoch_progress, batches.batch_progress, batches.scheduler_progress]
    counts.append(batches.automatic_optimization.optim_progress)
    return [count.state_dict() for count in counts], batches._batches_that_stepped, trainer.should_stop


def _logged(trainer: Any) -> object:
    connector = trainer._logger_connector
    results = {name: _metric(result) for name, result in trainer.fit_loop.epoch_loop._results.items()}
    return results, connector._logged_metrics, connector._callback_metrics, connector._progress_bar_metrics


def _metric(metric: Metric) -> object:
    return metric.metric_state, metric._update_count, metric._computed


def _shallow(nodes: Iterable[Node], largest: float = float("inf")) -> list[tuple[str, str]]:
    """Path and content of each node and of each entry of a dictionary, without the nodes that these refer to."""
    small = (node for node in nodes if not isinstance(node[1], Tensor | np.ndarray) or node[1].nbytes <= largest)
    entries = (entry for path, obj in small if not _by_address(path) for entry in _entries(path, _lasting(path, obj)))
    return [(_HOOK_NUMBER.sub("", path), content) for path, content in entries]


def _entries(path: str, obj: object) -> list[tuple[str, str]]:
    if not isinstance(obj, dict):
        return [(path, encode(obj, 1))]
    named = ((key if isinstance(key, str) else encode(key, 0), value) for key, value in _items(obj))
    return [(path, "dict"), *((f"{path}.{name}", encode(value, 0)) for name, value in named)]


def _by_path(entries: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {path: content if len(content) < _LONG else _hash(content) for path, content in entries}


def _by_address(path: str) -> bool:
    return path.endswith(_CACHE_BY_ADDRESS) or _UNIQUE in path


def _lasting(path: str, obj: object) -> object:
    """The part of an object that is the same in two equal runs."""
    return list(obj.values()) if isinstance(obj, dict) and path.endswith(_NUMBERED) else obj


def _hash(value: object) -> str:
    return hashlib.blake2b(encode(value).encode(), digest_size=16).hexdigest()


@singledispatch
def encode(value: object, depth: int = 64) -> str:
    """A text that is equal for equal values, with containers `depth` deep and without addresses of objects."""
    return repr(value) if isinstance(value, ATOMS) else type(value).__qualname__


@encode.register(dict)
def _(value: dict[Any, Any], depth: int = 64) -> str:
    if not depth:
        return "dict"
    return "{" + ",".join(f"{encode(k, 0)}:{encode(v, depth - 1)}" for k, v in _items(value)) + "}"


def _items(value: dict[Any, Any]) -> Iterable[tuple[Any, Any]]:
    """The entries that are the same in two equal runs."""
    items = OrderedDict.items(value) if isinstance(value, OrderedDict) else dict.items(value)
    return ((k, v) for k, v in items if k != _ADDRESS and not str(k).startswith(_UNIQUE))


@encode.register(list)
@encode.register(tuple)
@encode.register(deque)
def _(value: Iterable[Any], depth: int = 64) -> str:
    return "[" + ",".join(encode(item, depth - 1) for item in value) + "]" if depth else "list"


@encode.register(set)
@encode.register(frozenset)
def _(value: Iterable[Any], depth: int = 64) -> str:
    return "{" + ",".join(sorted(encode(item, depth - 1) for item in value)) + "}" if depth else "set"


@encode.register(bytearray)
@encode.register(array.array)
def _(value: Any, depth: int = 64) -> str:
    return bytes(value).hex()


@encode.register(types.CellType)
@encode.register(GlobalName)
def _(value: types.CellType | GlobalName, depth: int = 64) -> str:
    return encode(contents(value), 0)


@encode.register(Tensor)
def _(value: Tensor, depth: int = 64) -> str:
    if not depth or not has_values(value):
        return "tensor"
    label = f"{value.dtype} {tuple(value.shape)}"
    content = bits(value.to_dense() if value.layout is not torch.strided else value).reshape(-1)
    return f"{label} {_digest(content.numpy()) if content.device.type == 'cpu' else _sum(content)}"


def _digest(content: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(content).data, digest_size=16).hexdigest()


def _sum(integers: Tensor) -> int:
    """A sum modulo 2^64 with odd weights, which a change of any one element changes: no copy to the host."""
    total = 0
    for index, chunk in enumerate(integers.split(_CHUNK)):
        place = torch.arange(chunk.numel(), device=chunk.device, dtype=torch.int64) + index * _CHUNK
        total += int((chunk.to(torch.int64) * ((place * _ODD) | 1)).sum())
    return total % 2**64


@encode.register(np.ndarray)
def _(value: np.ndarray, depth: int = 64) -> str:
    label = f"{value.dtype} {value.shape}"
    if not depth or isinstance(value, np.memmap):
        return label
    if value.dtype.hasobject:
        return f"{label} {encode(value.ravel().tolist(), depth)}"
    return f"{label} {_digest(value.reshape(-1).view(np.uint8))}"


@encode.register(torch.Generator)
def _(value: torch.Generator, depth: int = 64) -> str:
    return encode(value.get_state())


@encode.register(np.random.BitGenerator)
def _(value: np.random.BitGenerator, depth: int = 64) -> str:
    return encode(value.state)


@encode.register(np.random.RandomState)
def _(value: np.random.RandomState, depth: int = 64) -> str:
    return encode(value.get_state(legacy=False))


@encode.register(random.Random)
def _(value: random.Random, depth: int = 64) -> str:
    return "SystemRandom" if isinstance(value, random.SystemRandom) else encode(value.getstate())
