"""One of two real processes of a Trainer, which looks at training steps with collectives and at modules in shards."""

import copy
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from bif_lightning.losses.collectives import collectives_in
from bif_lightning.losses.derived.derive import check_user_loss, derive_loss


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
    return {"method": loss.method, "same": same, "error": float((found - alone).abs().max())}


def look(rank: int, port: int, folder: Path) -> None:
    """Train a module for a step as this rank, and leave what was found."""
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0",
                   "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test", "RANK": str(rank),
                   "LOCAL_RANK": str(rank)}  # fmt: skip
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    data = torch.randn(16, 4, generator=g), torch.randint(0, 3, (16,), generator=g)
    looking = Looking(data)
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=1, callbacks=[looking], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Model(STEPS["plain"][0]), DataLoader(TensorDataset(*data), batch_size=4))
    (folder / f"{rank}.json").write_text(json.dumps({"names": looking.names, "sharded": looking.sharded}))
