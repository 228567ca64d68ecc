"""What Lightning needs to train on the simulated accelerator."""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

import simulated_device


class SimulatedAccelerator(Accelerator):
    def setup_device(self, device: torch.device) -> None:
        torch.sim.set_device(device)

    def teardown(self) -> None: ...

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> int:
        return int(devices)

    @staticmethod
    def get_parallel_devices(devices: int) -> list[torch.device]:
        return [torch.device(simulated_device.NAME, index) for index in range(devices)]

    @staticmethod
    def auto_device_count() -> int:
        return simulated_device.DEVICES

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return simulated_device.NAME


class SimulatedDDP(DDPStrategy):
    """DDP without device numbers, for which Lightning would open streams of CUDA."""

    def determine_ddp_device_ids(self) -> None:
        return None


class SimulatedParallel(ModelParallelStrategy):
    """Without a device bound to the process group, since torch would split that, as it can do with NCCL alone."""

    def _setup_distributed(self) -> None:
        super()._setup_distributed()
        dist.distributed_c10d._get_default_group().bound_device_id = None


def on_one_device(index: int = 0) -> SingleDeviceStrategy:
    """The strategy of a Trainer with one of the devices."""
    return SingleDeviceStrategy(torch.device(simulated_device.NAME, index), accelerator=SimulatedAccelerator())
