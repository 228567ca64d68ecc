"""Two hosts: network namespaces with addresses of their own, joined by one cable, and a folder that both see."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bif_lightning as bl
from offline_run import CHAINS, SAMPLER, STEPS, assert_same_dumps, train
from processes import answers
from strategy_run import launch

pytestmark = [pytest.mark.slow, pytest.mark.bitwise]
ADDRESSES = ("10.77.41.1", "10.77.41.2")
APP = """
from strategy_run import Net, Points
def training(): return Points()
def rows(): return Points(12, seed=1)
def columns(): return Points(5, seed=2)
"""
SETTINGS = """
sampler:
  class_path: bif_lightning.SGLD
  init_args: {step_size: 0.0001, inverse_temperature: 100.0, localization: 10.0}
chains:
  class_path: bif_lightning.Chains
  init_args: {num_chains: 3, num_draws: 4, batch_size: 13}
"""


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)


@pytest.fixture
def hosts() -> Iterator[dict[str, str]]:
    """Names of two namespaces, and of the network card in each; skips where there may be none."""
    names = [f"bif-{os.getpid()}-{side}" for side in "ab"]
    cards = [f"bif{os.getpid() % 10**6}{side}" for side in "ab"]
    made = list[str]()
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip("link", "add", cards[0], "netns", names[0], "type", "veth", "peer", "name", cards[1], "netns", names[1])
        for name, card, address in zip(names, cards, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", card)
            ip("-n", name, "link", "set", card, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield dict(zip(names, cards, strict=True))
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces can be made here: {getattr(error, 'stderr', '') or error}")
    finally:
        for name in made:
            ip("netns", "delete", name)


def on_both(hosts: Mapping[str, str], folder: Path, commands: list[list[str]]) -> list[str]:
    """Run a command on each host, with a host name and process numbers of its own; the standard output of each."""
    environment = {
        "PYTHONPATH": str(Path(__file__).parents[1] / "helpers"), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    own = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "sh", "-c", 'hostname "$0" && exec "$@"']
    running = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, *own, name, *command], cwd=folder, text=True,
            env=environment | {"GLOO_SOCKET_IFNAME": card}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for (name, card), command in zip(hosts.items(), commands, strict=True)
    ]  # fmt: skip
    return [out for out, _ in answers(running)]


def command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("bif-lightning")), *arguments, "--accelerator", "cpu", "--json"]


def test_ranks_on_two_hosts_give_the_bits_of_one_process(tmp_path: Path, hosts: dict[str, str]) -> None:
    launch(tmp_path / "inline", 1, strategy="single", keeps=True, options={"at_steps": [3, 6], "at_end": False})
    (tmp_path / "hosts_app.py").write_text(APP)
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    attribute = command(
        "attribute", "inline", "--model", "hosts_app.Net", "--data", "hosts_app.training", "--train", "hosts_app.rows",
        "--query", "hosts_app.columns", "--settings", "settings.yaml", "--out", "later/bif", "--devices", "1",
        "--num-nodes", "2", "--strategy", "ddp",
    )  # fmt: skip
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--no-python",
        "--master-addr", ADDRESSES[0], "--master-port", "29400",
    ]  # fmt: skip
    said = on_both(hosts, tmp_path, [[*torchrun, "--node-rank", str(rank), *attribute] for rank in range(2)])
    assert json.loads(said[0])["written"] == [3, 6, 9, 12]
    assert said[1] == "", "one process speaks for all"
    inline, later = (bl.open_run(tmp_path / name / "bif").sel(step=[3, 6]).load() for name in ("inline", "later"))
    for name in ("influence", "correlation", "influence_standard_error"):
        np.testing.assert_array_equal(later[name].values, inline[name].values, err_msg=name)


def test_workers_on_two_hosts_share_a_folder(tmp_path: Path, hosts: dict[str, str]) -> None:
    settings: dict[str, Any] = {"sampler": SAMPLER, "chains": CHAINS}
    inline, later = (train(tmp_path / name, launch=name, **settings) for name in ("inline", "snapshot"))
    watch = command("watch", str(later), "--model", "offline_run.Net", "--data", "offline_run.points", "--idle", "60")
    written = [json.loads(said)["written"] for said in on_both(hosts, tmp_path, [watch, watch])]
    assert sorted(written[0] + written[1]) == STEPS
    assert_same_dumps(inline, later)
