"""Open the dumps of a run as one lazy xarray dataset, and the descriptions of its examples."""

import os
from pathlib import Path

import xarray as xr

from bif_lightning.archive.read.examples import read_samples, stored_digest
from bif_lightning.archive.read.index import Index, dump_paths, read_indices, skip
from bif_lightning.archive.read.run import assemble
from bif_lightning.archive.schema import INTEGRATED_FILE, SAMPLES_FILE
from bif_lightning.exceptions import UnreadableFileError
from bif_lightning.results.examples import Samples
from bif_lightning.storage.places import local_path

_NO_DUMPS = {
    SAMPLES_FILE: "describes the examples of a run",
    INTEGRATED_FILE: "has the influence over the whole training of a run",
}


def open_run(directory: str | os.PathLike[str]) -> xr.Dataset:
    """Open all dumps of a run as one dataset, step x train x query. Matrices stay on disk until they are indexed.

    No file is kept open: each access opens the dumps of the selected steps, reads the selected part and closes them. A
    run can therefore be read while it is written. Open it again to see later dumps.

    Args:
        directory: the folder of the dumps, or a single dump.

    Returns:
        A dataset with dims step, train, query and

        - `influence`, `correlation`, `conditioned` if computed, `influence_draws` of `ControlledSGLD`, and their
          `_standard_error` (step, train, query); the attribute `sign` gives the meaning of the sign;
        - `integrated` and `integrated_standard_error` (train, query): the influence over the whole training, if the
          folder has an up-to-date `integrated.h5`; the function `integrated` gives the same for all steps;
        - `train_loss`, `train_std`, `query_loss`, `query_std`: mean and standard deviation over the draws, nats;
        - `<name>_influence`, `<name>_correlation`, ..., `<name>_mean`, `<name>_std` of each further observable;
        - label_influence, label_correlation (step, train_group, query_group), if there are label means;
        - along step: rhat, ess, llc, llc_standard_error, drift, score_agreement, group_agreement, noise_ratio,
          llc_ratio, control_agreement, snapshot_loss, seconds, steps, workers, extra_bytes, num_chains,
          num_divergences, divergences, notes, settings_json, verdict, verdict_reason; ridge and effective_dimension if
          any;
        - `top_stability` (step, query);
        - `metrics` (step, metric), `loss_trace` and `distance_trace` (step, chain, draw);
        - coordinates step, epoch, train, query (row numbers), train_id, train_index, train_label, and of query.

        Values that one dump lacks are NaN; variables that no dump has are absent.

    Raises:
        FileNotFoundError: the path does not exist, or has no dump.
        UnreadableFileError: none of the dumps can be read.

    Warns:
        SkippedDumpWarning: a dump is damaged, has another format, a later version, or other examples; it is skipped.

    >>> from bif_lightning import open_run
    >>> run = open_run(folder)
    >>> run.correlation.sel(query=3, step=200).shape
    (24,)
    >>> run.sizes["step"], run.train_loss.dims
    (2, ('step', 'train'))
    """
    folder, paths = _find_dumps(local_path(directory, "the run", access="read"))
    indices = _of_one_run(read_indices(paths), folder)
    if not indices:
        raise UnreadableFileError(f"none of the {len(paths)} dumps in {folder} can be read; the warnings say why")
    return assemble(indices, folder)


def open_samples(directory: str | os.PathLike[str]) -> tuple[Samples, Samples]:
    """Read the descriptions of the train and query examples of a run, with texts and thumbnails.

    Args:
        directory: the folder of the dumps.

    Raises:
        FileNotFoundError: the folder has no samples.h5.
        UnreadableFileError: it is damaged, has another format, or has a later version.

    >>> from bif_lightning import open_samples
    >>> train, query = open_samples(folder)
    >>> len(train), query.ids[0], train.label_names
    (24, 'query-0', ('cat', 'dog'))
    """
    path = local_path(directory, "the run", access="read") / SAMPLES_FILE
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give the folder that holds the dumps of a run")
    return read_samples(path, thumbnails=True)


def _find_dumps(path: Path) -> tuple[Path, list[Path]]:
    if path.is_file() and path.name in _NO_DUMPS:
        raise FileNotFoundError(f"{path} is no dump: it {_NO_DUMPS[path.name]}; give its folder, {path.parent}")
    if path.is_file():
        return path.parent, [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist; give the folder that holds the dumps of a run")
    paths = dump_paths(path)
    if not paths:
        nearby = sorted(
            {str(found.parent) for depth in ("*", "*/*", "*/*/*") for found in path.glob(f"{depth}/step=*.h5")}
        )
        hint = (
            f"there are some in {', '.join(nearby[:5])}: open one of these" if nearby else "has a snapshot been taken?"
        )
        raise FileNotFoundError(f"{path} has no dumps (step=000000000.h5 and so on); {hint}")
    return path, paths


def _of_one_run(indices: list[Index], folder: Path) -> list[Index]:
    if not indices:
        return []
    # Without samples.h5, for instance if a dump was copied alone, the last dump determines the examples of the run.
    run = _digest_of_run(folder) or indices[-1].samples
    for index in indices:
        if index.samples != run:
            skip(index.path, "it has other examples than the rest of the run (its samples_sha256 differs)")
    return [index for index in indices if index.samples == run]


def _digest_of_run(folder: Path) -> str | None:
    path = folder / SAMPLES_FILE
    if not path.exists():
        return None
    try:
        return stored_digest(path)
    except (OSError, UnreadableFileError) as error:
        skip(path, error)
        return None
