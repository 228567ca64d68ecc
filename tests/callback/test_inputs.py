"""Loggers, data of every kind, and bad input refused before training starts."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

import bif_lightning as bl
from tiny_run import SAMPLER, Leaky, Points, bif, fit

pytestmark = pytest.mark.trainer


@pytest.mark.slow
def test_tensorboard_gets_the_views(tmp_path: Path) -> None:
    fit(tmp_path, [bif(tmp_path)], logger=TensorBoardLogger(tmp_path, name="", version="tb"))
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [event.step for event in events.Scalars("bif/llc")] == [3, 6]


def test_dumps_lie_beside_the_loggers_files(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "csv")
    fit(tmp_path, [bif(tmp_path, dirpath=None)], logger=logger)
    assert sorted(path.name for path in (Path(logger.log_dir) / "bif").iterdir()) == [
        "integrated.h5", "samples.h5", "step=000000003.h5", "step=000000006.h5",
    ]  # fmt: skip
    assert "bif/llc" in (Path(logger.log_dir) / "metrics.csv").read_text()


def test_no_logger_at_all(tmp_path: Path) -> None:
    fit(tmp_path, [bif(tmp_path, dirpath=None)], logger=False, default_root_dir=tmp_path)
    assert len(list((tmp_path / "lightning_logs" / "version_0" / "bif").glob("step=*.h5"))) == 2


@pytest.mark.slow
def test_a_dump_holds_what_the_callback_was_told(tmp_path: Path) -> None:
    accuracy = bl.MetricValue("accuracy", MulticlassAccuracy(3), lambda m, b: (m.net(b[0]), b[1]))
    margin = bl.PerExample("margin", lambda m, b: m.net(b[0]).topk(2).values.diff(dim=1)[:, 0])
    by_class = bl.GroupMean("class_loss", [0, 1, 2, 0, 1])
    callback = bif(tmp_path, observables=[accuracy, margin, by_class], store_traces=True, params="net.4.*")
    fit(tmp_path, [callback])
    dump = xr.open_dataset(tmp_path / "bif" / "step=000000006.h5", engine="h5netcdf")
    assert dump.correlation.shape == (12, 5)
    assert dump.margin_correlation.shape == (12, 5)
    assert dump.accuracy_influence.shape == (12, 1)
    assert dump.class_loss_influence.shape == (12, 3)
    assert callback.latest is not None
    assert callback.latest.parameters == ("net.4.weight", "net.4.bias")
    run = bl.open_run(tmp_path / "bif")
    assert {"loss_step", "accuracy"} & {str(name).removeprefix("metric_") for name in run.variables} or run.attrs
    traces = callback.latest.traces
    assert traces is not None
    centred = traces.train.astype(float) - traces.train.mean(1, keepdims=True, dtype=float)
    queries = traces.columns["loss"].astype(float) - traces.columns["loss"].mean(1, keepdims=True, dtype=float)
    expected = -np.einsum("cti,ctj->ij", centred, queries) / (2 * 3)
    assert np.allclose(dump.influence.values, expected, rtol=1e-5, atol=1e-9)


def test_hugging_face_data_describes_itself(tmp_path: Path) -> None:
    points = Points(12, augment=False)
    of = getattr(datasets, "List", datasets.Sequence)  # the latter before datasets 4
    features = datasets.Features(
        {"x": of(datasets.Value("float32")), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    data = datasets.Dataset.from_dict({"x": points.x.tolist(), "label": points.y.tolist()}, features=features)

    class OnDicts(Leaky):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.net(batch["x"]), batch["label"])

    loader = DataLoader(data.with_format("torch"), batch_size=4)
    fit(tmp_path, [bif(tmp_path, train=data.with_format("torch"), query=[0, 5])], module=OnDicts(), data=loader)
    table = bl.top(bl.open_run(tmp_path / "bif"), query=1, k=2)
    assert set(table["label"]) <= {"a", "b", "c"}
    means = bl.by_label(bl.open_run(tmp_path / "bif"))
    assert means["mean"].shape == (2, 3, 2)


def test_train_by_train(tmp_path: Path) -> None:
    callback = bif(tmp_path, query=None)
    fit(tmp_path, [callback])
    assert callback.latest is not None
    assert np.array_equal(callback.latest.influence, callback.latest.influence.T)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [np.array([3, 5]), list(np.array([3, 5])), np.isin(np.arange(24), [3, 5])])
def test_rows_of_numpy_are_those_of_a_list(tmp_path: Path, rows: Any) -> None:
    found = [bif(tmp_path / str(number), train=train) for number, train in enumerate(([3, 5], rows))]
    data = DataLoader(Points(augment=False), batch_size=8)
    for callback in found:
        fit(tmp_path, [callback], data=data)
    assert found[0].latest is not None
    assert found[1].latest is not None
    assert np.array_equal(found[0].latest.influence, found[1].latest.influence)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        yield from Points(24)


def refused(
    tmp_path: Path, match: str, error: Any = (MisconfigurationException, ValueError, TypeError), **kwargs: Any
) -> None:
    """The run stops with this message before the first optimizer step."""
    trainer = {name: kwargs.pop(name) for name in ("precision", "data", "module") if name in kwargs}
    module = trainer.pop("module", None) or Leaky()
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(error, match=match):
        fit(tmp_path, [bif(tmp_path, **kwargs)], module=module, **trainer)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def returns_mean(module: Any, batch: Any) -> Tensor:
    return F.cross_entropy(module.net(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"train": []}, "train is empty"),
        ({"train": Points(0)}, "train is empty"),
        ({"query": Stream()}, "query is a Stream.*map-style"),
        ({"train": [0, 24]}, r"index 24.*24 examples \(0 to 23\)"),
        ({"train": [0, -1]}, "negative"),
        ({"train": [1, 1]}, "repeated"),
        ({"train": np.arange(9) > 3}, "mask of 9 values, but the training data has 24"),
        ({"train": np.zeros(24, bool)}, "train is empty"),
        ({"query": np.array([1.0, 2.0])}, "query: 2 whole numbers in floating point"),
        ({"params": "head.*"}, r"params pattern 'head\.\*' matches no parameter"),
        ({"loss_fn": returns_mean}, "reduction"),
        ({"every_n_epochs": 1, "every_n_train_steps": 1}, "choose one"),
        ({"every_n_train_steps": 0}, "every_n_train_steps is 0"),
        ({"at_steps": [3, -1]}, "at_steps"),
        ({"num_snapshots": 0}, "num_snapshots is 0"),
        ({"num_snapshots": 3, "at_steps": [1]}, "at_steps and num_snapshots are both given"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
        ({"launch": "elsewhere"}, "launch is 'elsewhere'"),
        ({"per_token": True}, "per_token=True needs token losses"),
        ({"views": ["heatmaps"]}, "heatmaps"),
        ({"dirpath": "memory://bucket/bif"}, "dirpath is memory://bucket/bif, which is no place of this machine"),
        ({"sampler": bl.SGLD(step_size=10.0, inverse_temperature=100.0, localization=0.1)}, "lower step_size"),
    ],
)
def test_bad_settings_are_refused_before_training(tmp_path: Path, kwargs: Any, match: str) -> None:
    refused(tmp_path, match, **kwargs)


def test_nan_losses_are_named_before_training(tmp_path: Path) -> None:
    poisoned = Points(12, augment=False)
    poisoned.x[7] = float("nan")
    refused(tmp_path, "example 7 is nan", train=poisoned)
    poisoned.x[7], poisoned.x[6] = 0.0, float("nan")
    loss_fn = lambda m, b: F.cross_entropy(m.net(b[0]), b[1], reduction="none")  # noqa: E731
    refused(tmp_path, "6", train=poisoned, loss_fn=loss_fn)


def test_manual_optimization_needs_a_loss(tmp_path: Path) -> None:
    module = Leaky()
    module.automatic_optimization = False
    refused(tmp_path, "pass loss_fn", module=module)


def test_indices_into_a_stream_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "pass a dataset as train", train=[0, 1], data=DataLoader(Stream(), batch_size=8))


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, [bif(tmp_path)])
    refused(tmp_path, "holds 2 dumps of another run")


def test_other_samples_in_the_folder_are_refused(tmp_path: Path) -> None:
    fit(tmp_path, [bif(tmp_path)])
    for dump in (tmp_path / "bif").glob("step=*.h5"):
        dump.unlink()
    refused(tmp_path, "belongs to another run", train=Points(9, augment=False))


@pytest.mark.parametrize(
    "trainer",
    [
        {"default_root_dir": "memory://bucket/run", "logger": False},
        {"logger": CSVLogger("memory://bucket/logs")},
    ],
    ids=["default_root_dir", "logger"],
)
def test_logs_in_a_bucket_need_a_local_folder_for_the_dumps(tmp_path: Path, trainer: Any, dumps: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"log folder of the Trainer is memory://bucket.*as dirpath"):
        fit(tmp_path, [bif(tmp_path, dirpath=None)], **trainer)
    fit(tmp_path, [bif(tmp_path)], **trainer)
    assert dumps() == [3, 6]


def test_a_folder_that_cannot_be_written_stops_or_warns(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    refused(tmp_path, "file", error=OSError, dirpath=tmp_path / "file" / "bif")
    with pytest.warns(UserWarning, match="no influence will be estimated"):
        trainer, _ = fit(tmp_path, [bif(tmp_path, dirpath=tmp_path / "file" / "bif", on_error="warn")])
    assert trainer.global_step == 6


def test_diverging_chains_write_no_matrix(tmp_path: Path, dumps: Any) -> None:
    """A loss that explodes off the snapshot: training goes on with a warning that says what to change."""

    def explodes(module: Any, batch: Any) -> Tensor:
        away = (module.net[4].bias - bias).abs().sum()
        return F.cross_entropy(module.net(batch[0]), batch[1], reduction="none") + torch.where(away > 0, torch.inf, 0.0)

    module = Leaky()
    bias = module.net[4].bias.detach().clone()
    callback = bif(tmp_path, at_start=True, at_steps=[], at_end=False, loss_fn=explodes, on_error="warn")
    with pytest.warns(UserWarning, match=r"2 chains diverged.*chain 0 diverged at draw 0 of 4.*halve step_size"):
        fit(tmp_path, [callback], module=module)
    assert dumps() == []


def test_stream_as_training_data_takes_minibatches_from_the_attribution_set(tmp_path: Path, dumps: Any) -> None:
    fit(tmp_path, [bif(tmp_path)], data=DataLoader(Stream(), batch_size=8))
    assert dumps() == [3, 6]


def test_latest_estimate_is_at_hand(tmp_path: Path) -> None:
    callback = bif(tmp_path, train=TensorDataset(Points(6).x, Points(6).y))
    fit(tmp_path, [callback])
    assert callback.latest is not None
    assert callback.latest.sampler == SAMPLER


def test_an_open_iterator_in_the_module_is_warned_of(tmp_path: Path) -> None:
    module = Leaky()
    module.stream = iter(range(100))
    with pytest.warns(UserWarning, match=r"module\.stream is an iterator.*loss_fn"):
        fit(tmp_path, [bif(tmp_path)], module=module)
