"""Training on an accelerator is bitwise what it is without the callback, and its dumps are those of the CPU.

Functions that a test passes to `sim` run in the process with the simulated accelerator; trainings on several ranks have
a process each, and a process group that takes tensors of the accelerator alone.
"""

import gc
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import bif_lightning as bl
import matrix_run
import simulated_device
import strategy_run
import zoo
from bits import differences
from matrix_run import Case, Classifier
from simulated_device.process import DeviceProcess
from simulated_device.training import on_one_device
from strategy_run import launch

pytestmark = [pytest.mark.device, pytest.mark.trainer, pytest.mark.bitwise]

OFTEN = {"every_n_train_steps": 2, "at_start": True}
AT_START: dict[str, Any] = {"options": {"at_start": True, "at_steps": [], "at_end": False}, "trainer": {"max_steps": 1}}
slow = pytest.mark.slow


def normalized() -> Classifier:
    """BatchNorm and dropout."""
    return Classifier(zoo.mlp(nn.BatchNorm1d(8), nn.Dropout(0.2)))


def margin(module: Any, batch: Any) -> Tensor:
    return module.body(batch[0]).topk(2).values.diff(dim=1)[:, 0]


OBSERVABLES = [bl.PerExample("margin", margin), bl.GroupMean("group", groups=["a", "b", "a", "b", "a"])]
CLOSED: dict[str, Any] = {"sampler": bl.Subspace(num_directions=4), "chains": bl.Chains(num_draws=4)}
CASES: dict[str, Case] = {
    "a derived loss": Case(),
    "a given loss": Case(loss_fn=matrix_run.losses, build=normalized),
    "BatchNorm and dropout": Case(build=normalized),
    "observables": Case(bif={"observables": OBSERVABLES}),
    "a closed form": Case(bif=CLOSED, losses=None),
    "some parameters": Case(bif={"params": ["body.2.*"]}, losses=None),
    "bfloat16": Case(trainer={"precision": "bf16-true"}, losses=None),
    "accumulated gradients": Case(trainer={"accumulate_grad_batches": 2}, bif={"every_n_train_steps": 1}, snapshot=2),
    "dumps at all steps": Case(bif={"every_n_train_steps": 1, "at_start": True, "verify_restore": "always"}),
}


QUICK = ("a derived loss", "a given loss", "a closed form")


def placed(case: Case, device: str, index: int = 0) -> Case:
    """The case on a device."""
    there = {"accelerator": "auto", "strategy": lambda: on_one_device(index)} if device == "sim" else {}
    return Case(**(vars(case) | {"trainer": {**case.trainer, **there}}))


def checked(name: str, folder: str, index: int = 0) -> list[int]:
    """Train without the callback and with it, and assert what both share. Bytes that this took of each device."""
    gc.collect()
    before = [torch.sim.memory_allocated(each) for each in range(simulated_device.DEVICES)]
    for each in range(simulated_device.DEVICES):
        torch.sim.reset_peak_memory_stats(each)
    try:
        matrix_run.check(placed(CASES[name], "sim", index), Path(folder))
    finally:
        torch.sim.set_device(0)
    return [torch.sim.max_memory_allocated(each) - used for each, used in enumerate(before)]


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=slow) for name in CASES])
def test_training_is_bitwise_untouched(sim: DeviceProcess, tmp_path: Path, name: str) -> None:
    first, second = sim(checked, name, str(tmp_path))
    assert first > 1000 > second == 0


@slow
def test_training_on_the_second_device_is_bitwise_untouched(sim: DeviceProcess, tmp_path: Path) -> None:
    first, second = sim(checked, "BatchNorm and dropout", str(tmp_path), 1)
    assert second > 1000 > first == 0


def dumped(name: str, folder: str, device: str) -> dict[str, np.ndarray]:
    """The dumps of a training, and the weights that it ends with."""
    path, case = Path(folder, device), CASES[name]
    options = {"loss_fn": case.loss_fn, "at_start": True, "every_n_train_steps": 3, "at_end": False} | dict(case.bif)
    trained = matrix_run.fit(placed(case, device), path, matrix_run.callback(path, **options))
    last = torch.cat([p.detach().float().cpu().flatten() for p in trained.module.parameters()])
    found = {f"{step} {key}": value for step in (0, 3, 6) for key, value in matrix_run.dump(path, step).items()}
    return found | {"last": last.numpy()}


@pytest.mark.parametrize(
    "name",
    ["a derived loss", "a closed form"]
    + [pytest.param(name, marks=slow) for name in ("a given loss", "observables", "bfloat16")],
)
def test_dumps_are_those_of_the_cpu(sim: DeviceProcess, tmp_path: Path, name: str) -> None:
    """And so are the weights: a difference between dumps might be one between trainings else."""
    here, there = (sim(dumped, name, str(tmp_path), device) for device in ("sim", "cpu"))
    assert differences(here, there) == []


class Weighed(L.Callback):
    """Bytes on the device before each batch."""

    def __init__(self) -> None:
        self.bytes = list[int]()

    def on_train_batch_start(self, *args: Any) -> None:
        gc.collect()
        self.bytes.append(torch.sim.memory_allocated())


