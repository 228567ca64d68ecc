"""What other people's modules and data have in common, in whole trainings: metrics, configurations, loaders, shapes."""

import importlib.util
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import h5py
import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, Subset, TensorDataset
from torchmetrics import CatMetric, MeanMetric, MeanSquaredError, MetricCollection, R2Score, SpearmanCorrCoef
from torchmetrics.classification import BinaryAUROC

import bif_lightning as bl
from bif_lightning.exceptions import TrainingDisturbedError
from bif_lightning.trainer.position import _readable
from matrix_run import Case, Classifier, check, losses, steps
from tiny_run import Leaky, bif, fit

pytestmark = [pytest.mark.trainer, pytest.mark.exact]

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(60, 6, generator=G), torch.randint(3, (60,), generator=G)
DATA = TensorDataset(X, Y)
SGLD = bl.SGLD(step_size=1e-4, inverse_temperature=100.0, localization=100.0)
FEW = bl.Chains(num_chains=2, num_draws=10)


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lift, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def out(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.lift(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.out(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def estimated(folder: Path, module: L.LightningModule, data: Any, **options: Any) -> bl.Estimate:
    """At the start of a training."""
    settings: dict[str, Any] = {"train": range(20), "query": range(30, 36), "at_end": False, "sampler": SGLD}
    callback = bl.BIFCallback(**settings | {"chains": FEW} | options, dirpath=folder / "bif", at_steps=[0])
    trainer = L.Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", callbacks=[callback],
    )  # fmt: skip
    trainer.fit(module, data)
    assert callback.latest is not None
    return callback.latest


def apart(found: bl.Estimate, right: bl.Estimate) -> float:
    """Largest difference of the influence, in units of its largest entry."""
    return float(np.abs(found.influence - right.influence).max() / np.abs(right.influence).max())


@pytest.fixture
def plain(tmp_path: Path) -> bl.Estimate:
    """Of the plain network on the plain loader."""
    return estimated(tmp_path / "plain", Net(), DataLoader(DATA, batch_size=8, shuffle=True))


# -- metrics --------------------------------------------------------------------------------------------------------


class Fed(Classifier):
    """Feeds a metric with the network's output, as Lightning's documentation does."""

    def __init__(self, metric: nn.Module) -> None:
        super().__init__()
        self.metric = metric

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out = self.body(batch[0])
        loss = F.cross_entropy(out, batch[1])
        self.feed(out, batch[1], loss)
        return loss

    def feed(self, out: Tensor, labels: Tensor, loss: Tensor) -> None:
        self.metric(out[:, 0], labels.float())
        self.log("metric", self.metric, on_step=False, on_epoch=True)


class Several(Fed):
    def feed(self, out: Tensor, labels: Tensor, loss: Tensor) -> None:
        self.log_dict(self.metric(out[:, 0], labels.float()), on_step=True)


class OfTheLoss(Fed):
    def feed(self, out: Tensor, labels: Tensor, loss: Tensor) -> None:
        self.metric(loss)
        self.log("mean", self.metric, on_step=True, on_epoch=True)


class OfClasses(Fed):
    def feed(self, out: Tensor, labels: Tensor, loss: Tensor) -> None:
        self.metric(out[:, 0].sigmoid(), (labels == 0).long())
        self.log("metric", self.metric, on_step=False, on_epoch=True)


class Listing(Fed):
    def feed(self, out: Tensor, labels: Tensor, loss: Tensor) -> None:
        self.metric.update(out)


class InTwoSteps(Fed):
    def feed(self, out: Tensor, labels: Tensor, loss: Tensor) -> None:
        self.metric.update(out[:, 0], labels.float())
        self.log("metric", self.metric.compute())


METRICS: dict[str, Any] = {
    "R2Score and MeanSquaredError": lambda: Several(MetricCollection([R2Score(), MeanSquaredError()])),
    "MeanMetric of the loss": lambda: OfTheLoss(MeanMetric()),
    "R2Score": lambda: Fed(R2Score()),
    "SpearmanCorrCoef": lambda: Fed(SpearmanCorrCoef()),
    "BinaryAUROC": lambda: OfClasses(BinaryAUROC()),
    "CatMetric": lambda: Listing(CatMetric()),
    "update and compute": lambda: InTwoSteps(MeanSquaredError()),
}
MORE = list(METRICS)[2:]


@pytest.mark.bitwise
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in MORE else []) for n in METRICS])
def test_a_metric_that_is_fed_with_the_output_of_the_network(tmp_path: Path, name: str) -> None:
    check(Case(build=METRICS[name]), tmp_path)
    assert steps(tmp_path) == [3, 6]


