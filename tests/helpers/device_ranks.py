"""One process among several, each with a simulated device of its own, for tests of torch.distributed."""

import pickle
from pathlib import Path

import torch
import torch.distributed as dist

import simulated_device
from device_estimates import estimated
from simulated_device.process import begin

SHARED = ["SGLD", "Subspace", "observables in closed form", "tokens", "convolutions", "random in evaluation"]


def work(rank: int, world_size: int, folder: str, backend: str) -> None:
    """Estimate as one of `world_size` processes, over a group of this backend, and leave the results in the folder."""
    begin()
    torch.sim.set_device(rank)
    dist.init_process_group(backend, f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        simulated_device.reset_counts()
        found = {name: estimated(name, f"sim:{rank}") for name in SHARED}
        left = found, simulated_device.counts().get("collective", 0)
        Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(left))
    finally:
        dist.destroy_process_group()
