"""Write a dump on disks of every size: python full_disk_driver.py FOLDER. A crash of HDF5 ends this process."""

import resource
import signal
import sys
from pathlib import Path

import numpy as np

from archive_examples import make_estimate, make_samples
from bif_lightning.archive.write import write_dump


def main(folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    arguments = {"step": 1, "epoch": 0, "train": make_samples("train", 12), "query": make_samples("query", 5)}
    estimate = make_estimate(np.random.default_rng(0), 12, 5)
    whole = write_dump(folder, estimate, **arguments).stat().st_size
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    failures = 0
    for limit in range(0, whole, 397):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            write_dump(folder, estimate, **arguments)
        except OSError:
            failures += 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert failures == len(range(0, whole, 397)), failures
    assert [path.name for path in folder.iterdir()] == ["step=000000001.h5"]
    print("survived", failures)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
