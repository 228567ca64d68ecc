"""The HParams tab of TensorBoard has numbers of the influence, as its own code reads the event files."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from bif_lightning.trainer.columns import COLUMNS
from tiny_run import Leaky, bif, fit

pytestmark = pytest.mark.trainer


class Configured(Leaky):
    """Has hyperparameters, one of them nested."""

    def __init__(self, rate: float = 0.5, nested: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()


class Describing(Configured):
    """Logs metrics of its own as columns."""

    def on_fit_start(self) -> None:
        self.logger.log_hyperparams(self.hparams, {"own": 1.0})


def table_of(folder: Path) -> list[tuple[dict[str, Any], dict[str, float]]]:
    """Hyperparameters and metrics of each row of the tab."""
    events = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(events, str(folder)), logdir=str(folder)))
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=10)
    request.allowed_statuses.extend(api_pb2.Status.values())
    answer = list_session_groups.Handler(RequestContext(), context, "", request).run()
    return [
        (
            {name: value.number_value or value.string_value for name, value in row.hparams.items()},
            {each.name.tag: each.value for each in row.metric_values},
        )
        for row in sorted(answer.session_groups, key=lambda row: row.name)
    ]


def run(folder: Path, module: Any, version: str, **logger: Any) -> TensorBoardLogger:
    made = TensorBoardLogger(folder, "", version, **logger)
    fit(folder, [bif(folder, dirpath=None, views=["scalars", "bands"])], module=module, logger=made)
    return made


@pytest.mark.slow
def test_columns_hold_the_last_numbers_of_each_run(tmp_path: Path) -> None:
    for rate in (0.5, 0.25):
        run(tmp_path, Configured(rate, {"width": 8}), f"v{rate}")
    rows = table_of(tmp_path)
    assert [row[0] for row in rows] == [{"rate": 0.25, "nested/width": 8.0}, {"rate": 0.5, "nested/width": 8.0}]
    for (_, metrics), version in zip(rows, ("v0.25", "v0.5"), strict=True):
        events = EventAccumulator(str(tmp_path / version)).Reload()
        assert set(metrics) == {"hp_metric", *COLUMNS}
        for tag in COLUMNS:
            assert metrics[tag] == pytest.approx(events.Scalars(tag)[-1].value, rel=1e-6)
            assert [each.step for each in events.Scalars(tag)] == [3, 6], "no number is made up"


@pytest.mark.parametrize(
    ("module", "logger", "columns"),
    [
        (Describing, {}, {"own"}),
        (Describing, {"default_hp_metric": False}, {"own"}),
        (Configured, {"default_hp_metric": False}, None),
        (Leaky, {}, None),
    ],
    ids=["own columns", "own columns alone", "none wanted", "no hyperparameters"],
)
def test_columns_of_others_stay(tmp_path: Path, module: Any, logger: Any, columns: set[str] | None) -> None:
    run(tmp_path, module(), "v", **logger)
    rows = table_of(tmp_path)
    assert [set(metrics) for _, metrics in rows] == ([] if columns is None else [columns])


@pytest.mark.slow
def test_without_logging_lightnings_own_column_stays(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, "", "v")
    fit(tmp_path, [bif(tmp_path, dirpath=None, log=False)], module=Configured(), logger=logger)
    assert [set(metrics) for _, metrics in table_of(tmp_path)] == [{"hp_metric"}]