def held(folder: str, *, derived: bool) -> tuple[list[int], list[int], int]:
    """Bytes on the device before the only snapshot and after it, without the callback and with it, and those of the
    measured data."""
    found, (x, y) = list[list[int]](), matrix_run.points(64).tensors
    data = TensorDataset(x, y, torch.zeros(64, 2000))
    options: dict[str, Any] = {"train": range(48), "query": range(48, 64)}
    options |= {"loss_fn": None if derived else matrix_run.losses}
    options |= {"every_n_train_steps": None, "at_steps": [2], "at_end": False}
    for watched in (False, True):
        weighed = Weighed()
        case = placed(
            Case(
                data=partial(matrix_run.loader, data),
                callbacks=lambda folder, own=weighed: [own],
                trainer={"max_steps": 4},
            ),
            "sim",
        )
        callback = matrix_run.callback(Path(folder), **options) if watched else None
        matrix_run.fit(case, Path(folder, str(watched)), callback)
        found.append([weighed.bytes[1], weighed.bytes[-1]])
    return found[0], found[1], data.tensors[2].nbytes


@pytest.mark.parametrize("derived", [False, True], ids=["loss_fn", "training_step"])
def test_measured_examples_leave_the_device_between_snapshots(
    sim: DeviceProcess, tmp_path: Path, derived: bool
) -> None:
    plain, watched, data = sim(held, str(tmp_path), derived=derived)
    for without, there in zip(plain, watched, strict=True):
        assert there - without < 0.1 * data


def with_newer_setting(folder: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        matrix_run.check(placed(CASES["a derived loss"], "sim"), Path(folder))
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"


def test_the_newer_setting_of_tf32_is_no_obstacle(sim: DeviceProcess, tmp_path: Path) -> None:
    sim(with_newer_setting, str(tmp_path))


def without_float64(folder: str) -> tuple[str, tuple[int, ...]]:
    """What a training with the callback is refused with, and the dumps of one without it, made on the CPU."""
    case, said = placed(CASES["a given loss"], "sim"), ""
    with simulated_device.without(torch.float64):
        try:
            matrix_run.fit(case, Path(folder, "refused"), matrix_run.callback(Path(folder)))
        except ValueError as error:
            said = str(error)
        trained = matrix_run.fit(case, Path(folder, "plain")).module
        torch.save({"state_dict": trained.state_dict(), "global_step": 6}, Path(folder, "step=6.ckpt"))
        cpu = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        report = bl.attribute(
            normalized(), Path(folder, "step=6.ckpt"), matrix_run.points(), loss_fn=matrix_run.losses, trainer=cpu,
            sampler=matrix_run.SAMPLER, chains=matrix_run.CHAINS, dirpath=Path(folder, "bif"),
        )  # fmt: skip
    return said, report.written


def test_a_device_without_float64_is_refused_with_a_remedy_that_works(sim: DeviceProcess, tmp_path: Path) -> None:
    said, written = sim(without_float64, str(tmp_path))
    assert "device sim has no float64" in said
    assert 'trainer=L.Trainer(accelerator="cpu")' in said
    assert written == (6,)


def on_one(folder: str, device: str, norm: bool) -> None:
    """A snapshot of the weights before training, on one device."""
    strategy_run.fit(Path(folder), {"strategy": "single", "device": device, "norm": norm, **AT_START}, 0, 1)


def same(found: Any, expected: Any) -> list[str]:
    """Numbers of the dumps of step 0 that differ in a bit."""
    one, other = found.sel(step=0), expected.sel(step=0)
    numbers = [name for name in other.data_vars if np.issubdtype(other[name].dtype, np.number)]
    assert "influence" in numbers
    return [
        name
        for name in numbers
        if name != "seconds" and "cost" not in name
        and not np.array_equal(one[name].values, other[name].values, equal_nan=True)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def on_two(built: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The folder of a training by DDP on both devices, and what it left on each, without the callback and with it."""
    folder = tmp_path_factory.mktemp("two")
    return folder, launch(folder, 2, device="sim", strategy="ddp", compare=True, options=OFTEN)


def test_training_by_ddp_is_bitwise_untouched(on_two: tuple[Path, list[Any]]) -> None:
    folder, left = on_two
    for plain, watched in left:
        assert plain == watched
    assert bl.open_run(folder / "bif").step.values.tolist()[:3] == [0, 2, 4]


def test_the_dump_is_the_same_on_one_device_on_two_and_on_the_cpu(
    sim: DeviceProcess, on_two: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    for device in ("sim", "cpu"):
        sim(on_one, str(tmp_path / device), device, True)
    there = bl.open_run(tmp_path / "cpu" / "bif").load()
    assert same(bl.open_run(tmp_path / "sim" / "bif").load(), there) == []
    assert same(bl.open_run(on_two[0] / "bif").load(), there) == []


@slow
@pytest.mark.parametrize("kind", ["fsdp"])
def test_training_in_shards_is_bitwise_untouched_and_has_the_influence_of_the_whole(
    sim: DeviceProcess, tmp_path: Path, kind: str
) -> None:
    """The same noise, the same minibatches: equal up to the rounding of sums."""
    left = launch(tmp_path / "two", 2, device="sim", strategy=kind, compare=True, options=OFTEN)
    for plain, watched in left:
        assert plain == watched
    sim(on_one, str(tmp_path / "one"), "sim", False)
    found, expected = (bl.open_run(tmp_path / name / "bif").load().sel(step=0) for name in ("two", "one"))
    np.testing.assert_allclose(found.correlation, expected.correlation, atol=1e-4)
    np.testing.assert_allclose(found.influence, expected.influence, atol=1e-4 * float(abs(expected.influence).max()))
    np.testing.assert_allclose(found.distance_trace, expected.distance_trace, rtol=1e-5)
    np.testing.assert_allclose(found.loss_trace, expected.loss_trace, rtol=1e-5)
