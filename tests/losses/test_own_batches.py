"""Functions that write into their batch get copies, and others the batch itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bif_lightning as bl
import small_models as models
from bif_lightning.losses.own_batches import OwnBatches

pytestmark = pytest.mark.exact


def batch() -> dict[str, Any]:
    return {"x": torch.ones(3), "labels": [torch.zeros(3), "a"]}


@pytest.mark.parametrize(
    ("write", "copies"),
    [
        (lambda m, b: b.pop("labels"), True),
        (lambda m, b: b["x"].mul_(2), True),
        (lambda m, b: b["labels"].append("b"), True),
        (lambda m, b: b["x"] * 2, False),
    ],
)
def test_what_is_written_is_a_copy(write: Callable[..., Any], copies: bool) -> None:
    given, module = batch(), nn.Identity()
    function = OwnBatches(lambda m, b: (write(m, b), b)[1])
    for first in (True, False):
        seen = function(module, given)
        assert (seen is given) == (not copies and not first)
        assert function.writes == copies
        assert sorted(given) == ["labels", "x"]
        assert torch.equal(given["x"], torch.ones(3))
        assert len(given["labels"]) == 2


def test_a_function_that_fails_after_it_wrote_gets_copies() -> None:
    def fails(module: nn.Module, batch: Any) -> None:
        del batch["x"]
        raise RuntimeError("on purpose")

    function, given = OwnBatches(fails), batch()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="on purpose"):
            function(nn.Identity(), given)
    assert "x" in given


def test_observables_that_write_change_no_loss() -> None:
    def scaled(factor: float) -> bl.PerExample:
        return bl.PerExample("first", lambda module, batch: module(batch[0] * factor)[:, 0])

    def scaling(module: nn.Module, batch: Any) -> Tensor:
        return module(batch[0].mul_(1.5))[:, 0]

    chains = bl.Chains(num_chains=2, num_draws=4)
    sampler = bl.SGLD(step_size=1e-3, inverse_temperature=20.0, localization=10.0)
    found, right = (
        bl.estimate(
            models.seeded(models.mlp), models.cross_entropy, models.data(), models.data(1), sampler=sampler,
            chains=chains, observables=[each],
        )
        for each in (bl.PerExample("first", scaling), scaled(1.5))
    )  # fmt: skip
    assert (found.influence == right.influence).all()
    assert (found.observables["first"].influence == right.observables["first"].influence).all()
