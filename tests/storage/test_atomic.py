"""A dump is whole or absent: kill -9 at every system call, a full disk, a folder that cannot be written to."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from archive_examples import make_estimate, make_samples
from bif_lightning.archive.read import open_run
from bif_lightning.archive.write import sweep_temporaries, write_dump, write_samples
from bif_lightning.storage import atomic
from bif_lightning.storage.atomic import FaultTolerantFile

pytestmark = pytest.mark.crash

HELPERS = Path(__file__).parents[1] / "helpers"
COMPILER = shutil.which("gcc") or shutil.which("cc")


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    if COMPILER is None or not sys.platform.startswith("linux"):
        pytest.skip("the kill test compiles a preloaded library: it needs Linux and a C compiler")
    path = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", path, HELPERS / "kill_shim.c", "-ldl"], check=True)
    return path


def kill_at_calls(shim: Path, folder: Path, case: str, half: int, stride: int) -> list[int]:
    command = [sys.executable, HELPERS / "kill_driver.py", shim, folder, case, str(half), str(stride)]
    environment = os.environ | {"LD_PRELOAD": str(shim), "PYTHONPATH": os.pathsep.join([str(HELPERS), *sys.path])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize(("case", "half"), [("fresh", 0), ("fresh", 1), ("replace", 0)])
def test_kill_at_some_calls(shim, tmp_path, case, half):
    calls, trials, renamed = kill_at_calls(shim, tmp_path, case, half, stride=20)
    assert trials > 5
    # Only after the rename is the new dump there: at the folder's sync, and with half also right after the rename.
    assert renamed == 1 + half
    assert calls > 50


@pytest.mark.slow
@pytest.mark.parametrize("half", [0, 1])
def test_kill_at_every_call(shim, tmp_path, half):
    """While a dump takes the place of another, which makes the same calls as where there is none."""
    calls, trials, renamed = kill_at_calls(shim, tmp_path, "replace", half, stride=1)
    assert trials == calls > 50
    assert renamed == 1 + half


def test_stale_temporaries_are_swept_and_living_ones_kept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host, mine = atomic._host(), atomic._PROCESS
    names = {
        f".step=000000001.h5.{host}.{dead.pid}.{mine}.00000000.tmp": True,
        # The same pid as ours, but another process: a container was started again.
        f".step=000000002.h5.{host}.{os.getpid()}.00000000.00000000.tmp": True,
        f".step=000000003.h5.{host}.{os.getpid()}.{mine}.00000000.tmp": False,
        f".step=000000004.h5.{host}.{os.getppid()}.{mine}.00000000.tmp": False,
        f".step=000000005.h5.other-host.1.{mine}.00000000.tmp": False,
        f".samples.h5.other-host.2.{mine}.00000000.tmp": True,
        ".step=mine.tmp": False,
        "step=000000001.h5": False,
    }
    for name in names:
        (tmp_path / name).write_bytes(b"")
    two_days = 2 * 24 * 3600
    old = tmp_path / f".samples.h5.other-host.2.{mine}.00000000.tmp"
    os.utime(old, (old.stat().st_mtime - two_days,) * 2)
    removed = {path.name for path in sweep_temporaries(tmp_path)}
    assert removed == {name for name, stale in names.items() if stale}
    assert {path.name for path in tmp_path.iterdir()} == set(names) - removed
    assert sweep_temporaries(tmp_path / "nowhere") == []


@pytest.fixture
def full_disk():
    """From here on no file of this process may grow beyond 20 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def fails_cleanly(folder: Path, rng, message: str) -> None:
    """A dump too large for the disk fails with every fact in the message, and nothing is left of it."""
    estimate = make_estimate(rng, 200, 100)
    train, query = make_samples("train", 200), make_samples("query", 100)
    with pytest.raises(OSError, match=message) as caught:
        write_dump(folder, estimate, step=1, epoch=0, train=train, query=query)
    text = str(caught.value)
    assert str(folder / "step=000000001.h5") in text
    wanted = re.search(r"it takes about ([\d,]+) bytes, and [\d,]+ bytes are free there", text)
    assert wanted is not None
    assert int(wanted[1].replace(",", "")) >= 2 * 200 * 100 * 4
    assert not list(folder.iterdir())


