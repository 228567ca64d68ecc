"""An estimate made in any other way than the documented one says so, in its notes and in the dump."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import bif_lightning as bl
import small_models as models
from bif_lightning.curvature.hessian import ONCE_ONLY
from bif_lightning.curvature.second_derivatives import DIFFERENCES
from bif_lightning.sampling.preflight import FROM_CALL_TO_CALL, NO_TWIN, SHARED

pytestmark = pytest.mark.exact

SAMPLER = bl.SGLD(step_size=1e-3, inverse_temperature=20.0, localization=10.0)


class Kept(nn.Module):
    """Computes with an activation that it keeps in a dictionary, or counts its calls there."""

    def __init__(self, counts: bool = False) -> None:
        super().__init__()
        self.body, self.kept, self.counts = models.mlp(), dict[str, Any](calls=0), counts

    def forward(self, x: Tensor) -> Tensor:
        self.kept["calls"] += self.counts
        self.store(x)
        return self.body(self.kept["x"]) * (1 + 0.01 * self.kept["calls"])

    def store(self, x: Tensor) -> None:
        self.kept["x"] = x


class Long(nn.Module):
    """Shortens the rows of an embedding that is not sampled, in every look-up."""

    def __init__(self) -> None:
        super().__init__()
        self.letter, self.body = nn.Embedding(9, 6, max_norm=0.5), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.letter((x[:, 0] > 0).long()) + x)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].cos()


class Bent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Once.apply(self.lift(x)))


class Edge(nn.Module):
    """Has no value away from where it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 3)
        self.register_buffer("made", self.body.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        moved = (self.body.weight.detach() - self.made).norm()
        return self.body(x) + torch.where(moved > 0.3, torch.nan, 0.0)


FAR = bl.ControlledSGLD(num_directions=4, inverse_temperature=1.0, localization=0.1)
WAYS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "chains, no second tree": (models.BoundMethod, {}, NO_TWIN),
    "chains, shared state": (Kept, {}, SHARED),
    "loss that changes from call to call": (lambda: Kept(counts=True), {}, FROM_CALL_TO_CALL),
    "random numbers": (models.RandomInEvaluation, {}, "draws random numbers"),
    "curvature, wrong second derivatives": (models.weight_norm, {"sampler": bl.Subspace()}, DIFFERENCES),
    "curvature, no second derivatives": (Bent, {"sampler": bl.Subspace()}, ONCE_ONLY),
    "gradients, sketched": (
        models.mlp,
        {"sampler": bl.ControlledSGLD(num_directions=4, gradient_bytes=3000)},
        "sketches",
    ),
    "controlled chains, none left": (Edge, {"sampler": FAR}, "no chain is left"),
    "copies of written weights": (Long, {"params": "body.*"}, "writes into letter.weight"),
}


def estimated(make: Callable[[], nn.Module], options: dict[str, Any]) -> bl.Estimate:
    torch.set_num_threads(2)
    loss = lambda module, batch: F.cross_entropy(module(batch[0]), batch[1], reduction="none")  # noqa: E731
    settings: dict[str, Any] = {"sampler": SAMPLER, "chains": bl.Chains(num_chains=2, num_draws=4)}
    return bl.estimate(models.seeded(make), loss, models.data(), models.data(1, 4), **(settings | options))


@pytest.mark.parametrize("way", WAYS)
def test_another_way_is_noted(tmp_path: Path, way: str) -> None:
    make, options, note = WAYS[way]
    found = estimated(make, options)
    assert any(note in each for each in found.notes), found.notes
    samples = [bl.Samples(ids=tuple(map(str, range(n))), index=np.arange(n)) for n in found.influence.shape]
    bl.write_samples(tmp_path, *samples)
    bl.write_dump(tmp_path, found, step=0, epoch=0, train=samples[0], query=samples[1])
    assert bl.open_run(tmp_path).notes.item() == "\n".join(found.notes)


def test_the_documented_way_is_not() -> None:
    assert estimated(models.mlp, {}).notes == ()
    assert estimated(models.mlp, {"sampler": bl.Subspace()}).notes == ()


def test_every_remark_of_the_package_is_in_a_table_of_ways() -> None:
    """Those of the training data need a Trainer, and have theirs in tests/trainer/test_drawn_rows.py; those of a step
    in tests/callback/test_other_projects.py, and those of weights in tests/curvature/test_example_weights.py."""
    package = Path(bl.__file__).parent
    sources = (path.read_text() for path in package.rglob("*.py"))
    subjects = {name for text in sources for name in re.findall(r'remarks(?:\[|\.setdefault\()"(\w+)"', text)}
    assert subjects == {"twins", "curvature", "gradients", "training", "loss", "weights"}
