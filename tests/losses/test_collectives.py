"""Training steps on two real processes of a Trainer: collectives are named, losses of a module in shards derived."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from bif_lightning.exceptions import LossRefusedError
from bif_lightning.losses.collectives import collectives_in, refuse_collectives
from collectives_run import SHARDED, STEPS, Model, local_metric, look
from forked import together
from ports import free_port


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found in each training step."""
    folder = tmp_path_factory.mktemp("ranks")
    together(look, 2, free_port(), folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", STEPS)
def test_collectives_of_a_training_step_are_named(found: list[dict[str, Any]], name: str) -> None:
    one, other = (rank["names"][name] for rank in found)
    assert one == other
    assert len(set(one)) == len(one)
    assert STEPS[name][1] <= set(one)
    assert bool(STEPS[name][1]) == bool(one)


def test_the_backward_pass_is_seen(found: list[dict[str, Any]]) -> None:
    assert "scatter" not in found[0]["names"]["all_gather"]
    assert "scatter" in found[0]["names"]["backward"]


@pytest.mark.parametrize("name", SHARDED)
def test_losses_of_a_module_in_shards_are_derived(found: list[dict[str, Any]], name: str) -> None:
    for rank in found:
        result = rank["sharded"][name]
        assert result["method"] == SHARDED[name][1]
        assert result["same"]
        assert result["error"] < 1e-5


def test_without_a_process_group_nothing_is_found_and_the_call_is_made() -> None:
    torch.manual_seed(0)
    module, results = Model(local_metric), list[Tensor]()
    batch = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    assert collectives_in(lambda: results.append(module.training_step(batch, 0))) == []
    results[0].backward()
    assert module.net[0].weight.grad is not None


def test_a_refusal_names_them_and_says_what_to_pass() -> None:
    refuse_collectives([])
    with pytest.raises(LossRefusedError, match=r"\(allgather, barrier\)(.|\n)*def loss_fn\(module, batch\)"):
        refuse_collectives(["allgather", "barrier"])
