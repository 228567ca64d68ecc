"""Influence at saved checkpoints and at the snapshots of a training run, as the callback would have written it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from bif_lightning.callback import BIFCallback
from bif_lightning.config import Chains
from bif_lightning.exceptions import DiskFullError
from bif_lightning.offline.checkpoint_source import CheckpointSource
from bif_lightning.offline.fit_start import at_fit_start, quiet_trainer
from bif_lightning.offline.replay import AttributionReport, OfflineRunner
from bif_lightning.results.settings import decode
from bif_lightning.trainer.checkpoints import find_checkpoints
from bif_lightning.trainer.failures import is_full
from bif_lightning.trainer.problem import is_indices
from bif_lightning.trainer.progress import OfflineProgress, fits_bars
from bif_lightning.trainer.snapshot_files import FOLDER, RunManifest, left_by

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
    """Estimate influence at each of these checkpoints, as BIFCallback would have done while they were written.

    The dumps are those of the callback, bit for bit where device, precision and settings are the same, but for what
    the training logged. A dump that is there already is left as it is, so that a call that was cut short goes on where
    it stopped, and several calls on one folder share the work (`distributed.leases`). A checkpoint that fails is
    skipped, and named in the result.

    Args:
        module: constructed with its training arguments; afterwards it holds the weights of the last checkpoint.
        checkpoints: files of Lightning or plain state dicts (with step=1000 in their name), sharded checkpoints
            (folders of torch.distributed.checkpoint, from any number of ranks), or folders of these. They are read with
            weights_only=True.
        train, query: as of BIFCallback: datasets, or indices into the training data; query=None for train x train.
        data: the training data, from which minibatches are drawn: a DataLoader, LightningDataModule or map-style
            dataset. None where `train` is a dataset, and all there is.
        dirpath: folder of the dumps. TensorBoard reads the folder above it.
        trainer: for other devices, precision or strategy than one device by default; nothing is trained. With several
            processes every one calls this function, as torchrun, `fabric run` or srun have them do.
        dry_run: look at everything and forecast time and memory, but estimate and write nothing.
        **settings: what BIFCallback takes to say what is measured: sampler, chains, loss_fn, params, observables,
            per_token, describe, precision and so on.

    Raises:
        FileNotFoundError: a path that is not there, or no checkpoint in it.
        ValueError, TypeError: arguments that cannot work, two checkpoints of one step, or a folder with dumps of other
            data or settings.

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
    asked = BIFCallback(train, query, dirpath=dirpath, verify_restore="never", **settings)
    return _replayed(module, asked, CheckpointSource(listed), _training_data(data, train), trainer, dry_run)


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
    """Turn the snapshots that `BIFCallback(launch="snapshot")` leaves into dumps, as they appear, until training ends.

    Any number of workers may watch one folder, on any machine that sees it: each takes the next snapshot that none
    works on, and takes over those of workers that died. The dumps are bitwise those that the callback writes itself.

    Args:
        module: made as for the training.
        directory: the callback's folder; it holds the snapshots, and gets the dumps.
        train, query: as of the callback; None for the rows of the training data that it was given.
        data, trainer: as of `attribute`.
        idle: stop after this many seconds in which nothing was to be done; None waits for the end of the training.
        **settings: those of the callback that cannot be stored: loss_fn, observables, describe, collate_fn,
            tokenizer. All others are read from the folder, and may be given only as they were.

    Raises:
        FileNotFoundError: no training has begun in this folder.
        ValueError, TypeError: as of `attribute`.

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
    directory = Path(directory)
    left = left_by(directory)
    if left is None:
        raise FileNotFoundError(
            f"{directory} has no {RunManifest.NAME}: no BIFCallback(launch='snapshot') has begun there; give the "
            "folder of its dumps"
        )
    train = left.train if train is None else train
    query = left.query if query is None else query
    if train is None:
        raise ValueError("the callback was given datasets; pass the same as train and query")
    asked = BIFCallback(train, query, dirpath=directory, verify_restore="never", **(_settings_of(left) | settings))
    source = CheckpointSource([directory / FOLDER], ends=directory / FOLDER, idle=idle)
    return _replayed(module, asked, source, _training_data(data, train), trainer, dry_run=False)


def _replayed(
    module: pl.LightningModule,
    asked: BIFCallback,
    source: CheckpointSource,
    data: Any,
    trainer: pl.Trainer | None,
    dry_run: bool,
) -> AttributionReport:
    directory = Path(cast(str, asked.dirpath))
    # The loggers are where a fit would have put them: above the dumps.
    logs = bool(asked.wanted.views) and not dry_run and trainer is None
    logger = TensorBoardLogger(directory.parent, name="", version="") if logs else False
    # A Trainer that shows nothing gets lines, which go wherever its log goes.
    overview = OfflineProgress(terminal=fits_bars() and (trainer is None or trainer.progress_bar_callback is not None))
    replay = OfflineRunner(asked.request, asked.wanted, directory, source, dry_run=dry_run, overview=overview)
    try:
        at_fit_start(trainer or quiet_trainer(logger=logger), module, data, replay.run, overview)
    except OSError as error:
        if is_full(error) and str(directory.parent) not in str(error):  # a logger, which does not say where
            raise DiskFullError(error.errno, f"no room for what is logged to {directory.parent}: {error}") from error
        raise
    return replay.result()


def _check_settings(settings: Mapping[str, Any]) -> None:
    if refused := sorted(set(settings) & set(_OF_TRAINING)):
        raise ValueError(
            f"{', '.join(refused)} says when snapshots are taken, or how training goes on after them; here the "
            "checkpoints say when: leave it out"
        )


def _settings_of(left: RunManifest) -> dict[str, Any]:
    """Keyword arguments of BIFCallback, from what one left."""
    sampler, chains = left.settings["sampler"], left.settings["chains"]
    if isinstance(sampler, dict):
        sampler = decode(cast(dict[str, Any], sampler))
    stored = {"sampler": sampler, "chains": None if chains is None else Chains(**chains)}
    return stored | dict(left.options) | {"params": left.settings["params"] or None}


def _training_data(data: Any, train: Any) -> Any:
    if data is None and is_indices(train):
        raise ValueError("train is given as indices; pass the training data that they count in as `data`")
    found = train if data is None else data
    return found if isinstance(found, DataLoader | pl.LightningDataModule) else DataLoader(found, batch_size=64)
