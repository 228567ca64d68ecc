"""Influence at saved checkpoints and at snapshots of a training run, with the same dumps as from the callback."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from bif_lightning.callback import BIFCallback
from bif_lightning.config import Chains
from bif_lightning.data.rows import rows_of
from bif_lightning.exceptions import DiskFullError
from bif_lightning.offline.checkpoint_source import CheckpointSource
from bif_lightning.offline.fit_start import at_fit_start, quiet_trainer
from bif_lightning.offline.replay import AttributionReport, OfflineRunner
from bif_lightning.results.settings import decode
from bif_lightning.storage.places import local_path
from bif_lightning.trainer.checkpoints import find_checkpoints
from bif_lightning.trainer.failures import is_full
from bif_lightning.trainer.progress import OfflineProgress, fits_bars
from bif_lightning.trainer.snapshot_files import FOLDER, RunManifest, read_manifest

_OF_TRAINING = (
    "every_n_train_steps", "every_n_epochs", "at_steps", "num_snapshots", "at_start", "at_end", "budget", "launch",
    "on_error", "verify_restore", "name",
)  # fmt: skip


def attribute(
    module: pl.LightningModule,
    checkpoints: str | Path | Sequence[str | Path],
    train: Any,
    query: Any = None,
    *,
    data: Any = None,
    dirpath: str | Path = "attribution/bif",
    trainer: pl.Trainer | None = None,
    dry_run: bool = False,
    **settings: Any,
) -> AttributionReport:
    """Estimate influence at saved checkpoints, as BIFCallback would have done during training.

    With the same device, precision and settings, the dumps are bitwise those of the callback, except for logged values.
    Existing dumps are kept. Therefore an interrupted call can be repeated to continue, and several calls on one folder
    share the work (`distributed.leases`). A checkpoint that fails is skipped, and listed in the report.

    Args:
        module: constructed with its training arguments; afterwards it holds the weights of the last checkpoint.
        checkpoints: Lightning checkpoints or plain state dicts (with the step in their name, as in step=1000), sharded
            checkpoints (folders of torch.distributed.checkpoint, from any number of ranks), or folders of these. They
            are read with weights_only=True.
        train, query: as in BIFCallback: datasets, or indices into the training data; query=None for train x train.
        data: the training data, from which minibatches are drawn: a DataLoader, LightningDataModule or map-style
            dataset. None if the dataset `train` is the training data.
        dirpath: folder of the dumps. Point TensorBoard at its parent folder.
        trainer: Trainer with the devices, precision and strategy to use; None for one device. Nothing is trained. With
            several processes, each calls this function, as under torchrun, `fabric run` or srun.
        dry_run: check the inputs, list the checkpoints, and forecast time and memory, without estimates or files.
        **settings: arguments of BIFCallback about the estimate: sampler, chains, loss_fn, params, observables,
            per_token, describe, precision and so on.

    Raises:
        FileNotFoundError: a path does not exist, or contains no checkpoint.
        ValueError, TypeError: invalid arguments, two checkpoints of one step, or a folder with dumps of other data or
            settings.

    >>> from bif_lightning import attribute
    >>> report = attribute(
    ...     module, checkpoint, data, data[:6], loss_fn=loss_fn, sampler=sampler, chains=chains, dirpath=new_folder
    ... )
    >>> report.written
    (200,)
    """
    _check_settings(settings)
    listed = [checkpoints] if isinstance(checkpoints, str | Path) else checkpoints
    find_checkpoints(listed)
    callback = BIFCallback(train, query, dirpath=dirpath, verify_restore="never", **settings)
    return _run_offline(module, callback, CheckpointSource(listed), _training_data(data, train), trainer, dry_run)


def watch(
    module: pl.LightningModule,
    directory: str | Path,
    train: Any = None,
    query: Any = None,
    *,
    data: Any,
    trainer: pl.Trainer | None = None,
    idle: float | None = None,
    **settings: Any,
) -> AttributionReport:
    """Compute the dumps of the snapshots that `BIFCallback(launch="snapshot")` writes, until training ends.

    Any number of workers on any machines may watch one folder. Each takes the next free snapshot, and takes over
    snapshots of workers that died. The dumps are bitwise those that the callback writes itself.

    Args:
        module: constructed with its training arguments.
        directory: the callback's folder, which contains the snapshots and receives the dumps.
        train, query: as in the callback; None if the callback was given indices into the training data.
        data, trainer: as in `attribute`.
        idle: stop after this many seconds without work; None waits for the end of training.
        **settings: settings of the callback that cannot be stored: loss_fn, observables, describe, collate_fn,
            tokenizer, and training_data if it is a dataset. All others are read from the folder; if given, they must be
            the same.

    Raises:
        FileNotFoundError: no training run uses this folder.
        ValueError, TypeError: as in `attribute`.

    >>> import lightning as L
    >>> from torch.utils.data import DataLoader
    >>> from bif_lightning import BIFCallback, watch
    >>> bif = BIFCallback(
    ...     [0, 1, 2], at_steps=[1], at_end=False, launch="snapshot", dirpath=new_folder, sampler=sampler, chains=chains
    ... )
    >>> trainer = L.Trainer(
    ...     max_steps=2, callbacks=[bif], accelerator="cpu", logger=False, enable_checkpointing=False,
    ...     enable_progress_bar=False, enable_model_summary=False,
    ... )
    >>> trainer.fit(module, DataLoader(data, batch_size=8))  # in one process
    >>> watch(module, new_folder, data=data).written  # in another, during or after the training
    (1,)
    """
    _check_settings(settings)
    directory = local_path(directory, "directory")
    manifest = read_manifest(directory)
    if manifest is None:
        raise FileNotFoundError(
            f"{directory} has no {RunManifest.NAME}: no BIFCallback(launch='snapshot') has started there; give the "
            "folder of its dumps"
        )
    train = manifest.train if train is None else train
    query = manifest.query if query is None else query
    if train is None:
        raise ValueError("the callback was given datasets; pass the same datasets as train and query")
    callback = BIFCallback(
        train, query, dirpath=directory, verify_restore="never", **(_stored_settings(manifest) | settings)
    )
    source = CheckpointSource([directory / FOLDER], ends=directory / FOLDER, idle=idle)
    return _run_offline(module, callback, source, _training_data(data, train), trainer, dry_run=False)


def _run_offline(
    module: pl.LightningModule,
    callback: BIFCallback,
    source: CheckpointSource,
    data: Any,
    trainer: pl.Trainer | None,
    dry_run: bool,
) -> AttributionReport:
    directory = local_path(cast(str, callback.dirpath), "dirpath")
    # Logs go where a fit would write them: to the parent folder of the dumps.
    logs = bool(callback.options.views) and not dry_run and trainer is None
    logger = TensorBoardLogger(directory.parent, name="", version="") if logs else False
    # Without a progress bar of the Trainer, progress goes to its log as lines.
    progress = OfflineProgress(terminal=fits_bars() and (trainer is None or trainer.progress_bar_callback is not None))
    runner = OfflineRunner(callback.request, callback.options, directory, source, dry_run=dry_run, progress=progress)
    try:
        at_fit_start(trainer or quiet_trainer(logger=logger), module, data, runner.run, progress)
    except OSError as error:
        if is_full(error) and str(directory.parent) not in str(error):  # from a logger, without its path
            raise DiskFullError(error.errno, f"no space for the logs in {directory.parent}: {error}") from error
        raise
    return runner.result()


def _check_settings(settings: Mapping[str, Any]) -> None:
    if refused := sorted(set(settings) & set(_OF_TRAINING)):
        raise ValueError(
            f"{', '.join(refused)} applies to snapshots during training; here each checkpoint is a snapshot: leave it "
            "out"
        )


def _stored_settings(manifest: RunManifest) -> dict[str, Any]:
    """Keyword arguments of BIFCallback from a run's manifest."""
    sampler, chains = manifest.settings["sampler"], manifest.settings["chains"]
    if isinstance(sampler, dict):
        sampler = decode(cast(dict[str, Any], sampler))
    stored = {"sampler": sampler, "chains": None if chains is None else Chains(**chains)}
    return stored | dict(manifest.options) | {"params": manifest.settings["params"] or None}


def _training_data(data: Any, train: Any) -> Any:
    if data is None and rows_of(train) is not None:
        raise ValueError("train is given as indices; pass the training data that they refer to as `data`")
    found = train if data is None else data
    return found if isinstance(found, DataLoader | pl.LightningDataModule) else DataLoader(found, batch_size=64)
