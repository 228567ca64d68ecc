"""neuralforecast: NHITS, whose step draws windows at random; the loss of a series is that of its last one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from neuralforecast import NeuralForecast
from neuralforecast.models import NHITS
from torch import Tensor

pytestmark = [pytest.mark.clients, pytest.mark.trainer, pytest.mark.bitwise]

PAST, AHEAD = 12, 6


def series() -> pd.DataFrame:
    rng, when = np.random.default_rng(0), np.arange(48)
    parts: list[pd.DataFrame] = []
    for row in range(24):
        values = np.sin(when / (2 + row % 3)) + rng.normal(0, 0.2, 48)
        parts.append(pd.DataFrame({"unique_id": f"{row:02d}", "ds": when, "y": values}))
    return pd.concat(parts, ignore_index=True)


def forecaster(callbacks: list[Any], settings: dict[str, Any]) -> Any:
    model = NHITS(
        h=AHEAD, input_size=PAST, max_steps=8, batch_size=8, windows_batch_size=32, mlp_units=3 * [[16, 16]],
        n_pool_kernel_size=[2, 2, 1], callbacks=callbacks, **settings,
    )  # fmt: skip
    run = NeuralForecast(models=[model], freq=1)
    run.fit(series())
    return run.models[0]


def loss_of_last_window(model: Any, batch: Any) -> Tensor:
    window = batch["temporal"][:, batch["y_idx"], -PAST - AHEAD :]
    past, ahead = window.split([PAST, AHEAD], dim=1)
    known = {"insample_y": past[..., None], "insample_mask": past[..., None] * 0 + 1}
    forecast = model(known | dict.fromkeys(("hist_exog", "futr_exog", "stat_exog")))
    return (forecast[..., 0] - ahead).abs().mean(1)


def test_nhits(compare: Callable[..., None]) -> None:
    compare(forecaster, train=range(20), query=range(5), loss_fn=loss_of_last_window)
