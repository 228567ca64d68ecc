"""What of a batch belongs to an example: rows, entries of lists, and values that all share."""

from collections import UserDict, namedtuple
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bif_lightning.exceptions import LossChangedError
from bif_lightning.losses.derived.derive import derive_loss
from bif_lightning.losses.derived.example_form import ExampleForm
from bif_lightning.losses.derived.intercept import NotSeparableError

pytestmark = pytest.mark.exact

Pair = namedtuple("Pair", "x y")
G = torch.Generator().manual_seed(0)
X, Y = torch.randn(12, 4, generator=G), torch.randn(12, generator=G)
NAMES = [f"image {row}.png" for row in range(12)]
ROWS = [0, 3, 5, 8]
VMAP, SINGLES = "training_step vmapped over examples", "training_step on batches of one"

BATCHES: dict[str, Callable[[list[int]], Any]] = {
    "None": lambda rows: (X[rows], (Y[rows], None)),
    "numbers and texts": lambda rows: {"x": X[rows], "y": Y[rows], "scale": 2.0, "task": "a", "size": [3, 3]},
    "names": lambda rows: [X[rows], Y[rows], [NAMES[row] for row in rows]],
    "tuple of names": lambda rows: (X[rows], Y[rows], tuple(NAMES[row] for row in rows)),
    "named tuple": lambda rows: Pair(X[rows], Y[rows]),
}


@pytest.mark.parametrize("name", BATCHES)
def test_an_example_is_the_batch_of_one(name: str) -> None:
    make = BATCHES[name]
    form = ExampleForm.of(make(ROWS), make([3]), len(ROWS))
    for batch in (make(ROWS), make([1, 2]), make([7])):
        rows = form.rows(batch)
        assert all(isinstance(part, Tensor) for part in rows)
        found, right = form.example([part[0] for part in rows]), make([int((rows[0][0] == X).all(1).nonzero())])
        assert type(found) is type(right)
        if "names" not in name:
            pairs = zip(tree_leaves(found), tree_leaves(right), strict=True)
            assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)
        else:
            assert [len(part) for part in found] == [1, 1, 1]
            assert type(found[2]) is type(right[2])


OTHERS: dict[str, tuple[Callable[[list[int]], Any], str]] = {
    "object": (lambda rows: UserDict(x=X[rows]), "holds UserDict"),
    "number of examples": (lambda rows: (X[rows], len(rows)), "holds 4, and a batch of one 1"),
    "lengths": (lambda rows: (X[rows], X[: 1 + len(rows)]), r"lengths \[4, 5\]"),
    "no dimension": (lambda rows: (X[rows], torch.tensor(1.0)), "without rows"),
    "nothing": (lambda rows: (None, 3), "no tensor"),
    "containers": (lambda rows: (X[rows], [{"id": row} for row in rows]), "depend on the number of examples"),
    "flattened": (lambda rows: X[rows].flatten(), "batch of 4 holds tensors of length 16"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_cannot_be_taken_apart(name: str) -> None:
    make, why = OTHERS[name]
    with pytest.raises(NotSeparableError, match=why):
        ExampleForm.of(make(ROWS), make([0]), len(ROWS))


LATER: dict[str, tuple[str, Any, str]] = {
    "another value": ("numbers and texts", {"x": X, "y": Y, "scale": 3.0, "task": "a", "size": [3, 3]}, "holds 3.0 in"),
    "a value for a tensor": ("None", (X, (None, None)), "in other containers"),
    "a tensor for a value": (
        "numbers and texts",
        BATCHES["numbers and texts"]([0]) | {"scale": X[:1]},
        "in place of 2.0",
    ),
    "fewer names": ("names", [X[:3], Y[:3], NAMES[:2]], "of 3 holds .* as many entries"),
    "other containers": ("None", (X, Y), "holds Tensor, Tensor, in other containers"),
}


@pytest.mark.parametrize("name", LATER)
def test_a_later_batch_of_another_form(name: str) -> None:
    make, batch, why = LATER[name]
    form = ExampleForm.of(BATCHES[make](ROWS), BATCHES[make]([0]), len(ROWS))
    with pytest.raises(NotSeparableError, match=why):
        form.rows(batch)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 1)

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.body(x)[:, 0] - y).abs().sqrt()


def named(rows: Sequence[int]) -> Any:
    return {"x": X[list(rows)], "y": Y[list(rows)], "weight": None, "name": [NAMES[row] for row in rows], "scale": 2.0}


def leaves_names(module: Net, batch: Any) -> Tensor:
    assert batch["weight"] is None
    assert len(batch["name"]) == len(batch["x"])
    return batch["scale"] * module.losses(batch["x"], batch["y"]).mean()


READS: dict[str, Callable[[str], Any]] = {
    "length": len,
    "text": str,
    "comparison": lambda name: name == NAMES[0],
    "look-up": lambda name: {NAMES[0]: 1}.get(name),
    "method": lambda name: name.endswith("png"),
    "part": lambda name: name[-5],
    "formatted": lambda name: f"{name}",
}


def test_names_that_are_not_read_do_not_hinder_vmap() -> None:
    module = Net().eval()
    loss = derive_loss(leaves_names, module, named, ROWS)
    assert loss.method == VMAP
    rows = range(12)
    torch.testing.assert_close(loss(module, named(rows)), 2 * module.losses(X, Y).detach())
    with pytest.raises(LossChangedError, match=r"holds 3\.0 in place of 2\.0.*Pass loss_fn"):
        loss(module, named(rows) | {"scale": 3.0})


@pytest.mark.parametrize("name", READS)
def test_a_step_that_reads_names_runs_on_batches_of_one(name: str) -> None:
    def reads(module: Net, batch: Any) -> Tensor:
        for entry in batch["name"]:
            READS[name](entry)
        return leaves_names(module, batch)

    loss = derive_loss(reads, Net().eval(), named, ROWS)
    assert loss.method == SINGLES
    if name not in ("length", "part"):
        assert "reads an entry of a list" in loss.cost


def test_a_weight_by_name_is_right() -> None:
    """Vmapped, every example would have the weight of one."""
    weights = {name: 1.0 if row < 9 else 5.0 for row, name in enumerate(NAMES)}

    def weighted(module: Net, batch: Any) -> Tensor:
        factors = torch.tensor([weights[name] for name in batch["name"]])
        return (factors * module.losses(batch["x"], batch["y"])).mean()

    module = Net().eval()
    loss = derive_loss(weighted, module, named, ROWS)
    found = torch.cat([loss(module, named([row])) for row in range(12)])
    torch.testing.assert_close(found, torch.tensor(list(weights.values())) * module.losses(X, Y).detach())
