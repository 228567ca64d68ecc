"""Training with a callback that runs the user's code inside the guard is bitwise the training without it."""

import random
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from bif_lightning.trainer.guard.fingerprint import difference, encode, fingerprint
from bif_lightning.trainer.guard.guard import PARTS, Part, training_guard

pytestmark = [pytest.mark.trainer, pytest.mark.bitwise]

CLASSES = 3


class Augmented(Dataset[tuple[torch.Tensor, int]]):
    """Draws from every kind of generator, and counts."""

    def __init__(self) -> None:
        own = torch.Generator().manual_seed(7)
        self.x = torch.randn(48, 4, generator=own)
        self.y = torch.randint(CLASSES, (48,), generator=own).tolist()
        self.numpy = np.random.default_rng(3)
        self.torch = torch.Generator().manual_seed(4)
        self.served = {"count": 0, "last": deque(maxlen=3)}

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.served["count"] += 1
        self.served["last"].append(index)
        noise = self.numpy.normal() + random.gauss(0, 1) + np.random.normal()
        noise += 0.1 * len(self.served["last"]) + 0.01 * (self.served["count"] % 7)
        return self.x[index] + 0.1 * noise + 0.1 * torch.randn(4, generator=self.torch), self.y[index]


class Helper:
    """A plain object of the user's."""

    seen: list[int] = []

    def __init__(self) -> None:
        self.rng = np.random.RandomState(5)
        self.history = np.zeros(4)

    def factor(self) -> float:
        self.history[:] = np.roll(self.history, 1)
        self.history[0] = self.rng.rand()
        return float(self.history.sum())


class Nasty(L.LightningModule):
    """Every habit that leaks from a training_step that is called once too often."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, CLASSES))
        self.accuracy = MulticlassAccuracy(CLASSES)
        self.hidden_metrics = {"loss": [MeanMetric()]}
        self.losses: list[torch.Tensor] = []
        self.counters = {"steps": {"all": 0}}
        self.calls = 0
        self.own = torch.Generator().manual_seed(9)
        self.running = torch.zeros(CLASSES)
        self.helper = Helper()
        self.cached = [self.body[0].weight]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        with torch.no_grad():
            self.cached[0].mul_(0.999)
        self.calls += 1
        self.counters["steps"]["all"] += 1
        logits = self.body(x + 0.1 * torch.randn(x.shape, generator=self.own))
        scale = 1 + 0.1 * self.helper.factor() + 0.01 * self.counters["steps"]["all"]
        loss = scale * F.cross_entropy(logits + 0.1 * self.running, y) + 0.01 * self.cached[0].square().sum()
        self.running += logits.detach().mean(0)
        self.losses.append(loss.detach())
        self.accuracy(logits, y)
        self.hidden_metrics["loss"][0].update(loss.detach())
        Helper.seen.append(len(y))
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"accuracy": self.accuracy, "seen": float(len(Helper.seen))}, on_step=True, on_epoch=True)
        self.logger.log_metrics({"direct": self.calls}, step=self.global_step)
        self.optimizers().param_groups[0]["lr"] *= 0.99
        if loss > 100:
            self.trainer.should_stop = True
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("mean_loss", torch.stack(self.losses).mean())
        self.log("hidden", self.hidden_metrics["loss"][0].compute())
        self.losses.clear()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)]


def structural_clone(module: nn.Module) -> nn.Module:
    """A copy of the module tree with parameters and buffers of its own; everything else is shared."""
    if isinstance(module, Metric):  # its update is bound to the original: shared
        return module
    twin = module.__class__.__new__(module.__class__)
    own = dict(vars(module))
    own["_parameters"] = {
        n: None if p is None else nn.Parameter(p.detach().clone()) for n, p in own["_parameters"].items()
    }
    own["_buffers"] = {n: None if b is None else b.clone() for n, b in own["_buffers"].items()}
    own["_modules"] = {name: structural_clone(child) for name, child in module.named_children()}
    vars(twin).update(own)
    return twin


class Probe(L.Callback):
    """Runs the user's training_step on three sets of other weights after every batch, in a guard of `parts`."""

    def __init__(self, parts: Mapping[str, Part], dataset: Dataset[Any]) -> None:
        self.parts = parts
        self.dataset = dataset
        self.runs = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        with training_guard(trainer, pl_module, [self.dataset], parts=self.parts):
            torch.set_num_threads(torch.get_num_threads() + 1)
            twin = structural_clone(pl_module)
            for child in twin.modules():
                child.eval()
            for scale in (1.0, 1.5, 1000.0):
                batch = torch.utils.data.default_collate([self.dataset[i] for i in range(4)])
                with torch.no_grad():
                    for parameter in twin.parameters():
                        parameter.mul_(scale).add_(0.1 * torch.randn_like(parameter))
                twin.training_step(batch, 0).backward()
            self.runs += 1


