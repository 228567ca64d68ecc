"""Checkpoints in shards: whatever stands before the names of weights, and of FSDP's flat shards."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

import bif_lightning as bl
import flat_shards_run
from bif_lightning.trainer.checkpoints import inspect_checkpoint, load_weights
from flat_shards_run import Prefixed
from forked import together
from ports import free_port
from strategy_run import CHAINS, SAMPLER, Points

pytestmark = pytest.mark.bitwise


@pytest.mark.parametrize("prefix", ["state_dict", "model", None])
def test_names_of_weights_may_begin_like_what_stands_before_them(tmp_path: Path, prefix: str | None) -> None:
    torch.manual_seed(1)
    wrote, reads = Prefixed(), Prefixed()
    assert "model.model.weight" in wrote.state_dict()
    path = tmp_path / "step=4.ckpt"
    weights: dict[str, Any] = wrote.state_dict()
    more = {} if prefix is None else {"optimizer_0": {"state": {"model.model.weight": {"step": torch.tensor(4.0)}}}}
    save_shards((weights if prefix is None else {prefix: weights}) | more, checkpoint_id=path, no_dist=True)
    assert inspect_checkpoint(path).step == 4
    load_weights(reads, path)
    for name, value in wrote.state_dict().items():
        assert torch.equal(value, reads.state_dict()[name]), name


def test_shards_of_another_module_are_named(tmp_path: Path) -> None:
    path = tmp_path / "step=4.ckpt"
    save_shards({"model": Prefixed().state_dict()}, checkpoint_id=path, no_dist=True)
    with pytest.raises(ValueError, match=r"it lacks bias, weight; it has model\.head\.bias"):
        load_weights(torch.nn.Linear(2, 2), path)


@pytest.mark.slow
def test_flat_shards_of_two_ranks_are_read_by_one_process(tmp_path: Path) -> None:
    """What Lightning's FSDPStrategy saves, beside the same weights put together by torch itself."""
    together(flat_shards_run.run, 2, 2, tmp_path, free_port())
    assert len(list((tmp_path / "step=6.ckpt").glob("*.distcp"))) == 2
    found = list[Any]()
    for name in ("step=6.ckpt", "whole-step=6.pt"):
        done = bl.attribute(
            Prefixed(), tmp_path / name, Points(12, seed=1), Points(5, seed=2), data=Points(), sampler=SAMPLER,
            chains=CHAINS, dirpath=tmp_path / name.partition("-")[0] / "bif", log=False,
        )  # fmt: skip
        assert done.written == (6,), done
        found.append(bl.open_run(done.directory).load())
    np.testing.assert_array_equal(found[0].influence, found[1].influence)
