"""Checkpoints of N ranks attributed on M, by processes as torchrun starts them, and from a shell by torchrun itself."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bif_lightning as bl
from strategy_run import launch

SAVED = {"keeps": True, "options": {"at_steps": [3, 6], "at_end": False}}
slow = pytest.mark.slow


def dumps(folder: Path) -> Any:
    return bl.open_run(folder / "bif").load()


def attribute(folder: Path, saved: Path, ranks: int, strategy: str, **case: Any) -> Any:
    left = launch(folder, ranks, strategy=strategy, attribute=str(saved), **case)
    for done in left:
        assert isinstance(done, bl.Attributed), done
        assert (done.written, dict(done.failed)) == ((3, 6), {})
    return dumps(folder)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=slow)])
def test_checkpoints_of_ddp_give_the_same_bits_on_any_number_of_ranks(tmp_path: Path, ranks: int) -> None:
    launch(tmp_path / "inline", 2, strategy="ddp", **SAVED)
    inline, later = dumps(tmp_path / "inline"), attribute(tmp_path / "later", tmp_path / "inline", ranks, "ddp")
    for name in ("influence", "correlation", "influence_standard_error", "loss_trace"):
        np.testing.assert_array_equal(later[name].values, inline[name].values, err_msg=name)


@slow
@pytest.mark.parametrize(("ranks", "strategy"), [(1, "single"), (2, "fsdp"), (3, "fsdp"), (2, "ddp")])
def test_shards_of_two_ranks_are_read_on_any_number(tmp_path: Path, ranks: int, strategy: str) -> None:
    """Up to the rounding of sums, which differ with the number of shards."""
    launch(tmp_path / "inline", 2, strategy="fsdp", **SAVED)
    assert (tmp_path / "inline" / "step=3.ckpt" / ".metadata").is_file()
    inline = dumps(tmp_path / "inline")
    later = attribute(tmp_path / "later", tmp_path / "inline", ranks, strategy, norm=False)
    for name in ("influence", "correlation"):
        scale = float(np.abs(inline[name].values).max())
        np.testing.assert_allclose(later[name].values, inline[name].values, atol=2e-3 * scale, err_msg=name)


@slow
def test_torchrun_starts_the_command(tmp_path: Path) -> None:
    launch(tmp_path / "inline", 1, strategy="single", **SAVED)
    (tmp_path / "app.py").write_text(
        "from strategy_run import Net, Points\n"
        "def training(): return Points()\n"
        "def rows(): return Points(12, seed=1)\n"
        "def columns(): return Points(5, seed=2)\n"
    )
    (tmp_path / "settings.yaml").write_text(
        "sampler:\n  class_path: bif_lightning.SGLD\n  init_args: {step_size: 0.0001, inverse_temperature: 100.0, "
        "localization: 10.0}\nchains:\n  class_path: bif_lightning.Chains\n  init_args: {num_chains: 3, num_draws: 4, "
        "batch_size: 5}\n"
    )
    command = Path(sys.executable).with_name("bif-lightning")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", str(command),
         "attribute", str(tmp_path / "inline"), "--model", "app.Net", "--data", "app.training", "--train", "app.rows",
         "--query", "app.columns", "--settings", "settings.yaml", "--out", "later/bif", "--accelerator", "cpu",
         "--devices", "2", "--strategy", "ddp"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240,
        env={"PYTHONPATH": str(Path(__file__).parents[1] / "helpers"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    later = dumps(tmp_path / "later").influence.sel(step=[3, 6])
    np.testing.assert_array_equal(later, dumps(tmp_path / "inline").influence)
