"""One rank of a training under FSDPStrategy that saves shards."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.utils.data import DataLoader

from strategy_run import Points, ranked


class Prefixed(L.LightningModule):
    """Its parts have the name that FSDPStrategy puts before all names."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"model": nn.Linear(4, 8), "head": nn.Linear(8, 3)})

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        hidden = self.model["model"](batch[0]).tanh()
        return F.cross_entropy(self.model["head"](hidden), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.trainer.model.parameters(), lr=0.1)


class OnCPU(FSDPStrategy):
    """Lightning wants a GPU for this strategy; torch does without where it is told so."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        policy = ModuleWrapPolicy({nn.Linear})
        return FullyShardedDataParallel(
            model, device_id=torch.device("cpu"), auto_wrap_policy=policy, use_orig_params=True
        )


class Whole(L.Callback):
    """Leaves the weights as one file, by torch's own means."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with FullyShardedDataParallel.summon_full_params(trainer.model):
            whole = {name: value.detach().clone() for name, value in pl_module.named_parameters()}
        if trainer.is_global_zero:
            torch.save({name.replace("_fsdp_wrapped_module.", ""): value for name, value in whole.items()}, self.path)


def run(rank: int, world_size: int, folder: Path, port: int) -> None:
    os.environ |= ranked(rank, world_size, port)
    torch.set_num_threads(1)
    L.seed_everything(0)
    strategy = OnCPU(process_group_backend="gloo", state_dict_type="sharded")
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    trainer = L.Trainer(
        accelerator="cpu", devices=world_size, strategy=strategy, max_steps=6, logger=False,
        callbacks=[keep, Whole(folder / "whole-step=6.pt")], enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Prefixed(), DataLoader(Points(), batch_size=4))
