"""Whether copies of a module may run at once: state that a forward pass keeps may be shared between them.

Twins of a module have modules and tensors of their own, and share everything else: dictionaries and lists, objects,
hooks that are bound to the original, globals. Where a hook keeps an activation there, a chain reads that of another.

So two twins are run in turn. Where the run of one changes what the other can reach, both are run by turns: after each
write there, the other goes on, as threads may have it. The result must be that of a twin alone, bit by bit.
"""

import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from bif_lightning.model.devices import raise_unrelated
from bif_lightning.model.functional import FunctionalBackend
from bif_lightning.model.object_graph import GlobalName, Node, walk_objects
from bif_lightning.model.weights import BoundModule, Weights

_MOST_TURNS = 128
_PATIENCE = 20.0  # seconds
_LIBRARIES = ("torch.", "bif_lightning.", "importlib.")

Run = Callable[[BoundModule, Weights], Tensor]
"""Runs a forward and a backward pass, and returns the gradient."""


def shares_state(backend: FunctionalBackend, one: Weights, other: Weights, run: Run, disturb: Run) -> bool:
    """Whether twins of a module disturb each other through state that they share.

    Args:
        backend: of twins.
        one, other: weights of two twins.
        run: of the first twin, whose result is compared.
        disturb: of the second, on other examples.
    """
    first, second = backend.bind(one), backend.bind(other)
    run(first, one)
    shared = _shared(_tree(first), _tree(second))
    before = _contents(shared)
    grown = _grown(shared, lambda: disturb(second, other))
    changed = {path: obj for path, obj in shared.items() if path in grown or _content(obj) != before[path]}
    if not changed:
        return False
    expected = run(first, one)
    disturb(second, other)  # so that what the first writes is a change, also where it writes the same object again
    try:
        found = _Turns(changed).result(lambda: run(first, one), lambda: disturb(second, other))
    except Exception as error:  # shapes that do not fit, a graph that is gone
        raise_unrelated(error)
        return True
    return not torch.equal(found, expected)


def _tree(bound: BoundModule) -> nn.Module:
    return bound.call(lambda module: module)


def _shared(one: nn.Module, other: nn.Module) -> dict[str, object]:
    """Objects that hold state and are reachable from both trees, by their path from the first."""
    theirs = {_key(obj) for _, obj in _nodes(other)}
    return {path: obj for path, obj in _nodes(one) if _key(obj) in theirs}


def _nodes(module: nn.Module) -> list[Node]:
    def leave(obj: object) -> bool:
        return type(obj).__name__ in ("Trainer", "Fabric") or isinstance(obj, torch.optim.Optimizer)

    found = walk_objects({"module": module}, leave=leave)
    return [node for node in found if isinstance(node[1], dict | list | set | GlobalName | torch.Tensor)]


def _grown(shared: Mapping[str, object], run: Callable[[], object]) -> set[str]:
    """Containers whose length is another at some moment of a run, as of lists that are emptied at its end."""
    sized = [(path, obj) for path, obj in shared.items() if isinstance(obj, dict | list | set)]
    before, found = [len(obj) for _, obj in sized], set[str]()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if f"{frame.f_globals.get('__name__', '')}.".startswith(_LIBRARIES):
            return None
        if (now := [len(obj) for _, obj in sized]) != before:
            found.update(path for (path, _), a, b in zip(sized, now, before, strict=True) if a != b)
        return trace

    earlier = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(earlier)
    return found


def _key(obj: object) -> Any:
    return (id(obj.namespace), obj.name) if isinstance(obj, GlobalName) else id(obj)


def _contents(shared: Mapping[str, object]) -> dict[str, Any]:
    return {path: _content(obj) for path, obj in shared.items()}


def _content(obj: object) -> Any:
    """What a change of an object itself changes."""
    if isinstance(obj, torch.Tensor):
        return obj._version
    if isinstance(obj, GlobalName):
        return id(obj.value)
    if isinstance(obj, dict):
        return [(key, id(value)) for key, value in dict.items(obj)]
    return [id(value) for value in obj] if isinstance(obj, list | set) else None


class _Turns:
    """Two runs on two threads, one at a time: after each write of one, the other goes on.

    Args:
        written: the objects whose changes are writes.
    """

    def __init__(self, written: Mapping[str, object]) -> None:
        self._written, self._last = written, _contents(written)
        self._turn, self._left = 0, _MOST_TURNS
        self._ended, self._changed = set[int](), threading.Condition()

    def result(self, run: Callable[[], Tensor], disturb: Callable[[], object]) -> Tensor:
        """The result of the first of two runs by turns.

        Raises:
            Exception: of either.
        """
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(self._traced, 1, disturb)
            found = self._traced(0, run)
            other.result()
        return found

    def _traced(self, me: int, run: Callable[[], Any]) -> Any:
        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            if f"{frame.f_globals.get('__name__', '')}.".startswith(_LIBRARIES):
                return None
            if self._left and _contents(self._written) != self._last:
                self._left -= 1
                self._hand_over(me)
            return trace

        self._wait(me)
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            return run()
        finally:
            sys.settrace(before)
            with self._changed:
                self._ended.add(me)
                self._turn = 1 - me
                self._changed.notify_all()

    def _hand_over(self, me: int) -> None:
        self._last = _contents(self._written)
        with self._changed:
            self._turn = 1 - me
            self._changed.notify_all()
        self._wait(me)
        self._last = _contents(self._written)

    def _wait(self, me: int) -> None:
        with self._changed:
            # The other may wait for a lock that this one holds.
            self._changed.wait_for(lambda: self._turn == me or 1 - me in self._ended, timeout=_PATIENCE)
