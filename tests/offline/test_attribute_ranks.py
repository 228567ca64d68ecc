"""Checkpoints of N ranks attributed on M, by processes as torchrun starts them, and from a shell by torchrun itself."""

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bif_lightning as bl
from forked import as_main, start
from strategy_run import launch

pytestmark = pytest.mark.bitwise

SAVED = {"keeps": True, "options": {"at_steps": [3, 6], "at_end": False}}
slow = pytest.mark.slow


def dumps(folder: Path) -> Any:
    return bl.open_run(folder / "bif").load()


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Path]:
    """Trains once for each number of ranks and strategy: a folder with checkpoints, and the dumps of the callback."""

    @cache
    def train(ranks: int, strategy: str) -> Path:
        folder = tmp_path_factory.mktemp(strategy)
        launch(folder, ranks, strategy=strategy, **SAVED)
        return folder

    return train


def attribute(folder: Path, saved: Path, ranks: int, strategy: str, **case: Any) -> Any:
    left = launch(folder, ranks, strategy=strategy, attribute=str(saved), **case)
    for done in left:
        assert isinstance(done, bl.AttributionReport), done
        assert (done.written, dict(done.failed)) == ((3, 6), {})
    return dumps(folder)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=slow)])
def test_checkpoints_of_ddp_give_the_same_bits_on_any_number_of_ranks(tmp_path: Path, inline: Any, ranks: int) -> None:
    saved = inline(2, "ddp")
    expected, later = dumps(saved), attribute(tmp_path, saved, ranks, "ddp")
    for name in ("influence", "correlation", "influence_standard_error", "loss_trace", "integrated"):
        np.testing.assert_array_equal(later[name].values, expected[name].values, err_msg=name)


@slow
@pytest.mark.parametrize(("ranks", "strategy"), [(1, "single"), (2, "fsdp"), (3, "fsdp"), (2, "ddp")])
def test_shards_of_two_ranks_are_read_on_any_number(tmp_path: Path, inline: Any, ranks: int, strategy: str) -> None:
    """Up to the rounding of sums, which differ with the number of shards."""
    saved = inline(2, "fsdp")
    assert (saved / "step=3.ckpt" / ".metadata").is_file()
    expected = dumps(saved)
    later = attribute(tmp_path, saved, ranks, strategy, norm=False)
    for name in ("influence", "correlation"):
        scale = float(np.abs(expected[name].values).max())
        np.testing.assert_allclose(later[name].values, expected[name].values, atol=2e-3 * scale, err_msg=name)


@slow
def test_torchrun_starts_the_command(tmp_path: Path, inline: Any) -> None:
    saved = inline(1, "single")
    (tmp_path / "app.py").write_text(
        "from strategy_run import Net, Points\n"
        "def training(): return Points()\n"
        "def rows(): return Points(12, seed=1)\n"
        "def columns(): return Points(5, seed=2)\n"
    )
    (tmp_path / "settings.yaml").write_text(
        "sampler:\n  class_path: bif_lightning.SGLD\n  init_args: {step_size: 0.0001, inverse_temperature: 100.0, "
        "localization: 10.0}\nchains:\n  class_path: bif_lightning.Chains\n  init_args: {num_chains: 3, num_draws: 4, "
        "batch_size: 13}\n"
    )
    command = Path(sys.executable).with_name("bif-lightning")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", str(command),
         "attribute", str(saved), "--model", "app.Net", "--data", "app.training", "--train", "app.rows",
         "--query", "app.columns", "--settings", "settings.yaml", "--out", "later/bif", "--accelerator", "cpu",
         "--devices", "2", "--strategy", "ddp"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240,
        env={"PYTHONPATH": str(Path(__file__).parents[1] / "helpers"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    later = dumps(tmp_path / "later").influence.sel(step=[3, 6])
    np.testing.assert_array_equal(later, dumps(saved).influence)


SCRIPT = """
import sys
import lightning as L
import torch
import bif_lightning as bl
from strategy_run import CHAINS, SAMPLER, Net, Points
from torch.utils.data import DataLoader

torch.set_num_threads(1)
trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
bl.attribute(
    Net(), sys.argv[1], Points(12, seed=1), Points(5, seed=2), data=DataLoader(Points(), batch_size=4),
    dirpath="later/bif", trainer=trainer, sampler=SAMPLER, chains=CHAINS, log=False,
)
assert trainer.world_size == 2
print(f"{type(trainer.strategy.cluster_environment).__name__} {trainer.global_rank}\\n", end="")
"""
FABRIC = [
    str(Path(sys.executable).with_name("fabric")), "run", "--accelerator", "cpu", "--devices", "2", "--strategy", "ddp",
]  # fmt: skip
SLURM = {
    "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_JOB_ID": "4177",
    "SLURM_JOB_NAME": "attribution", "SLURM_NODELIST": "localhost",
}  # fmt: skip


def of_rank(rank: int) -> dict[str, str]:
    """What srun tells a task."""
    return SLURM | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}


@slow
def test_a_script_under_fabric_run(tmp_path: Path, inline: Any) -> None:
    saved = inline(1, "single")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, *FABRIC, "script.py", str(saved)], cwd=tmp_path, text=True, capture_output=True, check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[1] / "helpers"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:3000] + done.stderr[-1500:]
    check_script(done.stdout, "TorchElasticEnvironment", tmp_path, saved)


@slow
def test_a_script_under_srun(tmp_path: Path, inline: Any) -> None:
    saved = inline(1, "single")
    (tmp_path / "script.py").write_text(SCRIPT)
    files = [tmp_path / f"{rank}.txt" for rank in range(2)]
    running = [
        start(as_main, "script.py", [str(saved)], tmp_path, {1: str(file), 2: str(file)}, of_rank(rank))
        for rank, file in enumerate(files)
    ]
    for each in running:
        each.join(200)
        each.kill()
    said = "".join(file.read_text() for file in files)
    assert [each.exitcode for each in running] == [0, 0], said
    check_script(said, "SLURMEnvironment", tmp_path, saved)


def check_script(said: str, environment: str, folder: Path, saved: Path) -> None:
    """The Trainer takes ranks from whoever started the processes; its devices have to be given all the same."""
    assert all(f"{environment} {rank}" in said for rank in range(2)), said
    later, expected = (dumps(each).influence.sel(step=[3, 6]) for each in (folder / "later", saved))
    np.testing.assert_array_equal(later, expected)