class Record(L.Callback):
    """Keeps a fingerprint of the training after every batch, taken after the probe."""

    def __init__(self) -> None:
        self.prints: list[dict[str, str]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        state = fingerprint(trainer, pl_module)
        state["batch"] = encode([batch, outputs["loss"].detach()])
        self.prints.append(state)


def run(
    parts: Mapping[str, Part] | None, folder: Path, workers: int = 0
) -> tuple[list[dict[str, str]], str, dict[str, float]]:
    """Train; None is without a probe. Fingerprints by batch, the logger's file and the callback metrics."""
    L.seed_everything(1, verbose=False)
    Helper.seen.clear()
    dataset, record = Augmented(), Record()
    callbacks: list[L.Callback] = [record] if parts is None else [Probe(parts, Subset(dataset, range(24))), record]
    threads = torch.get_num_threads()
    try:
        trainer = L.Trainer(
            max_epochs=2, accumulate_grad_batches=2, accelerator="cpu", callbacks=callbacks,
            logger=CSVLogger(str(folder), name="", version="log"), log_every_n_steps=1,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        loader = DataLoader(dataset, batch_size=16, shuffle=True, num_workers=workers)
        trainer.fit(Nasty(), loader)
    finally:
        torch.set_num_threads(threads)
    logged = (folder / "log" / "metrics.csv").read_text()
    return record.prints, logged, {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(None, tmp_path_factory.mktemp("alone"))


def test_guarded_run_is_bitwise_the_run_alone(alone: Any, tmp_path: Path) -> None:
    guarded = run(PARTS, tmp_path)
    assert len(guarded[0]) == len(alone[0]) == 6
    for step, (with_probe, without) in enumerate(zip(guarded[0], alone[0], strict=True)):
        assert difference(without, with_probe) == [], f"after batch {step}"
    assert guarded[1:] == alone[1:]


WHAT_LEAKS = {
    "random numbers": {
        "random numbers (torch)",
        "random numbers (numpy)",
        "random numbers (python)",
        "batch",
        "parameters",
    },
    "settings": {"settings"},
    "attributes": {"attributes", "metrics", "parameters", "logged values"},
    "datasets": {"datasets", "batch", "parameters"},
    "optimizers": {"optimizers", "parameters"},
    "parameters": {"parameters"},
    "gradients": {"gradients", "optimizers", "parameters"},
    "trainer": {"progress"},
    "logging": {"logged values"},
}


@pytest.mark.parametrize("removed", PARTS)
def test_each_part_is_needed(alone: Any, tmp_path: Path, removed: str) -> None:
    parts = {name: part for name, part in PARTS.items() if name != removed}
    prints, *_ = run(parts, tmp_path)
    leaks = {name for a, b in zip(alone[0], prints, strict=False) for name in difference(a, b)}
    assert leaks >= WHAT_LEAKS[removed]


def test_private_generators_of_the_dataset_reach_forked_workers(tmp_path: Path) -> None:
    """Workers of the next epoch inherit the dataset of this process."""
    alone = run(None, tmp_path / "alone", workers=2)
    guarded = run(PARTS, tmp_path / "guarded", workers=2)
    assert [difference(a, b) for a, b in zip(alone[0], guarded[0], strict=True)] == [[]] * 6
    assert guarded[1:] == alone[1:]
    leaking = run({name: part for name, part in PARTS.items() if name != "datasets"}, tmp_path / "leak", workers=2)
    assert "batch" in difference(alone[0][-1], leaking[0][-1])
