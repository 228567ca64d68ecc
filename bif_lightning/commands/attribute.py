"""The commands `bif-lightning attribute` and `watch`: dumps from saved checkpoints, and from snapshots as they come."""

import logging
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader
from tqdm.contrib import DummyTqdmFile

from bif_lightning.commands.calibrate import quietly
from bif_lightning.config import Chains, Sampler
from bif_lightning.offline.attribute import attribute, watch
from bif_lightning.offline.fit_start import NO_TRAINING, imported, module_and_data, yaml_of
from bif_lightning.offline.replay import AttributionReport

_ROWS = "rows of the training data as FIRST:LAST (LAST not included), or the import path of a dataset"
_LOG = "lightning.pytorch.utilities.rank_zero"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where the work is done, in a Trainer's terms."""

    accelerator: str
    devices: str
    num_nodes: int
    strategy: str
    precision: str

    def trainer(self, logs: Path | None) -> pl.Trainer:
        """A Trainer of these devices that logs for TensorBoard to a folder."""
        return pl.Trainer(
            accelerator=self.accelerator, devices=self.devices, num_nodes=self.num_nodes, strategy=self.strategy,
            precision=cast(Any, self.precision), logger=TensorBoardLogger(logs, name="", version="") if logs else False,
            enable_checkpointing=False, enable_model_summary=False, max_steps=NO_TRAINING,
            num_sanity_val_steps=0, limit_val_batches=0,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Import paths and files that say what is attributed."""

    config: str | None
    model: str | None
    data: str | None
    loss: str | None
    train: str | None
    query: str | None

    def module_and_data(self) -> tuple[pl.LightningModule, Any]:
        """The module, and the training data."""
        return module_and_data(self.config, self.model, self.data)

    def rows(self) -> tuple[Any, Any]:
        """The train and query examples; None where they are not given."""
        named = (("train", self.train), ("query", self.query))
        train, query = (None if text is None else examples(text, name) for name, text in named)
        return train, query

    def loss_fn(self) -> dict[str, Any]:
        """The argument of that name, where one is given."""
        return {} if self.loss is None else {"loss_fn": imported(self.loss)}


def attribute_checkpoints(
    checkpoints: str,
    sources: Sources,
    machine: Machine,
    *,
    params: Sequence[str] | None,
    settings: str | None,
    per_token: bool,
    out: str,
    dry_run: bool,
) -> tuple[AttributionReport, dict[str, Any] | None]:
    """Run the command `attribute`.

    Returns:
        What became of the checkpoints, and the same as plain values; None for these in all processes but the first.

    Raises:
        ValueError, OSError: bad arguments or paths; see `attribute` and `offline.fit_start`.
    """
    with _at_work():
        module, data = sources.module_and_data()
        train, query = sources.rows()
        trainer = machine.trainer(None if dry_run else Path(out).parent)
        done = attribute(
            module, checkpoints, train, query, data=data, dirpath=out, dry_run=dry_run, params=params,
            trainer=trainer, per_token=per_token,
            **sources.loss_fn(), **({} if settings is None else sampling(settings)),
        )  # fmt: skip
    return done, _as_dict(done) if trainer.is_global_zero else None


def watch_snapshots(
    directory: str, sources: Sources, machine: Machine, *, idle: float | None
) -> tuple[AttributionReport, dict[str, Any] | None]:
    """Run the command `watch`.

    Returns, raises: as `attribute_checkpoints`.
    """
    with _at_work():
        module, data = sources.module_and_data()
        train, query = sources.rows()
        trainer = machine.trainer(Path(directory).parent)
        done = watch(module, directory, train, query, data=data, trainer=trainer, idle=idle, **sources.loss_fn())
    return done, _as_dict(done) if trainer.is_global_zero else None


def examples(text: str, name: str) -> Any:
    """A range of rows, or what an import path leads to (called, where it is a function or class).

    Raises:
        ValueError: neither.
    """
    first, colon, last = text.partition(":")
    if colon and all(part.isdecimal() for part in (first, last)):
        return range(int(first), int(last))
    if "." not in text:
        raise ValueError(f"--{name} is {text!r}; give {_ROWS}")
    found = imported(text)
    found = found() if callable(found) and not hasattr(found, "__getitem__") else found
    return found.dataset if isinstance(found, DataLoader) else found


def sampling(path: str) -> dict[str, Any]:
    """`sampler` and `chains` from a file as `bif-lightning calibrate` writes it.

    Raises:
        ValueError: it holds something else.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    written = dict(yaml_of(path))
    kinds: dict[str, Any] = {"sampler": Sampler | str | None, "chains": Chains | None}
    if unknown := sorted(set(written) - set(kinds)):
        raise ValueError(f"{path} has {', '.join(unknown)}; a settings file has {' and '.join(kinds)}")
    parser = ArgumentParser(exit_on_error=False)
    for name, kind in kinds.items():
        parser.add_argument(f"--{name}", type=kind)
    try:
        made = parser.instantiate_classes(parser.parse_object(written))
    except ArgumentError as error:
        raise ValueError(f"{path}: {error}") from error
    return {name: made[name] for name in written}


def _as_dict(done: AttributionReport) -> dict[str, Any]:
    expected = done.expected
    answer = {
        "directory": str(done.directory),
        "written": list(done.written),
        "present": list(done.present),
        "failed": dict(done.failed),
        "expected_seconds": None if expected is None else expected.seconds,
        "expected_bytes": None if expected is None else expected.extra_bytes,
    }
    if done.planned is None:
        return answer
    return answer | {"planned": list(done.planned), "expected_seconds_in_all": done.expected_seconds_in_all}


@contextmanager
def _at_work() -> Generator[None]:
    """Keep standard output for the answer; whatever a module or dataset prints goes to standard error."""
    with quietly(), _own_lines(), redirect_stdout(cast(Any, DummyTqdmFile(sys.stderr))):
        yield


@contextmanager
def _own_lines() -> Generator[None]:
    """Let only this package's lines through Lightning's logger."""
    logger = logging.getLogger(_LOG)
    level = logger.level

    def ours(record: logging.LogRecord) -> bool:
        return record.getMessage().startswith("BIF")

    logger.setLevel(logging.INFO)
    logger.addFilter(ours)
    try:
        yield
    finally:
        logger.removeFilter(ours)
        logger.setLevel(level)
