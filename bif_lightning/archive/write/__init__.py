"""Write samples.h5, dumps and integrated.h5 atomically. SPEC.md defines their content."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from bif_lightning.archive.examples_file import SIDES, digest, samples_content
from bif_lightning.archive.read.examples import read_samples, stored_digest
from bif_lightning.archive.schema import SAMPLES_FILE, dump_name
from bif_lightning.archive.write.content import stamp, write_content
from bif_lightning.archive.write.dump import dump_content
from bif_lightning.archive.write.integrated_file import write_integrated as write_integrated
from bif_lightning.archive.write.validate import check_estimate
from bif_lightning.results.estimate import Estimate
from bif_lightning.results.examples import Samples
from bif_lightning.storage.atomic import sweep_temporaries as sweep_temporaries
from bif_lightning.storage.places import local_path


def write_samples(directory: str | os.PathLike[str], train: Samples, query: Samples) -> Path:
    """Write `samples.h5`, once for each run; an existing file of the same examples is left unchanged.

    Args:
        directory: folder of the run's dumps; created if missing.
        train, query: descriptions of the rows and columns of every dump in the folder.

    Returns:
        The path of the file.

    Raises:
        ValueError: the folder holds the samples of another run, or columns have different lengths.
        OSError: the file cannot be written; no partial file remains.

    >>> from bif_lightning import write_samples
    >>> write_samples(new_folder, train, query).name  # Samples of both axes
    'samples.h5'
    """
    path = local_path(directory, "directory") / SAMPLES_FILE
    content = samples_content(train, query, stamp())
    if path.exists():
        if stored_digest(path) != digest(train, query):
            raise ValueError(
                f"{path} belongs to another run: {_difference(path, train, query)}. A folder holds dumps of the same "
                "examples only; choose another dirpath"
            )
        return path
    write_content(path, content)
    return path


def write_dump(
    directory: str | os.PathLike[str],
    estimate: Estimate,
    *,
    step: int,
    epoch: int,
    train: Samples,
    query: Samples,
    metrics: Mapping[str, float] = {},
    hyperparameters: Mapping[str, Any] = {},
    provenance: Mapping[str, Any] = {},
    precision: Literal["full", "10bit"] = "full",
) -> Path:
    """Write the dump of one snapshot, such as `step=000006000.h5`. An existing dump of the step is replaced atomically.

    Args:
        directory: folder of the run's dumps; created if missing.
        estimate: the estimate at the snapshot.
        step, epoch: global step and epoch of the snapshot, counted from 0 as by the Trainer.
        train, query: descriptions of the rows and columns.
        metrics: numbers of the training run at this step, such as the validation loss.
        hyperparameters, provenance: records to store as JSON; values that JSON cannot hold are stored as their `str`.
        precision: "10bit" rounds matrices and traces to 10 mantissa bits (relative error at most 2⁻¹¹, far below
            their Monte Carlo error). It makes files about 40 % smaller; the dtype remains float32.

    Returns:
        The path of the file.

    Raises:
        ValueError: the samples do not match the estimate, a matrix has a wrong shape or only NaN, the name of an
            observable cannot be used, or `precision` is unknown.
        OSError: the file cannot be written (disk full, no permission). No partial file remains, and an existing dump of
            the step is unchanged.

    >>> from bif_lightning import open_run, write_dump
    >>> path = write_dump(new_folder, snapshot, step=300, epoch=0, train=train, query=query, metrics={"val/loss": 0.5})
    >>> path.name, open_run(path).metrics.sel(metric="val/loss").item()
    ('step=000000300.h5', 0.5)
    """
    if precision not in ("full", "10bit"):
        raise ValueError(f"precision is {precision!r}; it must be 'full' or '10bit'")
    check_estimate(estimate, train, query)
    content = dump_content(
        estimate,
        train=train,
        query=query,
        attrs={"global_step": step, "epoch": epoch, **stamp()},
        metrics=metrics,
        records={"hyperparameters": hyperparameters, "provenance": provenance},
        precision=precision,
    )
    path = local_path(directory, "directory") / dump_name(step)
    write_content(path, content)
    return path


def _difference(path: Path, train: Samples, query: Samples) -> str:
    stored = read_samples(path, thumbnails=False)
    for side, there, here in zip(SIDES, stored, (train, query), strict=True):
        if len(there) != len(here):
            return f"it has {len(there)} {side} examples, this run has {len(here)}"
        for row, (old, new) in enumerate(zip(there.ids, here.ids, strict=True)):
            if old != new:
                return f"{side} example {row} is {old!r} there and {new!r} here"
    return "their ids are equal, but an index, label, label name or text differs"
