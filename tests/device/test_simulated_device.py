"""The simulated accelerator refuses what CUDA refuses, and measures what its users want to know of it.

Functions that a test passes to `sim` run in the process with the accelerator.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import simulated_device
from ports import free_port
from simulated_device.process import DeviceProcess

pytestmark = [pytest.mark.device, pytest.mark.exact]

OTHER = "Expected all tensors to be on the same device"


def here(*shape: int) -> Tensor:
    return torch.ones(shape, device="sim")


def add() -> Any:
    return here(3) + torch.ones(3)


def add_in_place() -> Any:
    return torch.ones(3).add_(here(3))


def add_a_number_of_the_device() -> Any:
    return torch.ones(3) + here(1)[0]


def of_both_devices() -> Any:
    return here(3) + here(3).to("sim:1")


def multiply_matrices() -> Any:
    return here(2, 3) @ torch.ones(3, 2)


def concatenate() -> Any:
    return torch.cat([here(2), torch.ones(2)])


def choose() -> Any:
    return torch.where(here(3) > 0, here(3), torch.ones(3))


def compute_with_a_module() -> Any:
    return nn.Linear(3, 2)(here(1, 3))


def convolve() -> Any:
    return nn.Conv1d(1, 1, 2)(here(1, 1, 4))


def select_by_rows_of_the_host() -> Any:
    return here(3).index_select(0, torch.tensor([0]))


def put_values_of_the_host() -> Any:
    return here(3).index_put_((torch.tensor([0, 1]),), torch.ones(2))


def compare() -> Any:
    return torch.equal(here(3), torch.ones(3))


def write_into_the_host() -> Any:
    return torch.add(here(3), here(3), out=torch.empty(3))


def embed_rows_of_the_host() -> Any:
    return nn.Embedding(3, 2).to("sim")(torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "mixed",
    [
        add, add_in_place, add_a_number_of_the_device, of_both_devices, multiply_matrices, concatenate, choose,
        compute_with_a_module, convolve, select_by_rows_of_the_host, put_values_of_the_host, compare,
        write_into_the_host, embed_rows_of_the_host,
    ],
)  # fmt: skip
def test_tensors_of_two_devices_are_refused(sim: DeviceProcess, mixed: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match=OTHER):
        sim(mixed)


def index_the_host() -> Any:
    return torch.ones(3)[torch.tensor([0, 2], device="sim")]


def mask_the_host() -> Any:
    return torch.ones(3)[here(3) > 0]


@pytest.mark.parametrize("function", [index_the_host, mask_the_host])
def test_indices_of_the_device_into_the_host_are_refused(sim: DeviceProcess, function: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match="indices should be either on cpu or on the same device"):
        sim(function)


def noise_of_the_host() -> Any:
    return here(3).normal_(generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("function", [noise_of_the_host])
def test_generators_of_another_device_are_refused(sim: DeviceProcess, function: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match=r"Expected a '.*' device type for generator but found"):
        sim(function)


def array_of_the_device() -> Any:
    return here(3).numpy()


def test_an_array_of_its_memory_is_refused(sim: DeviceProcess) -> None:
    with pytest.raises(TypeError, match="can't convert sim:0 device type tensor to numpy"):
        sim(array_of_the_device)


def third_device() -> Any:
    return torch.ones(1, device="sim:2")


def test_a_device_that_is_not_there_is_refused(sim: DeviceProcess) -> None:
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        sim(third_device)


def doubles(make: str) -> Any:
    with simulated_device.without(torch.float64):
        if make == "new":
            return torch.zeros(1, dtype=torch.float64, device="sim")
        if make == "converted":
            return here(1).double()
        if make == "copied":
            return torch.zeros(1, dtype=torch.float64).to("sim")
        return here(1).sum(dtype=torch.float64)


@pytest.mark.parametrize("make", ["new", "converted", "copied", "summed"])
def test_a_dtype_can_be_forbidden(sim: DeviceProcess, make: str) -> None:
    with pytest.raises(TypeError, match="the SIM framework doesn't support"):
        sim(doubles, make)


def what_cuda_allows() -> list[Tensor]:
    x, rows = torch.arange(6.0, device="sim").view(3, 2), torch.tensor([2, 0])
    return [
        each.cpu()
        for each in (
            x + torch.tensor(1.0),  # a number of the host
            torch.tensor(2.0) * x,
            x[rows],  # indices of the host
            x[rows.to("sim")],
            x[x[:, 0] > 1],
            x.to("sim:1") + 1,
            x.half().float() @ x.mT,
            torch.zeros(3, 2).copy_(x),
        )
    ]


def test_what_cuda_allows_is_computed(sim: DeviceProcess) -> None:
    x = torch.arange(6.0).view(3, 2)
    expected = [x + 1, 2 * x, x[[2, 0]], x[[2, 0]], x[1:], x + 1, x @ x.mT, x]
    for found, value in zip(sim(what_cuda_allows), expected, strict=True):
        assert torch.equal(found, value)


def streams() -> dict[str, Any]:
    """Numbers of the generators of both devices."""
    torch.manual_seed(5)  # of all devices
    both = [torch.rand(3, device=f"sim:{index}").cpu() for index in range(2)]
    state = torch.sim.get_rng_state("sim:1")
    after = torch.rand(2, device="sim:1").cpu()
    torch.rand(2, device="sim:0")
    torch.sim.set_rng_state(state, "sim:1")
    own = torch.Generator("sim").manual_seed(7)
    private = torch.empty(3, device="sim").normal_(generator=own).cpu()
    return {"both": both, "after": after, "again": torch.rand(2, device="sim:1").cpu(), "private": private}


def test_each_device_has_a_generator_of_its_own(sim: DeviceProcess) -> None:
    found = sim(streams)
    assert torch.equal(*found["both"])
    assert torch.equal(found["after"], found["again"])
    assert torch.equal(found["private"], torch.empty(3).normal_(generator=torch.Generator().manual_seed(7)))


def waits(way: str) -> tuple[float, float]:
    """Seconds in which ten kernels were given to the device, and seconds until it had done them."""
    x = here(4)
    torch.sim.synchronize()
    with simulated_device.slow_kernels(0.03):
        started = time.perf_counter()
        for _ in range(10):
            x.add_(1)
        given = time.perf_counter()
        {
            "synchronize": torch.sim.synchronize,
            "accelerator": torch.accelerator.synchronize,
            "item": x[0].item,
            "copy": x.cpu,
            "branch": lambda: bool(x.isfinite().all()),
        }[way]()
        return given - started, time.perf_counter() - started


@pytest.mark.parametrize("way", ["synchronize", "accelerator", "item", "copy", "branch"])
def test_kernels_run_by_themselves_until_the_host_waits(sim: DeviceProcess, way: str) -> None:
    given, done = sim(waits, way)
    assert given < 0.25
    assert done >= 0.3


def memory() -> list[int]:
    used = torch.sim.memory_allocated
    before = used()
    torch.sim.reset_peak_memory_stats()
    first = torch.empty(1000, device="sim")
    second = torch.empty(500, device="sim")
    both = used() - before
    view = first[:10]
    del first, second
    held = used() - before
    del view
    other = torch.empty(300, device="sim:1")
    found = [both, held, used() - before, torch.sim.max_memory_allocated() - before, torch.sim.memory_allocated(1)]
    del other
    return found


def test_memory_is_metered(sim: DeviceProcess) -> None:
    both, held, after, peak, other = sim(memory)
    assert (both, held, after, peak) == (6000, 4000, 0, 6000)
    assert other >= 1200


def beyond_memory() -> str:
    with simulated_device.little_memory(4000):
        torch.empty(1000, device="sim")
        try:
            torch.empty(1001, device="sim")
        except torch.OutOfMemoryError as error:
            return str(error)
    return ""


def test_memory_ends_with_the_error_of_cuda(sim: DeviceProcess) -> None:
    assert "SIM out of memory. Tried to allocate 4004 bytes" in sim(beyond_memory)


def events() -> dict[str, int]:
    x = torch.ones(3)
    simulated_device.reset_counts()
    y = x.to("sim", non_blocking=True)
    y = (y * 2).sum()
    y.item()
    x.to("sim")
    y.cpu()
    return simulated_device.counts()


def test_launches_waits_and_copies_are_counted(sim: DeviceProcess) -> None:
    found = sim(events)
    assert (found["copy:to device"], found["copy:to host"], found["wait:item"]) == (2, 1, 1)
    assert (found["launch:mul"], found["launch:sum"]) == (1, 1)
    assert (found["launch"], found["wait"], found["copy"]) == (2, 3, 3)


def group(backend: str, port: int) -> dict[str, str]:
    """What a process group of one rank says to tensors of both devices."""
    dist.init_process_group(backend, f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    found = dict[str, str]()
    try:
        for name, tensor in {"cpu": torch.ones(2), "sim": here(2)}.items():
            try:
                dist.all_reduce(tensor)
                found[name] = "taken"
            except RuntimeError as error:
                found[name] = str(error)
        gathered: list[Any] = [None]
        dist.all_gather_object(gathered, {"an": "object"})
        found["object"] = gathered[0]["an"]
    finally:
        dist.destroy_process_group()
    return found


def test_its_process_group_takes_its_tensors_alone(sim: DeviceProcess) -> None:
    found = sim(group, simulated_device.GROUP, free_port())
    assert "No backend type associated with device type cpu" in found["cpu"]
    assert (found["sim"], found["object"]) == ("taken", "object")


def test_with_gloo_beside_it_a_group_takes_both(sim: DeviceProcess) -> None:
    found = sim(group, f"cpu:gloo,sim:{simulated_device.GROUP}", free_port())
    assert found == {"cpu": "taken", "sim": "taken", "object": "object"}
