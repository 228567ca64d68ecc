"""State that a forward pass keeps: chains that would share it run one after the other, others at once."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import small_models as models
from bif_lightning.config import SGLD, Chains
from bif_lightning.estimation.estimate import estimate
from bif_lightning.results.estimate import Estimate
from bif_lightning.sampling.preflight import FROM_CALL_TO_CALL, SHARED

pytestmark = pytest.mark.exact

SAMPLER = SGLD(step_size=1e-3, inverse_temperature=20.0, localization=10.0)
GLOBAL: dict[str, Tensor] = {}


class Plain(nn.Module):
    """Keeps an activation in a hook, and computes without it."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.bend, self.head = nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)
        self.kept: Any = {}
        self.bend.register_forward_hook(self.keep)

    def keep(self, part: nn.Module, inputs: Any, output: Tensor) -> None:
        self.kept["hidden"] = output

    def read(self, hidden: Tensor) -> Tensor:
        return hidden

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.read(self.bend(self.lift(x))))


class InDict(Plain):
    def read(self, hidden: Tensor) -> Tensor:
        return self.kept["hidden"]


class InList(Plain):
    def keep(self, part: nn.Module, inputs: Any, output: Tensor) -> None:
        self.kept.setdefault("all", []).append(output)

    def read(self, hidden: Tensor) -> Tensor:
        return self.kept["all"].pop()


class InGlobal(Plain):
    def keep(self, part: nn.Module, inputs: Any, output: Tensor) -> None:
        GLOBAL["hidden"] = output

    def read(self, hidden: Tensor) -> Tensor:
        return GLOBAL["hidden"]


class InObject(Plain):
    class Store:
        last: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.store = self.Store()

    def keep(self, part: nn.Module, inputs: Any, output: Tensor) -> None:
        self.store.last = output

    def read(self, hidden: Tensor) -> Tensor:
        return self.store.last


class Logging(Plain):
    """Appends what nobody reads."""

    def read(self, hidden: Tensor) -> Tensor:
        self.kept.setdefault("log", []).append(hidden.detach().mean())
        return hidden


class Counting(Plain):
    """Another loss at every call."""

    def read(self, hidden: Tensor) -> Tensor:
        self.kept["calls"] = self.kept.get("calls", 0) + 1
        return hidden * (1 + 0.01 * self.kept["calls"])


def run(kind: Any) -> Estimate:
    torch.set_num_threads(2)
    chains = Chains(num_chains=4, num_draws=30, batch_size=5)
    loss = lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")  # noqa: E731
    return estimate(models.seeded(kind), loss, models.data(), models.data(1, 4), sampler=SAMPLER, chains=chains)


@pytest.mark.parametrize("kind", [InDict, InList, InGlobal, InObject])
def test_chains_that_would_share_it_run_one_after_the_other(kind: Any) -> None:
    right, found = run(Plain), run(kind)
    assert np.array_equal(found.influence, right.influence)
    assert any(SHARED in note for note in found.notes)
    assert found.cost.workers == 1


@pytest.mark.parametrize("kind", [Plain, Logging])
def test_what_is_kept_and_not_read_does_not_matter(kind: Any) -> None:
    found = run(kind)
    assert found.notes == ()
    assert found.cost.workers == 2


def test_a_loss_that_changes_from_call_to_call_is_noted() -> None:
    assert any(FROM_CALL_TO_CALL in note for note in run(Counting).notes)
