"""Each kind of object is put back in place, and `reach` finds it wherever user code can."""

import array
import functools
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bif_lightning.model.object_graph import walk_objects
from bif_lightning.trainer.guard.fingerprint import encode
from bif_lightning.trainer.guard.restore import save_state
from bif_lightning.trainer.guard.tensors import CopyBudget

pytestmark = [pytest.mark.trainer, pytest.mark.bitwise]


def restore_all(root: object, change: Callable[[], object], *, item: int = 2**20) -> None:
    """What the guard does with one root."""
    budget = CopyBudget(item=item, total=2**30)
    undos = [save_state(obj, budget) for _, obj in walk_objects({"root": root})]
    change()
    for undo in undos:
        undo()


class Ordered(OrderedDict[str, int]):
    """A subclass that refuses what a plain one takes."""

    def __setitem__(self, key: str, value: int) -> None:
        raise TypeError("read-only")


def refused_dict() -> Ordered:
    made = Ordered()
    OrderedDict.__setitem__(made, "a", 1)
    return made


def not_a_number() -> torch.Tensor:
    return torch.tensor([float("nan"), -0.0, 1.0])


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "list": (lambda: [1, 2], lambda x: x.append(3)),
    "list, same length": (lambda: [1, 2], lambda x: x.reverse()),
    "list in a list": (lambda: [[1], [2]], lambda x: x[0].append(2)),
    "dict": (lambda: {"a": 1, "b": 2}, lambda x: (x.pop("a"), x.update(c=1))),
    "dict, other order": (lambda: {"a": 1, "b": 2}, lambda x: x.update(a=x.pop("a"))),
    "ordered dict": (lambda: OrderedDict(a=1, b=2), lambda x: x.move_to_end("a")),
    "refusing dict": (refused_dict, lambda x: OrderedDict.clear(x)),
    "counter": (lambda: Counter("aab"), lambda x: x.update("b")),
    "default dict": (lambda: defaultdict(list, a=[1]), lambda x: x["b"].append(x["a"].pop())),
    "set": (lambda: {1, 2}, lambda x: x.add(3)),
    "deque": (lambda: deque([1, 2], maxlen=2), lambda x: x.append(3)),
    "bytearray": (lambda: bytearray(b"ab"), lambda x: x.extend(b"c")),
    "array": (lambda: array.array("i", [1, 2]), lambda x: x.append(3)),
    "list in a tuple": (lambda: ([1],), lambda x: x[0].append(2)),
    "tensor": (lambda: torch.zeros(3), lambda x: x.add_(1)),
    "tensor, NaN and signed zero": (not_a_number, lambda x: x.copy_(torch.tensor([1.0, 0.0, 1.0]))),
    "tensor through .data": (lambda: torch.zeros(3), lambda x: x.data.add_(1)),
    "tensor through NumPy": (lambda: torch.zeros(3), lambda x: x.numpy().fill(1)),
    "tensor, other shape": (lambda: torch.zeros(3), lambda x: setattr(x, "data", torch.ones(5))),
    "tensor, view": (lambda: torch.zeros(4, 4).T[1:], lambda x: x.fill_(2)),
    "complex tensor": (lambda: torch.zeros(2, dtype=torch.complex64), lambda x: x.add_(1j)),
    "bool tensor": (lambda: torch.zeros(2, dtype=torch.bool), lambda x: x.logical_not_()),
    "bfloat16 tensor": (lambda: torch.zeros(2, dtype=torch.bfloat16), lambda x: x.add_(1)),
    "sparse tensor": (lambda: torch.eye(3).to_sparse(), lambda x: x.mul_(2)),
    "parameter": (lambda: nn.Parameter(torch.ones(2)), lambda x: x.data.mul_(2)),
    "array of numbers": (lambda: np.zeros(3), lambda x: x.fill(np.nan)),
    "array of objects": (lambda: np.array([[1], None], dtype=object), lambda x: x[0].append(2)),
    "array, scalar": (lambda: np.zeros(()), lambda x: x.fill(1)),
    "torch generator": (lambda: torch.Generator().manual_seed(1), lambda x: torch.rand(3, generator=x)),
    "NumPy generator": (lambda: np.random.default_rng(1), lambda x: x.normal(size=3)),
    "NumPy generator, MT": (lambda: np.random.Generator(np.random.MT19937(1)), lambda x: x.normal(size=3)),
    "NumPy random state": (lambda: np.random.RandomState(1), lambda x: x.normal()),
    "Python generator": (lambda: random.Random(1), lambda x: x.gauss(0, 1)),
    "namespace": (lambda: SimpleNamespace(a=[1]), lambda x: (x.a.append(1), setattr(x, "b", 1))),
    "partial": (lambda: functools.partial(print, [1]), lambda x: x.args[0].append(2)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_restored_in_place(kind: str) -> None:
    make, change = KINDS[kind]
    obj = make()
    before, as_made = snapshot(obj), snapshot(make())
    change(obj)
    assert snapshot(obj) != before, "the change changes nothing: this case tests nothing"
    obj = make()
    restore_all([obj], lambda: change(obj))
    assert snapshot(obj) == as_made


def snapshot(obj: object) -> list[tuple[str, str]]:
    return [(path, encode(node, 1)) for path, node in walk_objects({"": obj})]


def test_a_gradient_comes_back_as_the_same_object_with_the_same_values() -> None:
    weight = nn.Parameter(torch.ones(2))
    gradient = weight.grad = torch.ones(2)

    def change() -> None:
        (weight.sum() * 3).backward()
        weight.requires_grad_(False)
        weight.grad = None

    restore_all([weight], change)
    assert weight.grad is gradient
    assert gradient.tolist() == [1, 1]
    assert weight.requires_grad


def test_tensors_beyond_the_budget_are_not_copied_but_a_write_is_reported() -> None:
    large = torch.zeros(100)
    restore_all([large], lambda: None, item=100)
    with pytest.raises(RuntimeError, match=r"shape \(100,\).*too large.*register it as a buffer"):
        restore_all([large], lambda: large.add_(1), item=100)


def test_the_budget_is_of_all_tensors_together() -> None:
    budget = CopyBudget(item=10, total=15)
    assert [budget.spend(size) for size in (11, 10, 6, 5, 1)] == [False, True, False, True, False]


class Slotted:
    __slots__ = ("__hidden", "shown")

    def __init__(self) -> None:
        self.__hidden, self.shown = 1, [1]

    def step(self) -> int:
        self.__hidden += 1
        self.shown.append(1)
        return self.__hidden


class Counting:
    count = 0
    seen: list[int] = []

    @classmethod
    def step(cls) -> int:
        cls.count += 1
        cls.seen.append(1)
        return cls.count


calls = 0
generator = np.random.default_rng(0)


def global_step() -> float:
    return helper()


def helper() -> float:
    global calls
    calls += 1
    return calls + generator.normal()


def closure() -> Callable[[], int]:
    count, seen = 0, []

    def step() -> int:
        nonlocal count
        count += 1
        seen.append(1)
        return count + len(seen)

    return step


def default_step(seen: list[int] = []) -> int:  # noqa: B006
    seen.append(1)
    return len(seen)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Slotted().step,
        lambda: Counting().step,
        closure,
        lambda: global_step,
        lambda: default_step,
        lambda: functools.partial(closure()),
        lambda: nn.ModuleList([Forward(closure())])[0].forward,
    ],
    ids=["slots", "class", "closure", "globals", "defaults", "partial", "attribute of a module"],
)
def test_state_is_reached_where_code_keeps_it(make: Callable[[], Callable[[], float]]) -> None:
    step = make()
    results: list[float] = []
    restore_all([step], lambda: results.append(step()))
    restore_all([step], lambda: results.append(step()))
    assert results[0] == results[1]
    assert step() != step(), "a step keeps no state: this case tests nothing"


class Forward(nn.Module):
    def __init__(self, function: Callable[[], int]) -> None:
        super().__init__()
        self.function = function

    def forward(self) -> int:
        return self.function()


def test_a_new_class_attribute_is_taken_away() -> None:
    restore_all([Counting()], lambda: setattr(Counting, "added", 1))
    assert "added" not in vars(Counting)


def test_cycles_and_long_containers_end() -> None:
    loop: list[Any] = [1]
    loop.append({"loop": loop})
    assert len(list(walk_objects({"loop": loop}))) == 2
    long = [[index] for index in range(10)]
    assert len(list(walk_objects({"long": long}, elements=9))) == 1
    assert len(list(walk_objects({"long": long}, elements=10))) == 11


def test_installed_and_opaque_objects_are_not_entered() -> None:
    found = [obj for _, obj in walk_objects({"optimizer": torch.optim.SGD([torch.zeros(1)]), "rename": torch.randn})]
    assert found == []