def test_file_too_large(tmp_path, rng, full_disk):
    fails_cleanly(tmp_path, rng, "Free some space")


def test_full_disk(tmp_path, rng):
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        fails_cleanly(tmp_path, rng, r"No space left.*Free some space")
        train, query = make_samples("train", 3), make_samples("query", 2)
        estimate = make_estimate(rng, 3, 2)
        write_dump(tmp_path, estimate, step=0, epoch=0, train=train, query=query)
        np.testing.assert_array_equal(open_run(tmp_path).influence[0], estimate.influence)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_leaves_nothing_open_and_the_old_dump_whole(tmp_path, rng, request):
    train, query = make_samples("train", 200), make_samples("query", 100)
    old, new = make_estimate(rng, 200, 100), make_estimate(rng, 200, 100)
    write_dump(tmp_path, old, step=1, epoch=0, train=train, query=query)
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match="Free some space"):
        write_dump(tmp_path, new, step=1, epoch=0, train=train, query=query)
    for kind in (h5py.h5f.OBJ_FILE, h5py.h5f.OBJ_DATASET, h5py.h5f.OBJ_GROUP, h5py.h5f.OBJ_ATTR):
        assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, kind) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["step=000000001.h5"]
    np.testing.assert_array_equal(open_run(tmp_path).influence[0], old.influence)


@pytest.mark.slow
def test_no_size_of_the_disk_crashes_the_process(tmp_path):
    """HDF5 reads back what it wrote, and follows the addresses in it: also where the bytes never reached the disk."""
    driver = HELPERS / "full_disk_driver.py"
    environment = os.environ | {"MALLOC_PERTURB_": "165", "PYTHONPATH": os.pathsep.join([str(HELPERS), *sys.path])}
    done = subprocess.run([sys.executable, driver, tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    assert "survived" in done.stdout


def test_a_sink_reads_what_it_was_given(tmp_path):
    """Before an error from the file, with zeros beyond its end; after one also small writes that did not get there."""
    (tmp_path / "file").write_bytes(b"")
    descriptor = os.open(tmp_path / "file", os.O_RDWR)
    sink = FaultTolerantFile(descriptor)
    sink.write(b"abcd")
    sink.seek(2)
    buffer = bytearray(b"garbage")
    assert sink.readinto(buffer) == 7
    assert buffer == b"cd\0\0\0\0\0"
    os.close(descriptor)
    sink._descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    sink.seek(3)
    sink.write(b"XY")
    sink.write(bytes(range(256)) * 257)
    assert isinstance(sink.failure, OSError)
    sink.seek(0)
    sink.readinto(buffer)
    assert buffer == b"abcXY\0\0"
    os.close(sink._descriptor)


def test_folder_that_cannot_be_made(tmp_path, rng):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "bif"
    train, query = make_samples("train", 3), make_samples("query", 2)
    with pytest.raises(NotADirectoryError, match="Choose a dirpath that this process may write to"):
        write_dump(folder, make_estimate(rng, 3, 2), step=0, epoch=0, train=train, query=query)
    with pytest.raises(NotADirectoryError, match=r"samples\.h5"):
        write_samples(folder, train, query)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, a folder where even root makes no file")
def test_read_only_folder(rng):
    train, query = make_samples("train", 3), make_samples("query", 2)
    with pytest.raises(OSError, match=r"could not write /proc/self/step=000000000\.h5"):
        write_dump("/proc/self", make_estimate(rng, 3, 2), step=0, epoch=0, train=train, query=query)


def test_an_interrupt_leaves_nothing(tmp_path, rng, monkeypatch):
    train, query = make_samples("train", 3), make_samples("query", 2)

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_dump(tmp_path, make_estimate(rng, 3, 2), step=0, epoch=0, train=train, query=query)
    assert not list(tmp_path.iterdir())
