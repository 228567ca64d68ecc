"""Mutable Python state that user code can reach from a module or a dataset.

`walk_objects` walks the object graph breadth first: attributes (also slots), elements of containers, bound methods,
closures, default arguments and, for the user's own code, class attributes and the global names that functions mention.
It copies nothing and calls no user code.
"""

import array
import functools
import random
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

Node = tuple[str, object]


@dataclass(frozen=True)
class GlobalName:
    """A global name that a function mentions: `namespace[name]`."""

    namespace: dict[str, Any]
    name: str

    @property
    def value(self) -> object:
        return self.namespace.get(self.name)


ATOMS = (int, float, complex, str, bytes, type(None), types.ModuleType, torch.dtype, torch.device)
_SEQUENCES = (list, tuple, set, frozenset, deque)
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)
_WALKED = (
    functools.partial,
    types.MethodType,
    torch.nn.Module,
    torch.optim.lr_scheduler.LRScheduler,
    Dataset,
    Sampler,
    DataLoader,
    types.SimpleNamespace,
)
_STATE = (
    *(dict, list, set, deque, bytearray, array.array, torch.Tensor, np.ndarray, torch.Generator),
    *(np.random.Generator, np.random.RandomState, np.random.BitGenerator, random.Random),
)
_CARRIERS = (tuple, frozenset, types.CellType, GlobalName, type, Iterator)
# Their objects hold locks, files, device handles or bulk data, but no state of a training step.
_OPAQUE = frozenset(
    {"bif_lightning", "lightning", "lightning_fabric", "pytorch_lightning", "torch", "numpy", "pandas", "polars"}
    | {"pyarrow", "h5py", "xarray", "PIL", "matplotlib", "tensorboard", "wandb", "mlflow", "comet_ml", "fsspec"}
) | frozenset(sys.stdlib_module_names)


def walk_objects(
    roots: Mapping[str, object],
    *,
    leave: Callable[[object], bool] = lambda obj: False,
    elements: int = 65536,
) -> Iterator[Node]:
    """Every object that can hold state and is reachable from `roots`, each once, nearest first.

    Args:
        roots: objects to start from, by the name that their path begins with.
        leave: objects for which this is true are yielded and not entered.
        elements: a container with more elements than this is yielded and not entered.

    Yields:
        path, object: the path is that of the first way found, such as "module.blocks.0.seen".
    """
    # Keep the objects alive: the id of a freed one could be reused by another, which would then be skipped.
    seen: dict[int, object] = {}
    queue: deque[Node] = deque(roots.items())
    while queue:
        path, obj = queue.popleft()
        key = _identity(obj)
        if key in seen or not _may_hold_state(obj):
            continue
        seen[key] = obj
        yield path, obj
        if not leave(obj):
            queue.extend(_children(path, obj, elements))


def _identity(obj: object) -> int:
    if isinstance(obj, types.MethodType):  # a new object at every access
        return hash((id(obj.__self__), id(obj.__func__)))
    return hash((id(obj.namespace), obj.name)) if isinstance(obj, GlobalName) else id(obj)


def _may_hold_state(obj: object) -> bool:
    if isinstance(obj, ATOMS):
        return False
    return isinstance(obj, (*_STATE, *_CARRIERS)) or _is_entered(obj)


def _children(path: str, obj: object, elements: int) -> Iterator[Node]:
    if isinstance(obj, torch.Tensor):
        if obj.is_leaf and obj.grad is not None:
            yield f"{path}.grad", obj.grad
        return
    yield from _elements(path, obj, elements)
    yield from _attributes(path, obj)
    if isinstance(obj, type):
        yield from _class(path, obj)
    elif isinstance(obj, _FUNCTIONS):
        yield from _function(path, obj)
    elif isinstance(obj, types.CellType | GlobalName):
        yield path, contents(obj)
    elif isinstance(obj, np.random.Generator):
        yield path, obj.bit_generator


def contents(name: types.CellType | GlobalName) -> object:
    """Current value of a closure's cell or a global name; None where it is unset."""
    if isinstance(name, GlobalName):
        return name.value
    try:
        return name.cell_contents
    except ValueError:  # the cell is empty
        return None


