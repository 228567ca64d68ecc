"""One rank of a real Trainer with several processes; started by `launch`, results in a folder."""

import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, Dataset

import simulated_device
from bif_lightning import SGLD, BIFCallback, Chains, attribute
from bif_lightning.model.sharded import reshard
from bif_lightning.trainer.guard.fingerprint import fingerprint
from forked import start
from ports import free_port
from simulated_device.process import begin
from simulated_device.training import SimulatedAccelerator, SimulatedDDP, SimulatedParallel, on_one_device

SAMPLER = SGLD(step_size=1e-4, inverse_temperature=100.0, localization=10.0)
CHAINS = Chains(num_chains=3, num_draws=4, batch_size=13)
"""A batch that no number of ranks divides; of fewer examples, the curvature would take many more passes."""


class Points(Dataset):
    """Three classes of points."""

    def __init__(self, size: int = 24, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.y = torch.arange(size) % 3
        self.x = torch.randn(size, 4, generator=generator) + self.y[:, None]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


class Net(L.LightningModule):
    """BatchNorm, a learning rate schedule, logging."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        middle = nn.BatchNorm1d(8) if norm else nn.LayerNorm(8)
        self.net = nn.Sequential(nn.Linear(4, 8), middle, nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
        self.seen: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.seen.append(float(loss.detach()))
        self.log("loss", loss, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        # One by one: on accelerators torch takes many at a time, which it cannot where only some are in shards.
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01, foreach=False)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]


class Sharded(Net):
    """FSDP2: every linear layer, and the root."""

    def __init__(self) -> None:
        super().__init__(norm=False)

    def configure_model(self) -> None:
        mesh: DeviceMesh = self.device_mesh["data_parallel"]
        self.net.to(self.trainer.strategy.root_device)  # torch moves shards to devices of its own alone
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(self.net, mesh=mesh)


class Weighted(Sharded):
    """Of three classes that count unequally."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1], weight=torch.tensor([1.0, 2.0, 5.0]))


class TensorParallel(Net):
    """The last two linear layers over columns and rows."""

    def __init__(self) -> None:
        super().__init__(norm=False)

    def configure_model(self) -> None:
        mesh: DeviceMesh = self.device_mesh["tensor_parallel"]
        parallelize_module(self.net, mesh, {"3": ColwiseParallel(), "5": RowwiseParallel()})


class Both(Net):
    """Tensor parallel layers, sharded over the other dimension of the mesh."""

    def __init__(self) -> None:
        super().__init__(norm=False)

    def configure_model(self) -> None:
        parallelize_module(
            self.net, self.device_mesh["tensor_parallel"], {"3": ColwiseParallel(), "5": RowwiseParallel()}
        )
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class Drifting(Net):
    """Its weights depend on the step alone, not on what a rank saw."""

    def __init__(self) -> None:
        super().__init__(norm=False)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.1 * torch.sin(parameter + self.global_step))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Talking(Net):
    """Gathers its losses from all ranks."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.all_gather(super().training_step(batch, batch_idx), sync_grads=True).mean()


class Save(L.Callback):
    """Leaves the weights and running statistics of each rank at one step."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            torch.save(pl_module.state_dict(), self.folder / f"rank{trainer.global_rank}.pt")


