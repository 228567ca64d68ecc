"""Build a problem from a LightningModule and training data by starting a fit and stopping before the first step."""

import importlib
import signal
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import lightning.pytorch as pl
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from torch.utils.data import DataLoader, IterableDataset

from bif_lightning.calibration.pilot import EXAMPLES
from bif_lightning.data.dataset import spread_rows
from bif_lightning.losses.observables import LossFn
from bif_lightning.losses.problem import Problem
from bif_lightning.trainer.failures import is_preemption
from bif_lightning.trainer.problem import AttributionRequest, attribution_of

T = TypeVar("T")

NO_TRAINING = 1
"""Steps of a Trainer that is made here, which trains nothing: no limit of a training."""


class _FitStoppedError(Exception):
    """Stops a fit that was started only to attach a Trainer to the module."""


class _FitStartCallback(pl.Callback):
    """Calls a function at the start of training."""

    def __init__(self, call: Callable[[Any, Any], None]) -> None:
        self.call, self.interrupted = call, False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        try:
            self.call(trainer, pl_module)
        except KeyboardInterrupt:
            self.interrupted = True
            raise
        raise _FitStoppedError


def with_problem(
    module: pl.LightningModule,
    data: Any,
    work: Callable[[Problem], T],
    *,
    loss_fn: LossFn | None = None,
    params: Sequence[str] | None = None,
    accelerator: str = "auto",
) -> T:
    """Call `work` with the problem that BIFCallback would see at the start of a fit of this module on this data.

    Args:
        data: a DataLoader, or a LightningDataModule.
        work: function of a problem; its train set is as many evenly spaced training examples as a pilot measures.
        loss_fn, params: as in BIFCallback.
        accelerator: accelerator of the Trainer; one device is used.

    Raises:
        ValueError: the module or the data cannot be used; the message says why.
    """
    results = list[T]()

    def at_start(trainer: Any, module: Any) -> None:
        found = attribution_of(trainer, module, _request(trainer, loss_fn, params))
        with found.around():
            results.append(work(found.problem))

    at_fit_start(quiet_trainer(accelerator), module, data, at_start)
    return results[0]


def quiet_trainer(accelerator: str = "auto", logger: Any = False) -> pl.Trainer:
    """A silent Trainer on one device."""
    return pl.Trainer(
        accelerator=accelerator, devices=1, logger=logger, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_steps=NO_TRAINING, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip


def at_fit_start(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: Any,
    call: Callable[[Any, Any], None],
    bar: ProgressBar | None = None,
) -> None:
    """Start a fit, call a function with trainer and module, and stop the fit before it trains.

    Args:
        data: a DataLoader, or a LightningDataModule.
        bar: progress bar that replaces the Trainer's, which would show training.

    Raises:
        ValueError: the module or the data cannot be used; the message says why.
        KeyboardInterrupt: the function was interrupted.
        SystemExit: the process received SIGTERM.
    """
    callback = _FitStartCallback(call)
    by_module = isinstance(data, pl.LightningDataModule)
    loaders: dict[str, Any] = {"datamodule": data} if by_module else {"train_dataloaders": data}
    with _callbacks(trainer, callback, bar), _interruptible(callback):
        try:
            trainer.fit(module, **loaders)
        except _FitStoppedError:
            return
        except MisconfigurationException as error:
            raise ValueError(str(error)) from error
        except Exception as error:
            if is_preemption(error):
                raise SystemExit(128 + signal.SIGTERM) from error
            raise
    raise ValueError("the training data is empty: it has no first batch")


@contextmanager
def _callbacks(trainer: pl.Trainer, callback: pl.Callback, bar: ProgressBar | None) -> Generator[None]:
    callbacks = cast(list[pl.Callback], cast(Any, trainer).callbacks)
    before = list(callbacks)
    if bar is not None:
        callbacks[:] = [*(each for each in before if not isinstance(each, ProgressBar)), bar]
    callbacks.append(callback)
    try:
        yield
    finally:
        callbacks[:] = before


@contextmanager
def _interruptible(callback: _FitStartCallback) -> Generator[None]:
    """Turn Lightning's exit after Control-C back into KeyboardInterrupt."""
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not callback.interrupted:
            raise
        if in_main:
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error


def _request(trainer: Any, loss_fn: LossFn | None, params: Sequence[str] | None) -> AttributionRequest:
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            f"the training data comes from a {type(loader).__name__}; calibration needs one DataLoader of a map-style "
            "dataset, for example through --data"
        )
    return AttributionRequest(
        train=spread_rows(len(cast(Any, loader.dataset)), EXAMPLES),
        query=None,
        observables=(),
        params=params,
        loss_fn=loss_fn,
        per_sample="mean",
        collate_fn=None,
        eval_batch_size=256,
        check_gradient=True,
    )


def module_and_data(config: str | None, model: str | None, data: str | None) -> tuple[pl.LightningModule, Any]:
    """The module and its training data, by import path or from a LightningCLI configuration.

    Args:
        config: a YAML file whose `model` and `data` are used (class_path and init_args, or init_args alone).
        model: import path of a LightningModule class; needed where the YAML has no class_path.
        data: import path of a LightningDataModule class, of a DataLoader, or of a dataset; or of a function that
            returns one of these (of a tuple, the first element is used).

    Raises:
        ValueError: the module or the data is missing, or has another type.
    """
    sys.path.insert(0, "")  # as `python -m` does
    written: Mapping[str, Any] = {} if config is None else yaml_of(config)
    module = _instantiate(written.get("model"), model, pl.LightningModule, "model")
    if data is None or written.get("data") is not None:
        return module, _instantiate(written.get("data"), data, pl.LightningDataModule, "data")
    return module, _loader(_call_once(imported(data)), data)


def imported(path: str) -> Any:
    """Import the object at a path such as `package.module.name`.

    Raises:
        ValueError: it cannot be imported.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be imported ({error}); give an import path such as package.module.Name, from this folder"
        ) from error


def yaml_of(path: str) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} is not a mapping; a LightningCLI configuration with `model` and `data` is expected")
    return cast(Mapping[str, Any], found)


def _instantiate(written: Any, path: str | None, kind: type[T], name: str) -> T:
    from jsonargparse import ArgumentError, ArgumentParser

    settings: dict[str, Any] = dict(written or {})
    if "class_path" not in settings:
        if path is None:
            raise ValueError(f"{name} is missing: give --{name} package.module.Class, or --config with its class_path")
        settings = {"class_path": path, "init_args": settings}
    if not (isinstance(found := imported(str(settings["class_path"])), type) and issubclass(found, kind)):
        raise ValueError(f"{settings['class_path']} is not a {kind.__name__}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{name}", type=kind)
    try:
        return cast(T, parser.instantiate_classes(parser.parse_object({name: settings}))[name])
    except ArgumentError as error:
        raise ValueError(f"{name}: {error}") from error


def _call_once(found: Any) -> Any:
    """Call a function, or a class without arguments; of a returned tuple, take the first element."""
    if isinstance(found, type) or callable(found):
        found = found()
    return cast(Any, found[0] if isinstance(found, tuple) else found)


def _loader(found: Any, path: str) -> Any:
    if isinstance(found, DataLoader | pl.LightningDataModule):
        return cast(Any, found)
    if not (callable(getattr(found, "__len__", None)) and callable(getattr(found, "__getitem__", None))):
        kind = type(found).__name__
        raise ValueError(f"{path} is a {kind}, which is not a map-style dataset, DataLoader or LightningDataModule")
    return cast(Any, DataLoader(found, batch_size=64))