@pytest.mark.bitwise
@pytest.mark.slow
def test_the_same_with_a_loss_fn_and_the_closed_form(tmp_path: Path) -> None:
    build = METRICS["R2Score and MeanSquaredError"]
    check(Case(build=build, loss_fn=losses), tmp_path / "given")
    check(Case(build=build, losses=None, bif={"sampler": None, "chains": None}), tmp_path / "closed")


class OfMetrics(Net):
    """Its loss is a metric of torchmetrics, as in libraries for time series and molecules."""

    def __init__(self, metric: nn.Module | None = None) -> None:
        super().__init__()
        self.metric = metric

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out, target = self.out(batch[0])[:, 0], batch[1].float()
        return (out - target).square().mean() if self.metric is None else self.metric(out, target)


def test_a_loss_that_is_a_metric(tmp_path: Path) -> None:
    loader = DataLoader(DATA, batch_size=8)
    found, right = (estimated(tmp_path / str(m), OfMetrics(m), loader) for m in (MeanSquaredError(), None))
    assert apart(found, right) < 1e-4


def test_a_metric_that_is_the_loss_and_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="R2Score raised ValueError: Needs at least two samples"):
        estimated(tmp_path, OfMetrics(R2Score()), DataLoader(DATA, batch_size=8))


# -- configurations -------------------------------------------------------------------------------------------------


