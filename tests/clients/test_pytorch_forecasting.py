"""pytorch-forecasting: data and models of its tutorials. Its losses are metrics of torchmetrics; batches hold None."""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
from pytorch_forecasting import NBeats, RecurrentNetwork, TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.data.examples import generate_ar_data
from pytorch_forecasting.metrics import MAE, QuantileLoss

pytestmark = [pytest.mark.clients, pytest.mark.trainer, pytest.mark.bitwise]

BY_SERIES = {"static_categoricals": ["series"]}


def series(**columns: Any) -> TimeSeriesDataSet:
    frame = generate_ar_data(seasonality=10.0, timesteps=60, n_series=8, seed=42)
    frame["series"] = frame.series.astype(str)
    lengths = {
        "min_encoder_length": 12,
        "max_encoder_length": 12,
        "min_prediction_length": 5,
        "max_prediction_length": 5,
    }
    return TimeSeriesDataSet(
        frame, time_idx="time_idx", target="value", group_ids=["series"], time_varying_unknown_reals=["value"],
        **lengths, **columns,
    )  # fmt: skip


def forecaster(
    callbacks: list[Any], settings: dict[str, Any], *, columns: dict[str, Any], make: Callable[..., Any]
) -> Any:
    data = series(**columns)
    module = make(data)
    loader = data.to_dataloader(train=True, batch_size=16)
    pl.Trainer(max_epochs=2, limit_train_batches=4, callbacks=callbacks, **settings).fit(module, loader)
    return module


def test_nbeats(compare: Callable[..., None]) -> None:
    make = partial(NBeats.from_dataset, widths=[16, 32])
    compare(partial(forecaster, columns={}, make=make), train=range(16), query=range(4))


def test_recurrent_network(compare: Callable[..., None]) -> None:
    make = partial(RecurrentNetwork.from_dataset, hidden_size=8, loss=MAE())
    compare(partial(forecaster, columns=BY_SERIES, make=make), train=range(16), query=range(4))


def test_temporal_fusion_transformer(compare: Callable[..., None]) -> None:
    make = partial(TemporalFusionTransformer.from_dataset, hidden_size=8, attention_head_size=1, loss=QuantileLoss())
    columns = BY_SERIES | {"time_varying_known_reals": ["time_idx"]}
    compare(partial(forecaster, columns=columns, make=make), train=range(16), query=range(4))
