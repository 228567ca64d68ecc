"""Forks a writer for every system call of a dump, has it killed there, and checks what it left.

    LD_PRELOAD=shim.so python kill_driver.py SHIM FOLDER {fresh,replace} {0,1} STRIDE

Prints the number of calls of one write, the trials, and in how many of these the new dump was there.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

import numpy as np

from archive_examples import make_estimate, make_samples
from bif_lightning.archive.read import open_run
from bif_lightning.archive.write import sweep_temporaries, write_dump, write_samples

N, Q = 5, 3
TRAIN, QUERY = make_samples("train", N), make_samples("query", Q)


def write(folder: Path, estimate, step: int) -> Path:
    return write_dump(folder, estimate, step=step, epoch=0, train=TRAIN, query=QUERY)


def killed_write(shim, folder: Path, estimate, call: int, half: int) -> None:
    child = os.fork()
    if child == 0:
        # The folder's own path ends here too, so that its sync is counted, and no earlier dump is written now.
        shim.arm(str(folder).encode(), call, half)
        write(folder, estimate, 2)
        os._exit(7)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"call {call} never came: {status}"
    assert os.WTERMSIG(status) == signal.SIGKILL


def main(shim_path: str, folder: Path, case: str, half: int, stride: int) -> None:
    shim = ctypes.CDLL(shim_path)
    rng = np.random.default_rng(0)
    old, new = make_estimate(rng, N, Q), make_estimate(rng, N, Q)
    write_samples(folder, TRAIN, QUERY)
    earlier = {path: path.read_bytes() for path in (write(folder, old, step) for step in (0, 1))}
    earlier[folder / "samples.h5"] = (folder / "samples.h5").read_bytes()
    shim.arm(str(folder).encode(), -1, 0)
    final = write(folder, old, 2)
    calls = shim.disarm()
    whole = final.read_bytes()
    renamed, trials = 0, 0
    for call in sorted({*range(0, calls, stride), *range(calls - 4, calls)}):
        final.unlink(missing_ok=True)
        if case == "replace":
            final.write_bytes(whole)
        killed_write(shim, folder, new, call, half)
        trials += 1
        assert {path: path.read_bytes() for path in earlier} == earlier, f"call {call}: an earlier file changed"
        left = {path.name for path in folder.iterdir()} - {path.name for path in (*earlier, final)}
        assert all(name.startswith(".step=000000002") and name.endswith(".tmp") for name in left), left
        assert {path.name for path in sweep_temporaries(folder)} == left
        assert final.exists() or case == "fresh", f"call {call}: the old dump of this step is gone"
        if final.exists():
            values = open_run(folder).influence.sel(step=2).values
            is_new = np.array_equal(values, new.influence)
            assert is_new or np.array_equal(values, old.influence), f"call {call}: torn"
            renamed += is_new
    sys.stdout.write(f"{calls} {trials} {renamed}\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
