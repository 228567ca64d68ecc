"""Saving and restoring the state of one mutable object, in place.

`save_state(obj, budget)` returns a function that undoes every later change of `obj` itself (`walk_objects` finds what
it refers to) without replacing the object, so that other references to it stay valid. It writes nothing where nothing
changed.
"""

import array
import copy
import random
import types
from collections import OrderedDict, deque
from collections.abc import Sequence
from functools import singledispatch
from operator import is_
from typing import Any

import numpy as np
import torch

from bif_lightning.model.object_graph import GlobalName, slots
from bif_lightning.trainer.guard.tensors import CopyBudget, Undo, keep_array, keep_tensor, nothing

_MISSING = object()


@singledispatch
def save_state(obj: object, budget: CopyBudget) -> Undo:
    """Return a function that restores `obj` to its current state; for a stateless type, one that does nothing.

    Tensors beyond the budget are only watched: the returned function raises RuntimeError if one was written. Arrays
    beyond the budget, memory maps and read-only arrays are not covered.
    """
    names = slots(type(obj))
    if not names:
        return nothing
    before = [(name, getattr(obj, name, _MISSING)) for name in names]

    def undo() -> None:
        for name, value in before:
            if value is not _MISSING and getattr(obj, name, _MISSING) is not value:
                object.__setattr__(obj, name, value)

    return undo


def _same(now: Sequence[object], before: Sequence[object]) -> bool:
    return len(now) == len(before) and all(map(is_, now, before))


@save_state.register(dict)
def _(obj: dict[Any, Any], budget: CopyBudget) -> Undo:
    # Methods of the base class, since a subclass may check, log or refuse what it is given.
    base: Any = OrderedDict if isinstance(obj, OrderedDict) else dict
    before: list[tuple[Any, Any]] = list(base.items(obj))
    keys = {key for key, _ in before}

    def undo() -> None:
        # One key at a time, so that an interrupt never finds an empty `__dict__`; all keys only to restore their order.
        for key in [key for key in base.keys(obj) if key not in keys]:
            base.__delitem__(obj, key)
        for key, value in before:
            if base.get(obj, key, _MISSING) is not value:
                base.__setitem__(obj, key, value)
        if not _same(list(base.keys(obj)), [key for key, _ in before]):
            base.clear(obj)
            for key, value in before:
                base.__setitem__(obj, key, value)

    return undo


@save_state.register(list)
def _(obj: list[Any], budget: CopyBudget) -> Undo:
    before = list.copy(obj)

    def undo() -> None:
        if not _same(list.copy(obj), before):
            list.__setitem__(obj, slice(None), before)

    return undo


@save_state.register(set)
def _(obj: set[Any], budget: CopyBudget) -> Undo:
    before = set.copy(obj)

    def undo() -> None:
        if set.__ne__(obj, before):
            set.clear(obj)
            set.update(obj, before)

    return undo


@save_state.register(deque)
def _(obj: deque[Any], budget: CopyBudget) -> Undo:
    before = tuple(obj)

    def undo() -> None:
        if not _same(tuple(obj), before):
            deque.clear(obj)
            deque.extend(obj, before)

    return undo


@save_state.register(bytearray)
@save_state.register(array.array)
def _(obj: Any, budget: CopyBudget) -> Undo:
    before = obj[:]

    def undo() -> None:
        if obj != before:
            obj[:] = before

    return undo


@save_state.register(types.CellType)
def _(obj: types.CellType, budget: CopyBudget) -> Undo:
    try:
        before = obj.cell_contents
    except ValueError:  # empty: its function is still being defined
        return nothing

    def undo() -> None:
        if obj.cell_contents is not before:
            obj.cell_contents = before

    return undo


@save_state.register(GlobalName)
def _(obj: GlobalName, budget: CopyBudget) -> Undo:
    before = obj.value

    def undo() -> None:
        if obj.value is not before:
            obj.namespace[obj.name] = before

    return undo


@save_state.register(type)
def _(obj: type, budget: CopyBudget) -> Undo:
    before = _class_attributes(obj)

    def undo() -> None:
        for name in _class_attributes(obj).keys() - before.keys():
            type.__delattr__(obj, name)
        for name, value in before.items():
            if vars(obj).get(name, _MISSING) is not value:
                type.__setattr__(obj, name, value)

    return undo


def _class_attributes(cls: type) -> dict[str, object]:
    return {name: value for name, value in vars(cls).items() if not (name.startswith("__") and name.endswith("__"))}


@save_state.register(torch.Generator)
def _(obj: torch.Generator, budget: CopyBudget) -> Undo:
    before = obj.get_state()

    def undo() -> None:
        obj.set_state(before)

    return undo


@save_state.register(np.random.BitGenerator)
def _(obj: np.random.BitGenerator, budget: CopyBudget) -> Undo:
    before = copy.deepcopy(obj.state)

    def undo() -> None:
        obj.state = before

    return undo


@save_state.register(np.random.RandomState)
def _(obj: np.random.RandomState, budget: CopyBudget) -> Undo:
    before = obj.get_state(legacy=False)
    return lambda: obj.set_state(before)


@save_state.register(random.Random)
def _(obj: random.Random, budget: CopyBudget) -> Undo:
    if isinstance(obj, random.SystemRandom):  # the system's entropy has no state
        return nothing
    before = obj.getstate()
    return lambda: obj.setstate(before)


save_state.register(torch.Tensor)(keep_tensor)
save_state.register(np.ndarray)(keep_array)
