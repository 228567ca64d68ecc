"""What `attribute` and `watch` show while they work: bars on a real terminal, lines in a pipe, JSON alone on stdout."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch

from bif_lightning.trainer import progress
from bif_lightning.trainer.progress import OfflineProgress, Throughput
from forked import as_main, start
from offline_run import Net, train

APP = """
import time
import torch.nn.functional as F
from offline_run import Net as Quiet, points

print("a word at import")


class Net(Quiet):
    def load_state_dict(self, *arguments, **options):
        print("a word of the module")
        self.print("a word above the bars")
        return super().load_state_dict(*arguments, **options)


def slow_loss(module, batch):
    time.sleep(0.004)
    return F.cross_entropy(module.net(batch[0]), batch[1], reduction="none")
"""
SETTINGS = """
sampler:
  class_path: bif_lightning.SGLD
  init_args: {step_size: 0.001, inverse_temperature: 50.0, localization: 50.0}
chains:
  class_path: bif_lightning.Chains
  init_args: {num_chains: 2, num_draws: 20, batch_size: 8}
"""
COMMAND = """
import os, sys; os.environ["TERM"] = "xterm"
from bif_lightning.trainer import progress; progress._LINE_SECONDS = 0.15
from bif_lightning.commands.cli import main; sys.exit(main())
"""
WATCHED = ["--model", "shown_app.Net", "--data", "shown_app.points", "--accelerator", "cpu"]
ATTRIBUTE = [
    "attribute", "saved", "--model", "shown_app.Net", "--data", "shown_app.points", "--train", "0:10", "--query",
    "30:36", "--loss", "shown_app.slow_loss", "--settings", "settings.yaml", "--out", "out/bif", "--accelerator", "cpu",
]  # fmt: skip


TRAINING = """
import os, time; os.environ["TERM"] = "xterm"
import lightning as L
import torch.nn.functional as F
from lightning.pytorch.callbacks import RichProgressBar
from torch.utils.data import DataLoader
from bif_lightning import BIFCallback, Chains
from offline_run import SAMPLER, Net, points


def slow_loss(module, batch):
    time.sleep(0.05)
    return F.cross_entropy(module.net(batch[0]), batch[1], reduction="none")


bif = BIFCallback(
    train=range(6), query=range(30, 33), at_steps=[2], at_end=False, loss_fn=slow_loss, sampler=SAMPLER,
    chains=Chains(num_chains=2, num_draws=20, batch_size=8), dirpath="out/bif", log=False,
)
trainer = L.Trainer(
    max_steps=3, logger=False, enable_checkpointing=False, accelerator="cpu", callbacks=[bif, RichProgressBar()]
)
trainer.fit(Net(), DataLoader(points(), 8))
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A folder with a talkative module, and three checkpoints."""
    (tmp_path / "shown_app.py").write_text(APP)
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    (tmp_path / "saved").mkdir()
    for step in (10, 20, 30):
        torch.manual_seed(step)
        torch.save({"global_step": step, "state_dict": Net().state_dict()}, tmp_path / "saved" / f"{step}.ckpt")
    return tmp_path


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "helpers")}


def on_a_terminal(
    arguments: list[str], folder: Path, ends_at: bytes = b"", number: int = signal.SIGINT, script: str = COMMAND,
    streams: tuple[int, ...] = (2,),
) -> tuple[int | None, str, bytes]:  # fmt: skip
    """Exit status, standard output where that is no terminal, and what a terminal got on these streams."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    (folder / "command.py").write_text(script)
    out = folder / "out.txt"
    out.touch()
    files = {1: str(out)} | dict.fromkeys(streams, os.ttyname(theirs))
    process = start(as_main, "command.py", arguments, folder, files)
    seen, ends = b"", time.monotonic() + 240
    while time.monotonic() < ends:
        if select.select([ours], [], [], 0.1)[0]:
            seen += os.read(ours, 65536)
        elif process.exitcode is not None:
            break
        if ends_at and ends_at in seen:
            ends_at = b""
            assert process.pid is not None
            os.kill(process.pid, number)
    os.close(theirs)
    os.close(ours)
    return process.exitcode, out.read_text(), seen


