"""BIFCallback: Lightning's hooks, the schedule of snapshots, and the state in checkpoints."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_warn

from bif_lightning.config import Chains, Sampler
from bif_lightning.data.dataset import Collate
from bif_lightning.data.describe import Describe
from bif_lightning.data.token_texts import Decoder
from bif_lightning.exceptions import PeerFailedError, PreemptedError
from bif_lightning.losses.derived.derive import PerSample
from bif_lightning.losses.observables import LossFn, Observable
from bif_lightning.results.estimate import Estimate
from bif_lightning.results.settings import ResolvedSettings
from bif_lightning.sampling.context import ranks_of
from bif_lightning.storage.places import local_path
from bif_lightning.tensorboard.summaries import VIEWS, check_summaries
from bif_lightning.trainer.columns import declare_columns
from bif_lightning.trainer.failures import is_fatal, is_file_error, is_preemption
from bif_lightning.trainer.interrupts import defer_interrupts
from bif_lightning.trainer.outputs import Precision
from bif_lightning.trainer.packages import served_by_both
from bif_lightning.trainer.problem import AttributionRequest, check_request
from bif_lightning.trainer.run_folder import LogFolder, log_folder, own_folder
from bif_lightning.trainer.schedule import (
    Schedule,
    averages_weights,
    is_extra_epoch,
    is_last_epoch,
    of_training,
    waits_for_the_clock,
)
from bif_lightning.trainer.session import Session, Verify
from bif_lightning.trainer.setup import SnapshotOptions, check_options, check_same, open_session, settings_of
from bif_lightning.trainer.support import check_trainer
from bif_lightning.trainer.time_budget import budget_of


class BIFCallback(pl.Callback):
    """Snapshots the weights while a Trainer trains, and estimates which training examples shape which queries.

    At each snapshot, short SGLD chains around the current weights w* sample from
    p(w) ∝ exp(−nβ·L(w) − (γ/2)·‖w − w*‖²); influence is B[i, j] = −Cov(l_i, φ_j) (arXiv 2509.26544), the
    correlation R[i, j] = +Corr(l_i, φ_j). Each snapshot becomes one HDF5 dump and one step in TensorBoard. Training
    stays bitwise the same as without the callback.

    Args:
        train: the attribution set (rows): a map-style dataset, a Hugging Face `datasets.Dataset`, or indices into
            the Trainer's own training data, also as a mask of True and False.
        query: the query set (columns), in the same forms; None for train x train.
        every_n_train_steps: a snapshot at every multiple of this many optimizer steps.
        every_n_epochs: a snapshot at the end of every n-th epoch.
        at_steps: snapshots at these optimizer steps, often log-spaced; `at_end` adds one after the last batch.

        num_snapshots: so many snapshots over the whole training, at equal distances of √step: of 600 steps 8 are at 9,
            38, 84, 150, 234, 338, 459 and 600. They serve `bif_lightning.integrated`. Without any interval it is 8,
            or, where the number of steps is not known before training starts, a snapshot at each epoch's end. A
            resumed run takes those of the whole training; with another max_epochs, those to come are spread anew.
        at_start: a snapshot before the first batch.
        at_end: a snapshot after the last one.
        budget: largest share of training time for the callback, such as 0.1. A snapshot that would exceed it is
            skipped, except at_start, at_steps and at_end. None for no limit.
        chains: number and length of the chains, minibatch size, seed; None for the sampler's default.
        sampler: how to draw: `SGLD`, `ControlledSGLD`, `Pairs` or `Subspace`, with settings; "auto" is SGLD with
            settings measured at the first snapshot and kept. None is `ControlledSGLD()`, or "auto" for single tokens
            and sharded modules.
        observables: further quantities of the query set to measure beside its losses (see `Observable`).
        params: name patterns of the parameters to sample (weight-restricted influence); None for all.
        loss_fn: (module, batch) -> Tensor[batch], or [batch, token], or (losses, mask) of that shape with False for
            tokens without a loss (summed over tokens). It gets batches of train, of query and of the training data, as
            training_step does: collated, in the collection of the loaders, transferred by the hooks. None derives the
            loss of each example from `training_step` and checks it on examples, or refuses and says what to pass.
        per_sample: of derived losses: "mean" is what `training_step` returns for an example alone; "sum" multiplies
            that by its divisor (tokens, class weight), which is its share in the objective of a batch.
        collate_fn: makes a batch of a list of examples, of train, of query and of the training data; None for that of
            the training loader.
        training_data: the data that L(w) is the mean loss over, in the forms of train; None for the rows that the
            Trainer draws, or for train where it has no such rows (a stream, several loaders).
        describe: item -> mapping with any of id, label, label_name, label_names, text, thumbnail, where the dataset
            does not provide them.
        eval_batch_size: examples in a batch where losses are measured.
        dirpath: folder of the dumps. None for one beside the first logger's files, which no other run has:
            <save_dir>/<name>/<version>/bif. Where no logger has a version, the next free one is taken, as in
            lightning_logs/version_0/bif. A resumed run keeps its folder, unless its logger has a new version.
        name: of the folder, and of the callback's state where a Trainer has several callbacks of this class.
        log: write to the Trainer's loggers; False for dumps only.
        views: what loggers get: numbers, and pictures and tables if they take any (docs/guides/loggers.md).
        pairs: up to 50 (train id, query id) that loggers show as separate curves.
        store_traces: keep every draw in the dumps.
        precision: "10bit" rounds the matrices in the dumps to 10 mantissa bits, far finer than their error.
        on_error: "raise" stops training when a snapshot fails; "warn" goes on without that snapshot. A snapshot that
            changed the training always stops it (`exceptions.TrainingDisturbedError`).
        verify_restore: at which snapshots to verify, by hashes, that the training is unchanged.
        per_token: also estimate influence token by token, from token losses that loss_fn returns. Dumps keep these at
            every draw; `bif_lightning.open_tokens` makes any block of the matrix. sampler=None then means "auto".
        tokenizer: an object with decode([id, ...]) -> str, for the token texts of examples with "input_ids".
        launch: "inline" estimates while training waits. "snapshot" only writes the weights to a file and lets training
            go on; `bif-lightning watch DIR` on spare devices makes the same dumps from them.
        allow_untested: also run with strategies and precisions that were not tested, and with losses whose gradient
            disagrees with finite differences.

    Raises:
        MisconfigurationException, ValueError, TypeError: settings that cannot work, here or in `setup`. Failures of
            snapshots are in `bif_lightning.exceptions`.

    >>> import lightning as L
    >>> from torch.utils.data import DataLoader
    >>> from bif_lightning import SGLD, BIFCallback, Chains
    >>> bif = BIFCallback(
    ...     train=data, query=data[:6], every_n_train_steps=2, at_end=False, dirpath=new_folder,
    ...     sampler=SGLD(step_size=1e-3, inverse_temperature=100.0, localization=10.0),
    ...     chains=Chains(num_chains=2, num_draws=4),
    ... )
    >>> trainer = L.Trainer(
    ...     max_steps=2, callbacks=[bif], accelerator="cpu", logger=False, enable_checkpointing=False,
    ...     enable_progress_bar=False, enable_model_summary=False,
    ... )
    >>> trainer.fit(module, DataLoader(data, batch_size=8))
    >>> bif.latest.influence.shape, sorted(path.name for path in new_folder.iterdir())
    ((24, 6), ['samples.h5', 'step=000000002.h5'])
    """

    def __init__(
        self,
        train: Any,
        query: Any = None,
        *,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        at_steps: Sequence[int] | None = None,
        num_snapshots: int | None = None,
        at_start: bool = False,
        at_end: bool = True,
        budget: float | None = None,
        chains: Chains | None = None,
        sampler: Sampler | Literal["auto"] | None = None,
        observables: Sequence[Observable] = (),
        params: str | Sequence[str] | None = None,
        loss_fn: LossFn | None = None,
        per_sample: PerSample = "mean",
        collate_fn: Collate | None = None,
        describe: Describe | None = None,
        eval_batch_size: int = 256,
        dirpath: str | os.PathLike[str] | None = None,
        name: str = "bif",
        log: bool = True,
        views: Sequence[str] = VIEWS,
        pairs: Sequence[tuple[str, str]] = (),
        store_traces: bool = False,
        precision: Precision = "full",
        on_error: Literal["raise", "warn"] = "raise",
        verify_restore: Verify = "first",
        per_token: bool = False,
        tokenizer: Decoder | None = None,
        launch: Literal["inline", "snapshot"] = "inline",
        allow_untested: bool = False,
        training_data: Any = None,
    ) -> None:
        cast(Any, self).__class__ = served_by_both(type(self))
        for role, data in (("train", train), ("query", query), ("training_data", training_data)):
            if role == "train" or data is not None:
                check_request(data, role)
        check_summaries(views, pairs)
        check_options(
            on_error=on_error, verify_restore=verify_restore, precision=precision, launch=launch, per_token=per_token,
            per_sample=per_sample, own_loss=loss_fn is not None, limited=budget is not None,
        )  # fmt: skip
        self.budget = budget_of(budget)
        self.triggers = Schedule(
            every_n_train_steps=every_n_train_steps, every_n_epochs=every_n_epochs, at_steps=at_steps,
            num_snapshots=num_snapshots,
            at_start=at_start, at_end=at_end,
        )  # fmt: skip
        self.request = AttributionRequest(
            train=train,
            query=query,
            observables=observables,
            params=[params] if isinstance(params, str) else params,
            loss_fn=loss_fn,
            per_sample=per_sample,
            collate_fn=collate_fn,
            eval_batch_size=eval_batch_size,
            check_gradient=not allow_untested,
            per_token=per_token,
            training_data=training_data,
        )
        self.options = SnapshotOptions(
            chains=chains, sampler=sampler, describe=describe, tokenizer=tokenizer, precision=precision, pairs=pairs,
            views=views if log else (),
            store_traces=store_traces, verify=verify_restore,
            settings=settings_of(self.request, sampler, chains, budget), budget=self.budget, launch=launch,
        )  # fmt: skip
        self.dirpath, self.name, self.on_error, self.allow_untested = dirpath, name, on_error, allow_untested
        self.directory: Path | None = None
        self.latest: Estimate | None = None
        self._session: Session | None = None
        self._seen, self._resumed = 0, False
        self._last: int | None = None
        self._resolved: ResolvedSettings | None = None
        self._data = dict[str, str]()
        self._owned: Path | None = None
        self._logs: LogFolder | None = None

    # -- hooks --------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse settings that cannot work, before training starts."""
        if stage != "fit":
            return
        check_trainer(trainer, allow_untested=self.allow_untested)
        self._session, self._resumed = None, False
        # Loggers of other ranks than the first may not know their version.
        self._logs, self.directory = trainer.strategy.broadcast(self._places(trainer))
        if self.options.views and trainer.is_global_zero:
            declare_columns(trainer, pl_module)
        if waits := waits_for_the_clock(trainer):
            rank_zero_warn(
                f"{', '.join(waits)} acts by the clock, and snapshots take time: training will not be bitwise the "
                "same as without BIFCallback. Use steps or epochs there if that matters"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the data, derive the losses and announce the cost; take a snapshot if `at_start`."""
        self._seen = trainer.global_step
        if self._seen == 0 and not self._resumed:  # a new run, perhaps with the callback of an earlier one
            self._last = self._resolved = self._owned = None
        self.triggers = of_training(self.triggers, trainer)
        self.budget.start()
        try:
            with defer_interrupts(), self.budget.spending():
                self._session = self._open(trainer, pl_module)
        except (OSError, PeerFailedError, PreemptedError) as error:
            if is_preemption(error):
                rank_zero_warn("no influence will be estimated in this run, since the job received SIGTERM")
                return
            if self.on_error == "raise" or not is_file_error(error):
                raise
            rank_zero_warn(f"no influence will be estimated in this run: {error}")
            return
        if self.triggers.starts() and self._last is None:
            self._take(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take a snapshot if a step was crossed at which one is due."""
        before, self._seen = self._seen, trainer.global_step
        if not is_extra_epoch(trainer) and self.triggers.crossed(before, self._seen):
            self._take(trainer, pl_module, by_rhythm=self.triggers.at_steps is None)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take a snapshot if one is due at this epoch, or training ends with it."""
        if is_extra_epoch(trainer):
            return
        last = self.triggers.at_end and is_last_epoch(trainer)
        if last or self.triggers.epoch_ends(trainer.current_epoch + 1):
            self._take(trainer, pl_module, by_rhythm=not last)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the last snapshot, where the last epoch was not known to be the last."""
        due = self.triggers.at_end and self._last != trainer.global_step
        if due and averages_weights(trainer):
            rank_zero_warn("no snapshot at the end: a weight averaging callback may have changed the weights already")
        elif due:
            self._take(trainer, pl_module)
        if self._session is not None:
            self._session.close(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Release the data."""
        self.budget.stop()
        self._session = None

    # -- state --------------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """One for each `name`, since a Trainer may have several callbacks of this class."""
        return self._generate_state_key(name=self.name)

    def state_dict(self) -> dict[str, Any]:
        """Plain values: the last snapshot's step, settings given and found, and fingerprints of the data."""
        return {
            "last": self._last,
            "resolved": None if self._resolved is None else self._resolved.as_dict(),
            "budget": self.budget.state(),
            "settings": dict(self.options.settings),
            "data": self._data,
            "directory": None if self._owned is None else str(self._owned.absolute()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the run of a checkpoint.

        Raises:
            MisconfigurationException: its settings differ from these.
        """
        check_same("settings", state_dict["settings"], dict(self.options.settings))
        self._data = state_dict.get("data", {})
        self._last, self._resumed = state_dict["last"], True
        self._owned = None if (former := state_dict.get("directory")) is None else Path(former)
        self._resolved = None if (found := state_dict.get("resolved")) is None else ResolvedSettings.from_dict(found)
        self.budget.load(state_dict["budget"])

    def _places(self, trainer: Any) -> tuple[LogFolder | None, Path | None]:
        """Folder of the first logger, where it decides; and folder of the dumps, as far as it is known before a fit.

        Raises:
            MisconfigurationException: the folder is not on this machine.
        """
        if trainer.fast_dev_run:
            return None, None
        try:
            if self.dirpath is not None:
                return None, local_path(self.dirpath, "dirpath")
            logs = log_folder(trainer)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        return logs, logs.path / self.name if logs.versioned else None

    def _own_folder(self, trainer: Any, module: Any, logs: LogFolder) -> Path:
        """The folder of this run beside the logs; rank 0 chooses it for all. Collective."""
        others = (each for each in trainer.callbacks if isinstance(each, BIFCallback) and each._session is not None)
        beside = next((each.directory for each in others if each._logs is not None), None)
        ranks, found = ranks_of(module), None
        with ranks.collective("choosing the folder"):
            if ranks.rank == 0:
                found = own_folder(logs, self.name, former=self._owned, beside=beside)
        return cast(Path, ranks.broadcast(found))

    # -- snapshots ----------------------------------------------------------------------------------------------

    def _open(self, trainer: Any, module: Any) -> Session:
        if self._logs is not None:
            self.directory = self._own_folder(trainer, module, self._logs)
        session = open_session(
            trainer,
            module,
            self.request,
            self.options,
            self.directory,
            fresh=self.directory != self._owned and not self._resumed,
            data=self._data if self._resumed else {},
            resolved=self._resolved,
        )
        self._owned, self._data = self.directory, session.outputs.fingerprints
        session.announce(trainer, module)
        return session

    def _take(self, trainer: Any, module: Any, *, by_rhythm: bool = False) -> None:
        step = trainer.global_step
        if self._session is None or self._last == step:
            return
        if not self._session.affords(trainer, module, by_rhythm=by_rhythm, one_more=self.triggers.at_end):
            return
        try:
            with defer_interrupts(), trainer.profiler.profile(f"[BIF]{self.name}"), self.budget.timed_snapshot():
                self.latest = self._session.snapshot(trainer, module)
        except Exception as error:
            if is_preemption(error):
                rank_zero_warn(f"the snapshot at step {step} is given up, since the job received SIGTERM")
                return
            if self.on_error == "raise" or is_fatal(error):
                raise
            rank_zero_warn(f"the snapshot at step {step} failed and is skipped; training goes on: {error}")
            return
        self._last, self._resolved = step, self._session.resolved
