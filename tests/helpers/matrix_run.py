"""One row of the matrix: a training run made twice, without the callback and with it, and what both must share."""

import random
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import bif_lightning as bl
from bif_lightning.trainer.guard.fingerprint import difference, encode, fingerprint

SAMPLER = bl.SGLD(step_size=1e-4, inverse_temperature=100.0, localization=10.0)
CHAINS = bl.Chains(num_chains=2, num_draws=3, batch_size=8)
CLASSES = 3
SNAPSHOT = 3
"""The optimizer step whose snapshot is compared with `estimate`."""


def points(size: int = 24, seed: int = 1) -> TensorDataset:
    """Examples of three classes in four dimensions."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(size) % CLASSES
    return TensorDataset(torch.randn(size, 4, generator=generator) + label[:, None], label)


def loader(data: Dataset[Any] | None = None, **kwargs: Any) -> DataLoader[Any]:
    """A shuffled loader of three batches."""
    return DataLoader(data or points(), **({"batch_size": 8, "shuffle": True} | kwargs))


def losses(module: Any, batch: Any) -> Tensor:
    """The loss of each example."""
    return F.cross_entropy(module.body(batch[0]), batch[1], reduction="none")


class Classifier(L.LightningModule):
    """A body that maps points to logits, trained by cross entropy."""

    def __init__(self, body: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body or nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, CLASSES))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.body(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run of a Trainer.

    Attributes:
        build: makes the module.
        data: makes the training loader, the loaders, or a data module.
        loss_fn: for the callback; None derives the losses.
        losses: of each example, for the comparison with `estimate`; None where none can be made.
        callbacks: others than the one tested, by the folder of the run.
        bif_first: whether the callback stands before the others.
        trainer: settings of the Trainer; what is used up by a run, by a function that makes it.
        bif: further settings of the callback.
        plain: makes the module whose `estimate` is compared; None for `build`.
        extra: (trainer, module) -> anything more that both runs must share.
        snapshot: step whose dump is compared with `estimate`.
        drawn: examples of the training set that every epoch draws; None for all.
    """

    build: Callable[[], Any] = Classifier
    data: Callable[[], Any] = loader
    loss_fn: Callable[[Any, Any], Tensor] | None = None
    losses: Callable[[Any, Any], Tensor] | None = losses
    callbacks: Callable[[Path], list[Any]] = lambda folder: []
    bif_first: bool = True
    trainer: Mapping[str, Any] = field(default_factory=dict[str, Any])
    bif: Mapping[str, Any] = field(default_factory=dict[str, Any])
    plain: Callable[[], Any] | None = None
    extra: Callable[[Any, Any], Any] = lambda trainer, module: None
    snapshot: int = SNAPSHOT
    drawn: int | None = None
    package: Any = L


@dataclass
class Outcome:
    """What a run leaves."""

    trainer: Any
    module: Any
    state: dict[str, Any]
    fingerprint: dict[str, str]
    weights: dict[str, Tensor]
    """At the compared snapshot."""


def callback(folder: Path, **kwargs: Any) -> bl.BIFCallback:
    """The callback with tiny chains."""
    settings: dict[str, Any] = {"train": points(9, 2), "query": points(5, 3), "dirpath": folder / "bif"}
    settings |= {"sampler": SAMPLER, "chains": CHAINS, "every_n_train_steps": 3, "log": False}
    return bl.BIFCallback(**(settings | kwargs))


def recorder(package: Any, snapshot: int) -> Any:
    """A callback that stands first, and keeps each batch and its loss, and the weights of one step."""

    class Recorder(package.Callback):
        def __init__(self) -> None:
            self.batches: list[str] = []
            self.weights: dict[str, Tensor] = {}

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.batches.append(encode([batch, outputs, batch_idx]))
            if trainer.global_step >= snapshot and not self.weights:
                self.weights = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}

    return Recorder()