@pytest.mark.slow
def test_a_terminal_shows_two_bars_and_lines_above_them(app: Path) -> None:
    status, out, seen = on_a_terminal([*ATTRIBUTE, "--json"], app)
    assert status == 0, seen
    assert json.loads(out)["written"] == [10, 20, 30]
    shown = seen.decode()
    assert re.search(r"BIF: 1 of 3 dumps \|.*% *, about 00:\d\d left", shown), shown
    assert re.search(r"BIF step 20: +\d+%\|.*\| \d+/40 \[00:\d\d<00:\d\d", shown)
    # A line of its own: what was drawn where it stands is wiped first.
    for words in ("a word of the module", "a word above the bars", "BIF step 20: [a-z ]+; LLC"):
        assert re.search(rf"[\r\n] *\r{words}[^\r]*\r\n", shown), words


@pytest.mark.slow
def test_the_bar_of_lightning_moves_during_a_snapshot(tmp_path: Path) -> None:
    """Rich's bar, the default where Rich is installed, is drawn at the end of a batch; a snapshot lies between two."""
    status, _, seen = on_a_terminal([], tmp_path, script=TRAINING, streams=(1, 2))
    assert status == 0, seen.decode()
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())
    done = {int(found) for found in re.findall(r"BIF step 2 [^\n]*? (\d+)/40 ", plain)}
    assert len(done - {0, 40}) >= 3, plain


@pytest.mark.slow
def test_a_pipe_gets_lines_now_and_then(app: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *ATTRIBUTE, "--json"], cwd=app, env=environment(), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["written"] == [10, 20, 30]
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if re.match(r"BIF: \d of 3 dumps", line)]
    assert lines[0] == "BIF: 0 of 3 dumps"
    assert any(
        re.fullmatch(r"BIF: 1 of 3 dumps, about 00:\d\d left; BIF step 20: \d+ of 40 steps", line) for line in lines
    ), done.stderr
    assert "a word of the module" in done.stderr


@pytest.mark.slow
def test_watch_shows_the_same(app: Path, tmp_path: Path) -> None:
    directory = train(tmp_path, launch="snapshot")
    arguments = ["watch", str(directory), *WATCHED]
    status, out, seen = on_a_terminal([*arguments, "--json"], app)
    assert status == 0, seen
    assert json.loads(out)["written"] == [2, 5, 8]
    assert b"of 3 dumps |" in seen


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_leaves_nothing_half(app: Path, number: signal.Signals) -> None:
    status, out, seen = on_a_terminal(ATTRIBUTE, app, b"1 of 3 dumps", number)
    assert (status, out) == (128 + number, "")
    assert b"Traceback" not in seen
    assert sorted(path.name for path in (app / "out" / "bif").glob("step=*")) == ["step=000000010.h5"]
    assert not list((app / "out" / "bif").glob("claims/*"))


@pytest.mark.slow
def test_a_worker_that_waits_can_be_ended(app: Path, tmp_path: Path) -> None:
    directory = train(tmp_path, launch="snapshot")
    (directory / "snapshots" / "end.json").unlink()
    arguments = ["watch", str(directory), *WATCHED]
    status, _, seen = on_a_terminal(arguments, app, b"waiting for snapshots", signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    assert b"Traceback" not in seen
    assert len(list(directory.glob("step=*.h5"))) == 3


def test_the_time_that_is_left_counts_dumps_of_all_workers_and_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.time, "monotonic", lambda: 1130.0)
    pace = Throughput(idle=30)
    pace.count(7, 10)
    pace.began = 1000.0
    assert pace.left == float("inf")  # those were there before
    pace.count(9, 12)
    assert pace.left == pytest.approx(100 / 2 * 3)
    pace.part = 0.5
    assert pace.left == pytest.approx(100 / 2.5 * 2.5)


def test_other_ranks_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    overview = OfflineProgress(terminal=True)
    overview.disable()
    with overview.shown(), overview.steps("BIF step 1") as show:
        overview.count(1, 2)
        show(1, 2)
        overview.print("words")
    assert capsys.readouterr().err == ""


def test_elsewhere_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    overview, now = OfflineProgress(terminal=False), [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with caplog.at_level("INFO"), overview.shown():
        overview.count(1, 4)
        overview.count(1, 4)
        with overview.steps("BIF step 7") as show:
            for step in range(1, 31):
                now[0] += 1.0
                show(step, 40)
        overview.print("words")
    assert [record.message for record in caplog.records] == [
        "BIF: 1 of 4 dumps",
        "BIF: 1 of 4 dumps, about 01:50 left; BIF step 7: 10 of 40 steps",
        "BIF: 1 of 4 dumps, about 01:40 left; BIF step 7: 20 of 40 steps",
        "BIF: 1 of 4 dumps, about 01:30 left; BIF step 7: 30 of 40 steps",
        "words",
    ]