class Config(MutableMapping[str, Any]):
    """Fills a cache of its own when it is read, as OmegaConf does."""

    def __init__(self, **values: Any) -> None:
        self.values_, self.cache = values, None

    def __getitem__(self, key: str) -> Any:
        self.cache = (self.cache or {}) | {key: True}
        if self.values_[key] == "???":
            raise ValueError("a value is missing")
        return self.values_[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.values_[key] = value

    def __delitem__(self, key: str) -> None:
        del self.values_[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)

    __eq__, __hash__ = object.__eq__, object.__hash__


def omega(**values: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.create(values)


class Configured(Classifier):
    def __init__(self, config: Any, whole: bool) -> None:
        super().__init__()
        if whole:
            self.save_hyperparameters(config)
        else:
            self.save_hyperparameters()


CONFIGS = {"stand-in": Config} | ({"OmegaConf": omega} if importlib.util.find_spec("omegaconf") else {})


@pytest.mark.bitwise
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_fills_itself_when_it_is_read(tmp_path: Path, name: str, whole: bool) -> None:
    build = lambda: Configured(CONFIGS[name](lr=0.1, layers=[1, 2]), whole)  # noqa: E731
    watched = check(Case(build=build, bif={"verify_restore": "always"}), tmp_path)
    if name == "stand-in" and not whole:  # Lightning itself reads one that is all hyperparameters
        assert watched.module.hparams["config"].cache is None
    with h5py.File(tmp_path / "bif" / "step=000000003.h5") as file:
        assert '"lr": 0.1, "layers": [1, 2]' in file["hyperparameters_json"].asstr()[()]


def test_a_missing_value_is_no_error() -> None:
    config = Config(lr=0.1, missing="???")
    assert (_readable(config, "lr"), _readable(config, "missing")) == (0.1, "<ValueError>")


class Meddling(CSVLogger):
    """A logger that changes the module where it gets numbers of a snapshot."""

    module: Any = None

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if "bif/llc" in metrics:
            self.module.calls["training"] += 1
        super().log_metrics(metrics, step)


def test_what_was_disturbed_is_named(tmp_path: Path) -> None:
    logger, module = Meddling(tmp_path, "csv"), Leaky()
    logger.module = module
    with pytest.raises(TrainingDisturbedError, match=r"changed attributes \(module\.calls\.training\) of the training"):
        fit(tmp_path, [bif(tmp_path)], module=module, logger=logger)


# -- loaders --------------------------------------------------------------------------------------------------------


class Under(Net):
    """Gets its batches in a collection of loaders."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch["main"], batch_idx)


def unbatched() -> DataLoader[Any]:
    return DataLoader(DATA, sampler=BatchSampler(RandomSampler(DATA), 8, False), batch_size=None)


def by_batch_sampler() -> DataLoader[Any]:
    return DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 8, False))


LOADERS: dict[str, tuple[type[Net], Any]] = {
    "without batching": (Net, unbatched),
    "batch sampler": (Net, by_batch_sampler),
    "collection": (Under, lambda: {"main": DataLoader(DATA, batch_size=8, shuffle=True)}),
    "collection, without batching": (Under, lambda: {"main": unbatched()}),
}


@pytest.mark.parametrize("name", LOADERS)
def test_indices_into_the_data_of_any_loader_with_rows(tmp_path: Path, plain: bl.Estimate, name: str) -> None:
    kind, make = LOADERS[name]
    found = estimated(tmp_path / "found", kind(), make())
    assert apart(found, plain) < 1e-5
    assert found.notes == plain.notes


def test_datasets_beside_a_loader_without_batching(tmp_path: Path, plain: bl.Estimate) -> None:
    sets = {"train": Subset(DATA, range(20)), "query": Subset(DATA, range(30, 36))}
    assert apart(estimated(tmp_path / "found", Net(), unbatched(), **sets), plain) < 1e-5


def test_a_loader_of_whole_batches_is_named_as_such(tmp_path: Path) -> None:
    batches = [(X[:8], Y[:8]), (X[8:16], Y[8:16])]
    loader = DataLoader(batches, batch_size=None)  # pyright: ignore
    with pytest.raises(MisconfigurationException, match=r"has whole batches as its items.*pass a dataset as train"):
        estimated(tmp_path / "refused", Net(), loader)
    found = estimated(tmp_path / "found", Net(), loader, train=Subset(DATA, range(20)), query=Subset(DATA, [30, 31]))
    assert "L(w) is over the train examples alone, since the training data of the Trainer has whole batches" in str(
        found.notes
    )


# -- other data than the Trainer's ------------------------------------------------------------------------------------


class Mined(Net):
    """The hardest positive and negative of a batch, which leave an example alone without a loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out, labels = self.out(batch[0]), batch[1]
        distance, same = torch.cdist(out, out), labels[:, None] == labels
        return F.relu((distance * same).amax(1) - (distance + 1e6 * same).amin(1) + 0.2).mean()


TRIPLETS = TensorDataset(X, X.roll(1, 0), X.roll(2, 0))


def triplet_loss(module: Net, batch: Any) -> Tensor:
    return F.triplet_margin_loss(*(module.out(part) for part in batch), reduction="none")


def test_data_of_another_form_needs_training_data(tmp_path: Path) -> None:
    train, query = Subset(TRIPLETS, range(20)), Subset(TRIPLETS, range(30, 36))
    options: dict[str, Any] = {"train": train, "query": query, "loss_fn": triplet_loss}
    loader = DataLoader(DATA, batch_size=8)
    with pytest.raises(MisconfigurationException, match=r"loss_fn takes the examples of train, but raised \w+ on the "
                       r"Trainer's training data \(TensorDataset\).*training_data=train"):  # fmt: skip
        estimated(tmp_path / "refused", Mined(), loader, **options)
    for name, data in (("train", train), ("all", TRIPLETS)):
        found = estimated(tmp_path / name, Mined(), loader, **options, training_data=data)
        right = bl.estimate(Mined(), triplet_loss, train, query, training_data=data, sampler=SGLD, chains=FEW)
        assert apart(found, right) < 1e-5
        assert f"L(w) is over the {len(data)} examples of training_data" in found.notes


def test_rows_of_the_training_data_may_be_named_too(tmp_path: Path) -> None:
    loader = DataLoader(DATA, batch_size=8, shuffle=True)
    found = estimated(tmp_path / "found", Net(), loader, training_data=range(20, 50))
    right = estimated(
        tmp_path / "right", Net(), DataLoader(DATA, batch_size=8), training_data=Subset(DATA, range(20, 50))
    )
    assert apart(found, right) < 1e-6


class Graph(Net):
    """One graph in the loader, whose nodes are the examples."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.losses(batch[0], batch[1]).mean()

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.out(x + x.mean(0)), y, reduction="none")


def test_nodes_of_one_graph(tmp_path: Path) -> None:
    loader = DataLoader([(X, Y)], batch_size=1, collate_fn=lambda items: items[0])  # pyright: ignore

    def loss_fn(module: Graph, nodes: Tensor) -> Tensor:
        return module.losses(X, Y)[nodes]

    nodes: Any = list(torch.arange(60))
    options: dict[str, Any] = {"loss_fn": loss_fn, "collate_fn": torch.stack}
    sets = {"train": OfNodes(nodes[:20]), "query": OfNodes(nodes[30:36])}
    found = estimated(tmp_path, Graph(), loader, **sets, **options, training_data=OfNodes(nodes))
    right = bl.estimate(Graph(), loss_fn, nodes[:20], nodes[30:36], training_data=nodes, sampler=SGLD, chains=FEW)
    assert apart(found, right) < 1e-5


class OfNodes(Dataset[Tensor]):
    """A list of numbers may also be rows of the training data."""

    def __init__(self, nodes: list[Tensor]) -> None:
        self.nodes = nodes

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, row: int) -> Tensor:
        return self.nodes[row]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from DATA


def test_a_stream_beside_the_data_that_the_posterior_is_of(tmp_path: Path, plain: bl.Estimate) -> None:
    sets = {"train": Subset(DATA, range(20)), "query": Subset(DATA, range(30, 36))}
    found = estimated(tmp_path / "found", Net(), DataLoader(Stream(), batch_size=8), **sets, training_data=DATA)
    assert apart(found, plain) < 1e-5


# -- shapes and modes -------------------------------------------------------------------------------------------------


class Squeezing(Net):
    """Loses the shape of a single example."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.nll_loss(self.out(batch[0]).squeeze().log_softmax(1), batch[1])


class Detector(nn.Module):
    """Losses in training mode, boxes in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, out: Tensor, y: Tensor) -> Any:
        return {"class": F.cross_entropy(self.drop(out), y)} if self.training else [out]


class Detecting(Net):
    def __init__(self) -> None:
        super().__init__()
        self.detector = Detector()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return sum(self.detector(self.out(batch[0]), batch[1]).values())


ADAPTED: dict[str, tuple[type[Net], str]] = {
    "batch of one": (Squeezing, "an example alone twice in its batch"),
    "evaluation mode": (Detecting, "module.detector in training mode"),
}


@pytest.mark.parametrize("options", [{}, {"sampler": None, "chains": None}], ids=["SGLD", "default"])
@pytest.mark.parametrize("name", ADAPTED)
def test_steps_that_need_something_else(tmp_path: Path, name: str, options: Any) -> None:
    kind, words = ADAPTED[name]
    found, right = (
        estimated(tmp_path / each.__name__, each(), DataLoader(DATA, batch_size=8), **options) for each in (kind, Net)
    )
    assert apart(found, right) < 1e-3
    assert any(words in note for note in found.notes)


class DetectingByNumber(Detecting):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (1 + batch_idx) * super().training_step(batch, batch_idx)


def test_a_step_that_is_called_in_another_way_is_checked_with_other_numbers_too(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="depends on the number of the batch"):
        estimated(tmp_path, DetectingByNumber(), DataLoader(DATA, batch_size=8))
