"""Runs are found by the names of their files, and files that are not regular are not among them."""

import threading
import time

from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from bif_lightning.tensorboard.plugin import scan
from bif_lightning.tensorboard.plugin.run_files import remembered
from bif_lightning.tensorboard.plugin.scan import Scan


def touch(folder, *steps):
    folder.mkdir(parents=True, exist_ok=True)
    for step in steps:
        (folder / f"step={step:09d}.h5").write_bytes(b"x" * step)


def test_runs_are_found_anywhere_below_the_folder(tmp_path):
    touch(tmp_path, 5)
    touch(tmp_path / "b" / "bif", 30, 4)
    touch(tmp_path / "a" / "version_0" / "bif", 1)
    touch(tmp_path / ".venv" / "bif", 1)
    (tmp_path / "b" / "bif" / "samples.h5").write_bytes(b"s")
    for name in (".step=000000009.h5", "step=9.h5", "step=000000009.h5.part", "step=00000000x.h5", "Step=000000009.h5"):
        (tmp_path / "b" / "bif" / name).write_bytes(b"")
    runs = Scan(tmp_path).runs()
    assert list(runs) == [".", "a/version_0/bif", "b/bif"]
    assert list(runs["b/bif"].dumps) == [4, 30]
    assert runs["b/bif"].samples_token
    assert runs["."].samples_token == ""
    assert runs["b/bif"].files([30]).names == {30: "step=000000030.h5"}


def test_a_token_changes_when_a_file_is_replaced(tmp_path):
    touch(tmp_path, 5)
    before = Scan(tmp_path).runs()["."].dumps[5].token
    assert Scan(tmp_path).runs()["."].dumps[5].token == before
    (tmp_path / "new").write_bytes(b"y" * 5)
    (tmp_path / "new").replace(tmp_path / "step=000000005.h5")
    assert Scan(tmp_path).runs()["."].dumps[5].token != before


def test_what_is_no_plain_file_is_odd(tmp_path):
    touch(tmp_path / "run", 1)
    (tmp_path / "run" / "step=000000002.h5").symlink_to(tmp_path / "run" / "step=000000001.h5")
    (tmp_path / "run" / "step=000000003.h5").symlink_to(tmp_path / "nothing")
    (tmp_path / "run" / f"step={10**20}.h5").write_bytes(b"")
    (tmp_path / "run" / "step=0000000001.h5").write_bytes(b"")
    run = Scan(tmp_path).runs()["run"]
    assert len(run.dumps) == 1
    assert len(run.odd) == 4


def test_links_to_folders_are_followed_as_by_tensorboard(tmp_path):
    touch(tmp_path / "all" / "version_0" / "bif", 1)
    events = tmp_path / "all" / "version_0" / "events.out.tfevents.1"
    events.write_bytes(b"")
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    (chosen / "mine").symlink_to(tmp_path / "all" / "version_0", target_is_directory=True)
    (chosen / "again").symlink_to("mine", target_is_directory=True)
    (chosen / "nowhere").symlink_to(tmp_path / "nothing")
    assert list(Scan(chosen).runs()) == ["again/bif", "mine/bif"]
    assert sorted(EventMultiplexer().AddRunsFromDirectory(str(chosen)).Runs()) == ["again", "mine"]
    assert list(Scan(chosen).runs()["mine/bif"].dumps) == [1]


def test_links_that_lead_up_end(tmp_path):
    touch(tmp_path / "a" / "bif", 1)
    touch(tmp_path / "b" / "bif", 2)
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a" / "self").symlink_to(".", target_is_directory=True)
    (tmp_path / "a" / "other").symlink_to(tmp_path / "b", target_is_directory=True)
    (tmp_path / "b" / "back").symlink_to(tmp_path / "a", target_is_directory=True)
    assert list(Scan(tmp_path).runs()) == ["a/bif", "a/other/bif", "b/back/bif", "b/bif"]


def test_a_scan_is_kept_for_some_seconds(tmp_path):
    touch(tmp_path / "a", 1)
    kept, now = Scan(tmp_path, seconds=100), Scan(tmp_path, seconds=0)
    assert len(kept.runs()) == len(now.runs()) == 1
    touch(tmp_path / "b", 1)
    time.sleep(0.01)
    assert (len(kept.runs()), len(now.runs())) == (1, 2)


def test_nobody_waits_for_a_second_scan(tmp_path, monkeypatch):
    touch(tmp_path / "a", 1)
    found = Scan(tmp_path, seconds=0)
    assert list(found.runs()) == ["a"]
    began, released = threading.Event(), threading.Event()

    def slow(folder):
        began.set()
        released.wait(60)
        return iter(())

    monkeypatch.setattr(scan, "_runs", slow)
    looking = threading.Thread(target=found.runs)
    looking.start()
    began.wait()
    assert list(found.runs()) == ["a"]
    assert looking.is_alive(), "told while the folder was still being looked at"
    released.set()
    looking.join()
    assert list(found.runs()) == []


def test_small_things_are_made_once_unless_they_are_too_large_to_keep():
    made = []

    def make():
        made.append(1)
        return "value"

    for size, times in ((10, 1), (1 << 40, 2)):
        made.clear()
        for _ in range(2):
            assert remembered(("test", size), make, lambda _, size=size: size) == "value"
        assert len(made) == times
