"""Training steps on two real processes of a Trainer: collectives are named, losses of a module in shards derived.

Run as a script, this file is one of the two processes: it trains a module for a step, and writes what was found.
"""

import copy
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from bif_lightning.trainer.collectives import collectives_in, refuse_collectives
from bif_lightning.trainer.losses import check_user_loss, derive_loss


class Model(L.LightningModule):
    def __init__(self, extra: Callable[["Model", Tensor], Tensor]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 3))
        self.synced, self.local = MeanMetric(dist_sync_on_step=True), MeanMetric()
        self.extra = extra

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return self.extra(self, F.cross_entropy(self.net(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def barrier(module: Model, loss: Tensor) -> Tensor:
    module.trainer.strategy.barrier()
    return loss


def reduced(module: Model, loss: Tensor) -> Tensor:
    dist.all_reduce(loss.detach().clone())
    return loss


def local_metric(module: Model, loss: Tensor) -> Tensor:
    module.local(loss.detach())
    return loss


def objects(module: Model, loss: Tensor) -> Tensor:
    dist.all_gather_object([None, None], float(loss.detach()))
    return loss


def backward(module: Model, loss: Tensor) -> Tensor:
    gathered = module.all_gather(loss, sync_grads=True).mean()
    gathered.backward(retain_graph=True)
    return loss


STEPS: dict[str, tuple[Callable[[Model, Tensor], Tensor], set[str]]] = {
    "plain": (lambda m, loss: loss, set()),
    "local metric": (local_metric, set()),
    "all_gather": (lambda m, loss: m.all_gather(loss).mean() * 0 + loss, {"allgather"}),
    "dist_sync_on_step": (lambda m, loss: m.synced(loss.detach()) * 0 + loss, {"allgather"}),
    "barrier": (barrier, {"barrier"}),
    "all_reduce": (reduced, {"allreduce"}),
    "functional": (lambda m, loss: functional.all_reduce(loss.detach(), "sum", [0, 1]) * 0 + loss, {"all_reduce"}),
    "objects": (objects, {"allgather"}),
    "backward": (backward, {"allgather", "scatter"}),
}


class Looking(L.Callback):
    """Looks before the first batch, as a calibration does; then training goes on with a plain step."""

    def __init__(self, data: tuple[Tensor, Tensor]) -> None:
        self.data = data
        self.names: dict[str, list[str]] = {}
        self.sharded: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        for name in [*STEPS][::-1]:
            pl_module.extra = STEPS[name][0]
            self.names[name] = collectives_in(lambda: pl_module.training_step(batch, batch_idx))
        for name in SHARDED:
            self.sharded[name] = sharded(name, *self.data)


def own_huber(o: Tensor, y: Tensor) -> Tensor:
    e = (o - F.one_hot(y, 3)).abs()
    return torch.where(e < 1, e.square() / 2, e - 0.5).mean()


SHARDED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "cross entropy": (lambda o, y: F.cross_entropy(o, y), "captured from training_step"),
    "zero head": (lambda o, y: F.cross_entropy(o, y), "captured from training_step"),
    "huber by hand": (own_huber, "training_step on batches of one"),
    "focal": (
        lambda o, y: ((1 - o.softmax(1)[range(len(y)), y]) ** 2 * F.cross_entropy(o, y, reduction="none")).mean(),
        "training_step on batches of one",
    ),
}


def sharded(name: str, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Derive losses of a module in shards; compare with the step on each example and a module that is whole."""
    objective = SHARDED[name][0]
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    if name == "zero head":
        nn.init.zeros_(whole[2].weight)
        nn.init.zeros_(whole[2].bias)
    module = copy.deepcopy(whole)
    fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    before = [parameter.to_local().clone() for parameter in module.parameters()]

    def step(module: nn.Module, batch: Any) -> Tensor:
        return objective(module(batch[0]), batch[1])

    def batch_of(rows: Sequence[int]) -> Any:
        return x[list(rows)], y[list(rows)]

    loss = derive_loss(step, module, batch_of, [0, 2, 5, 6])
    same = all(torch.equal(a, b.to_local()) for a, b in zip(before, module.parameters(), strict=True))
    batches = [batch_of([row]) for row in range(8)] if loss.eval_batch_size else [batch_of(range(8))]
    with torch.no_grad():
        found = torch.cat([loss(module, batch) for batch in batches])
        alone = torch.stack([step(whole, batch_of([row])) for row in range(8)])
    user = lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")  # noqa: E731
    check_user_loss(user, module, batch_of, [0, 2, 5])
    return {"rung": loss.rung, "same": same, "error": float((found - alone).abs().max())}


def train() -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    data = torch.randn(16, 4, generator=g), torch.randint(0, 3, (16,), generator=g)
    looking = Looking(data)
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=1, callbacks=[looking], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Model(STEPS["plain"][0]), DataLoader(TensorDataset(*data), batch_size=4))
    return {"names": looking.names, "sharded": looking.sharded}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found in each training step."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0",
              "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1"}  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    logs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(logs)
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
        assert result["rung"] == SHARDED[name][1]
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
    with pytest.raises(MisconfigurationException, match=r"\(allgather, barrier\)(.|\n)*def loss_fn\(module, batch\)"):
        refuse_collectives(["allgather", "barrier"])


if __name__ == "__main__":
    Path(sys.argv[1], f"{os.environ['RANK']}.json").write_text(json.dumps(train()))