def _elements(path: str, obj: object, limit: int) -> Iterable[Node]:
    if isinstance(obj, dict):
        small = len(obj) <= limit
        return [(f"{path}.{key}", value) for key, value in dict.items(obj)] if small else ()
    if isinstance(obj, _SEQUENCES):
        return [(f"{path}.{index}", value) for index, value in enumerate(obj)] if len(obj) <= limit else ()
    if isinstance(obj, np.ndarray) and obj.dtype.hasobject and obj.size <= limit:
        return [(f"{path}.{index}", value) for index, value in enumerate(obj.flat)]
    return ()


def _attributes(path: str, obj: object) -> Iterator[Node]:
    if isinstance(obj, type | GlobalName) or not _is_entered(obj):
        return
    own = getattr(obj, "__dict__", None)
    if isinstance(own, dict):
        yield path, own
    for name in slots(type(obj)):
        yield f"{path}.{name}", getattr(obj, name, None)
    yield from ((cls.__qualname__, cls) for cls in type(obj).__mro__ if is_own_module(cls.__module__))


def _is_entered(obj: object) -> bool:
    if isinstance(obj, _WALKED):
        return True
    home = obj.__module__ if isinstance(obj, types.FunctionType) else type(obj).__module__
    return str(home).partition(".")[0] not in _OPAQUE


@functools.cache
def slots(cls: type) -> tuple[str, ...]:
    """Attribute names of the slots of a class and of its bases written in Python."""
    names: list[str] = []
    for base in cls.__mro__:
        declared = vars(base).get("__slots__", ())
        own = [declared] if isinstance(declared, str) else list(declared)
        names += [_mangled(base, name) for name in own if name not in ("__dict__", "__weakref__")]
    return tuple(names)


def _mangled(cls: type, name: str) -> str:
    private = name.startswith("__") and not name.endswith("__")
    return f"_{cls.__name__.lstrip('_')}{name}" if private else name


def _class(path: str, cls: type) -> Iterator[Node]:
    for name, value in vars(cls).items():
        value = getattr(value, "__func__", getattr(value, "fget", value))
        if isinstance(value, types.FunctionType) or is_state(value):
            yield f"{path}.{name}", value


def _function(path: str, obj: object) -> Iterator[Node]:
    if isinstance(obj, types.MethodType):
        yield from ((path, obj.__self__), (path, obj.__func__))
    elif isinstance(obj, functools.partial):
        yield from ((path, obj.func), (path, obj.args), (path, obj.keywords))
    elif isinstance(obj, types.FunctionType) and _is_entered(obj):
        yield from ((path, cell) for cell in obj.__closure__ or ())
        yield from ((path, obj.__defaults__), (path, obj.__kwdefaults__))
        if is_own_module(obj.__module__):
            yield from _globals(obj)


def _globals(function: types.FunctionType) -> Iterator[Node]:
    namespace = function.__globals__
    for name in _names(function.__code__):
        value = namespace.get(name)
        if isinstance(value, types.FunctionType):
            yield f"{value.__module__}.{name}", value
        elif name in namespace and (is_state(value) or isinstance(value, ATOMS)):
            yield f"{function.__module__}.{name}", GlobalName(namespace, name)


@functools.cache
def _names(code: types.CodeType) -> frozenset[str]:
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return frozenset(code.co_names).union(*inner)


def is_state(value: object) -> bool:
    """Whether the type of a value in a namespace holds state: a container, an array or a generator."""
    return isinstance(value, _STATE)


@functools.cache
def is_own_module(name: str | None) -> bool:
    """Whether a Python module is the user's own code: neither built in nor installed nor part of this package."""
    if name is None or name.partition(".")[0] in _OPAQUE:
        return False
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return name == "__main__"
    installed = [sysconfig.get_path(key) for key in ("stdlib", "purelib", "platlib")]
    path = Path(file).resolve()
    return not any(path.is_relative_to(Path(folder).resolve()) for folder in installed)


def is_dataset(obj: object) -> bool:
    """Whether an object is a dataset of torch or of Hugging Face."""
    return isinstance(obj, Dataset) or type(obj).__module__.partition(".")[0] == "datasets"