def strategy_of(kind: str, world_size: int, seconds: float = 40, device: str = "cpu") -> Any:
    """A strategy whose collectives wait so many seconds."""
    if kind == "single":
        return on_one_device() if device == "sim" else "auto"
    sharded = {"fsdp": (world_size, 1), "tp": (1, world_size), "both": (world_size // 2, 2)}
    backend = {"cpu": "gloo", "cuda": "nccl", "sim": simulated_device.GROUP}[device]
    wait = timedelta(seconds=seconds)
    if kind in sharded:
        data, tensor = sharded[kind]
        return (SimulatedParallel if device == "sim" else ModelParallelStrategy)(
            data_parallel_size=data, tensor_parallel_size=tensor, process_group_backend=backend, timeout=wait
        )
    if kind == "spawn":
        return "ddp_spawn"
    options: dict[str, Any] = {
        "ddp": {"timeout": wait},
        "unused": {"find_unused_parameters": True},
        "static": {"static_graph": True},
    }
    return (SimulatedDDP if device == "sim" else DDPStrategy)(process_group_backend=backend, **options[kind])


def placed(case: dict[str, Any], world_size: int) -> dict[str, Any]:
    """The Trainer's arguments on devices: `case["device"]` is "cpu" (or missing), "cuda" or "sim"."""
    kind, device = case.get("strategy", "ddp"), case.get("device", "cpu")
    found = {"strategy": strategy_of(kind, world_size, case.get("waits", 40), device)}
    if device == "sim" and kind == "single":
        return found  # which has its accelerator
    accelerator = SimulatedAccelerator() if device == "sim" else device
    return found | {"accelerator": accelerator, "devices": case.get("devices", world_size)}


MODULES: dict[str, Callable[[], Net]] = {"fsdp": Sharded, "tp": TensorParallel, "both": Both}


def fit(folder: Path, case: dict[str, Any], rank: int, world_size: int) -> dict[str, Any]:
    """Train as one rank; what is left of the training on it."""
    L.seed_everything(3, verbose=False)
    torch.set_num_threads(1)
    kind = case.get("strategy", "ddp")
    named: dict[str, Callable[[], Net]] = {"talking": Talking, "drifting": Drifting, "weighted": Weighted}
    special = next((named[name] for name in named if case.get(name)), MODULES.get(kind))
    module = special() if special else Net(case.get("norm", True))
    if "start" in case:
        module.load_state_dict(torch.load(case["start"], weights_only=True))
    callbacks: list[Any] = []
    if case.get("bif", True):
        train = Points(12, seed=rank if case.get("differing") else 1)
        options: dict[str, Any] = {"train": train, "query": Points(5, seed=2), "dirpath": folder / "bif"}
        options |= {"sampler": SAMPLER, "chains": CHAINS, "log": False, "verify_restore": "always"}
        given = case.get("options", {})
        if not {"every_n_train_steps", "at_steps", "num_snapshots"} & given.keys():
            options["every_n_epochs"] = 1
        callbacks = [BIFCallback(**(options | given) | extras(case, rank))]
    if "save" in case:
        callbacks.append(Save(folder, case["save"]))
    if case.get("keeps"):
        callbacks.append(ModelCheckpoint(folder, filename="{step}", every_n_train_steps=3, save_top_k=-1))
    trainer = L.Trainer(
        callbacks=callbacks, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=bool(case.get("keeps")), max_epochs=2,
        **({"logger": False} | placed(case, world_size) | case.get("trainer", {})),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        held_out = DataLoader(Points(8, seed=3), batch_size=4) if case.get("validates") else None
        trainer.fit(module, DataLoader(Points(), batch_size=4, shuffle=True), held_out, ckpt_path=case.get("ckpt"))
    reshard(module)  # the state that a run ends in depends on whether its last pass had a backward one
    found = {"fingerprint": fingerprint(trainer, module), "seen": module.seen, "step": trainer.global_step}
    if case.get("where"):
        found["directory"] = str(callbacks[0].directory)
    return found | {
        "next": torch.rand(3).tolist(),
        "logged": {k: float(v) for k, v in trainer.callback_metrics.items()},
    }


def attributed(folder: Path, case: dict[str, Any], world_size: int) -> Any:
    """Attribute checkpoints as one rank; what became of them."""
    torch.set_num_threads(1)
    kind = case.get("strategy", "ddp")
    module = MODULES[kind]() if kind in MODULES else Net(case.get("norm", True))
    trainer = L.Trainer(
        accelerator="cpu", devices=world_size, strategy=strategy_of(kind, world_size), logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    return attribute(
        module, case["attribute"], Points(12, seed=1), Points(5, seed=2), data=DataLoader(Points(), batch_size=4),
        dirpath=folder / "bif", trainer=trainer, sampler=SAMPLER, chains=CHAINS, log=False,
    )  # fmt: skip


def extras(case: dict[str, Any], rank: int) -> dict[str, Any]:
    """Options that cannot be written as JSON: losses that fail on some ranks."""
    if case.get("tokens"):
        return {"loss_fn": parts_of_a_loss, "per_token": True, "eval_batch_size": 2}
    trouble = case.get("trouble")
    if trouble is None:
        return {}

    asked = threading.Event()

    def loss_fn(module: Any, batch: Any) -> Tensor:
        if module.trainer.global_step >= trouble["step"] and rank in trouble["ranks"]:
            if trouble["kind"] == "hang":
                time.sleep(3600)
            if trouble["kind"] == "sigterm":
                if not asked.is_set():
                    asked.set()
                    os.kill(os.getpid(), signal.SIGTERM)
                return F.cross_entropy(module.net(batch[0]), batch[1], reduction="none")
            raise MemoryError("no more memory on this rank")
        return F.cross_entropy(module.net(batch[0]), batch[1], reduction="none")

    return {"loss_fn": loss_fn}


def parts_of_a_loss(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """One, two or three losses of each example, and batches as wide as their longest."""
    losses = F.binary_cross_entropy_with_logits(module.net(batch[0]), F.one_hot(batch[1], 3).float(), reduction="none")
    mask = torch.arange(3) <= batch[1][:, None]
    return losses[:, : int(mask.sum(1).max())], mask[:, : int(mask.sum(1).max())]


def ranked(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What the environment of a rank says."""
    found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    found |= {"WORLD_SIZE": str(world_size), "RANK": str(rank), "OMP_NUM_THREADS": "1"}
    if world_size > 1:  # as torchrun would say it, so that no rank launches others
        found |= {"TORCHELASTIC_RUN_ID": "test", "LOCAL_WORLD_SIZE": str(world_size), "GROUP_RANK": "0"}
    return found


def run(case: dict[str, Any], folder: str, rank: int, world_size: int, port: int) -> None:
    """A process as one rank: what it prints goes to a log, and what is left to a pickle."""
    log = os.open(Path(folder, f"{rank}.log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= ranked(rank, world_size, port)
    outcome: Any
    try:
        if case.get("device") == "sim":
            begin()
        if "attribute" in case:
            outcome = attributed(Path(folder), case, world_size)
        else:
            runs = [{**case, "bif": False}, case] if case.get("compare") else [case]
            outcome = [fit(Path(folder), one, rank, world_size) for one in runs]
    except (Exception, SystemExit) as error:
        outcome = error if _travels(error) else RuntimeError(repr(error))
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(outcome))


def _travels(error: BaseException) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return True


def launch(folder: Path, world_size: int, hangs: tuple[int, ...] = (), **case: Any) -> list[Any]:
    """Run a case on `world_size` processes; what each left (None for those that hang, which are ended by the rest)."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    processes = [start(run, case, str(folder), rank, world_size, port) for rank in range(world_size)]
    ends = time.monotonic() + 240
    try:
        for rank, process in enumerate(processes):
            if rank not in hangs:
                process.join(max(0.1, ends - time.monotonic()))
                assert process.exitcode is not None, f"rank {rank} did not end: see {folder}/{rank}.log"
    finally:
        for process in processes:
            process.kill()
            process.join()
    files = [folder / f"{rank}.pickle" for rank in range(world_size)]
    return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]
