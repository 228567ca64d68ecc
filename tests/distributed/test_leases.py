"""Claims: one holder at a time, and none that is dead; whatever the clocks say."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bif_lightning.distributed import leases as leases_module
from bif_lightning.distributed.leases import Leases

pytestmark = pytest.mark.crash


def test_one_holds_it_and_lets_it_go(tmp_path: Path) -> None:
    one, other = Leases(tmp_path), Leases(tmp_path)
    with one.acquired("a") as mine, other.acquired("a") as theirs, other.acquired("b") as another:
        assert (mine, theirs, another) == (True, False, True)
    assert list(tmp_path.iterdir()) == []
    with other.acquired("a") as theirs:
        assert theirs


HOLD = """
import sys, time
from pathlib import Path
from bif_lightning.distributed.leases import Leases
with Leases(Path(sys.argv[1])).acquired("a"):
    time.sleep(600)
"""


def wait_for(path: Path) -> None:
    ends = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_a_killed_holder_on_this_machine_is_found_out_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)])
    wait_for(tmp_path / "a.claim")
    with Leases(tmp_path).acquired("a") as mine:
        assert not mine
    process.kill()
    process.wait()
    with Leases(tmp_path).acquired("a") as mine:
        assert mine


def test_silence_by_the_observers_clock_ends_a_lease_of_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's times are in the year 2100, or 1970: nobody looks at them."""
    monkeypatch.setattr(leases_module, "_host", lambda: "elsewhere")
    gone = Leases(tmp_path)
    (tmp_path / "a.claim").write_text(gone._text(3))
    monkeypatch.undo()
    now = [100.0]
    monkeypatch.setattr(leases_module.time, "monotonic", lambda: now[0])
    here = Leases(tmp_path, patience=50.0)
    for when in (4_102_444_800, 0):
        os.utime(tmp_path / "a.claim", (when, when))
        with here.acquired("a") as mine:
            assert not mine
    now[0] += 40.0
    (tmp_path / "a.claim").write_text(gone._text(4))  # a sign of life
    with here.acquired("a") as mine:
        assert not mine
    now[0] += 40.0
    with here.acquired("a") as mine:
        assert not mine
    now[0] += 20.0
    with here.acquired("a") as mine:
        assert mine


def test_a_holder_shows_life_and_a_lease_taken_over_is_not_taken_back(tmp_path: Path) -> None:
    one = Leases(tmp_path, patience=0.3)
    path = tmp_path / "a.claim"
    with one.acquired("a"):
        first = path.read_text()
        ends = time.monotonic() + 60
        while path.read_text() == first:
            assert time.monotonic() < ends
            time.sleep(0.02)
        other = Leases(tmp_path, patience=0.3)
        while path.read_text() != other._text(0):  # the holder may have been half-way through
            other._write(path, 0)  # as if this holder had been stopped for long
            time.sleep(0.1)
        time.sleep(0.3)
        assert path.read_text() == other._text(0)
    assert path.read_text() == other._text(0), "let go of by its holder alone"


@pytest.mark.parametrize("text", ["", "{", "[]", "nothing"])
def test_a_holder_killed_while_writing_leaves_no_riddle(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(leases_module.time, "monotonic", lambda: now[0])
    (tmp_path / "a.claim").write_text(text)
    here = Leases(tmp_path, patience=50.0)
    with here.acquired("a") as mine:
        assert not mine
    now[0] += 51.0
    with here.acquired("a") as mine:
        assert mine