def fit(case: Case, folder: Path, bif: Any = None, **options: Any) -> Outcome:
    """Seed, build and train; with `bif` among the callbacks if one is given."""
    L.seed_everything(3, verbose=False)
    record, others = recorder(case.package, case.snapshot), case.callbacks(folder)
    ours = [] if bif is None else [bif]
    callbacks = [record, *ours, *others] if case.bif_first else [record, *others, *ours]
    trainer = make_trainer(case, folder, callbacks)
    module = case.build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, **given(case.data()), **options)
    module = getattr(module, "_orig_mod", module)
    state = {
        "batches": record.batches,
        "logged": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "files": "".join((Path(log.log_dir) / "metrics.csv").read_text() for log in trainer.loggers if has_file(log)),
        "steps": (trainer.global_step, trainer.current_epoch, trainer.should_stop),
        "extra": case.extra(trainer, module),
        "next": (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()),
    }
    return Outcome(trainer, module, state, fingerprint(trainer, module), record.weights)


def has_file(logger: Any) -> bool:
    """Whether a logger writes metrics.csv, and has done so."""
    return type(logger).__name__ == "CSVLogger" and (Path(logger.log_dir) / "metrics.csv").exists()


def make_trainer(case: Case, folder: Path, callbacks: list[Any]) -> Any:
    """Two epochs of three batches on the CPU, unless the case says otherwise."""
    settings: dict[str, Any] = {"max_epochs": 2, "accelerator": "cpu", "default_root_dir": folder}
    if not case.trainer.get("barebones"):
        settings |= {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        settings |= {"logger": CSVLogger(folder, "csv"), "log_every_n_steps": 1}
    made = {name: value() if callable(value) else value for name, value in case.trainer.items()}
    return case.package.Trainer(callbacks=callbacks, **(settings | made))


def given(data: Any) -> dict[str, Any]:
    """The arguments of `fit`: loaders, a data module, or a pair of training and validation loaders."""
    if isinstance(data, tuple):
        return {"train_dataloaders": data[0], "val_dataloaders": data[1]}
    module = any(base.__name__ == "LightningDataModule" for base in type(data).__mro__)
    return {"datamodule": data} if module else {"train_dataloaders": data}


def differences(plain: Outcome, watched: Outcome) -> list[str]:
    """Names of what two runs do not share."""
    found = difference(plain.fingerprint, watched.fingerprint)
    found += [name for name, value in plain.state.items() if value != watched.state[name]]
    return found


def dump(folder: Path, step: int) -> dict[str, np.ndarray]:
    """The matrices of one dump."""
    with h5py.File(folder / "bif" / f"step={step:09d}.h5") as file:
        return {name: file[name][...] for name in ("influence", "correlation")}


def steps(folder: Path) -> list[int]:
    """Steps of the dumps in a folder."""
    return sorted(int(path.stem.split("=")[1]) for path in (folder / "bif").glob("step=*.h5"))


def check(case: Case, folder: Path) -> Outcome:
    """Assert that the callback leaves the training bitwise as it is, and that its influence is a real one."""
    plain = fit(case, folder / "plain")
    watched = fit(case, folder / "watched", callback(folder, **({"loss_fn": case.loss_fn} | dict(case.bif))))
    changed = differences(plain, watched)
    assert not changed, changed
    found = dump(folder, case.snapshot)
    assert all(np.isfinite(values).all() for values in found.values())
    assert np.ptp(found["influence"]) > 0
    if case.losses is not None:
        expected = reference(case, watched.weights)
        scale = np.abs(expected.influence).max()
        assert np.allclose(found["influence"], expected.influence, atol=1e-3 * scale, rtol=1e-3)
    return watched


def reference(case: Case, weights: Mapping[str, Tensor]) -> bl.Estimate:
    """`estimate` on a copy of the model that no Trainer ever had."""
    module = (case.plain or case.build)()
    module.load_state_dict(weights)
    assert case.losses is not None
    training = Subset(points(), range(case.drawn or len(points())))
    return bl.estimate(
        module, case.losses, points(9, 2), points(5, 3), sampler=SAMPLER, chains=CHAINS, training_data=training
    )
