"""One process among several, for tests of torch.distributed."""

import pickle
from pathlib import Path

import torch
import torch.distributed as dist

import small_models as models
from bif_lightning.config import SGLD, Chains
from bif_lightning.estimator import estimate
from bif_lightning.result import Estimate

SAMPLER = SGLD(step_size=1e-3, inverse_temperature=20.0, localization=10.0)
CHAINS = Chains(num_chains=3, num_draws=9, batch_size=5, storage="moments")


def estimated() -> Estimate:
    torch.set_num_threads(2)
    return estimate(
        models.seeded(models.mlp), models.cross_entropy, models.data(), models.data(1, 4),
        sampler=SAMPLER, chains=CHAINS, train_labels=[0, 1] * 6, query_labels=[0, 1, 1, 0],
    )  # fmt: skip


def work(rank: int, world_size: int, folder: str) -> None:
    """Estimate as one of `world_size` processes, and leave the result in the folder."""
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(estimated()))
    finally:
        dist.destroy_process_group()
