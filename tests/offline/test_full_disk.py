"""A disk that fills under training and under a worker: nothing half, nothing lost; with room, work goes on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.crash


@pytest.mark.slow
def test_training_goes_on_and_workers_end_cleanly(tmp_path: Path) -> None:
    """In a mount namespace of its own, with a disk of 2 MB (see full_disk_run.py)."""
    disk, plain = tmp_path / "disk", tmp_path / "plain"
    disk.mkdir()
    plain.mkdir()
    own = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=2m tmpfs "$0" && exec "$@"', str(disk)]
    tried = subprocess.run([*own, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no disk of its own can be mounted here: {tried.stderr.strip()}")
    done = subprocess.run(
        [*own, sys.executable, str(Path(__file__).parents[1] / "helpers" / "full_disk_run.py"), str(disk), str(plain)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "helpers"), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = (
        r"could not write \S+/step=000000002\.h5 \(No space left on device\): it takes about [\d,]+ bytes, and [\d,]+"
    )
    assert re.search(said, done.stderr)
