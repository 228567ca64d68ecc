"""PyTorch Tabular makes its Trainer itself; its settings are of OmegaConf, and its metrics squeeze a batch of one."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from pytorch_tabular import TabularModel
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
from pytorch_tabular.models import CategoryEmbeddingModelConfig

pytestmark = [pytest.mark.clients, pytest.mark.trainer, pytest.mark.bitwise]


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(60, 3)).astype(np.float32), columns=["a", "b", "c"])
    frame["kind"] = rng.choice(["x", "y", "z"], size=60)
    frame["number"] = (frame.a - 2 * frame.b + (frame.kind == "x")).astype(np.float32)
    frame["class"] = np.where(frame.number > 0, "high", "low")
    return frame


def model(
    callbacks: list[Any], settings: dict[str, Any], *, task: Literal["regression", "classification"], target: str
) -> Any:
    quiet = {name: settings[name] for name in ("default_root_dir", "enable_model_summary")}
    tabular = TabularModel(
        data_config=DataConfig(target=[target], continuous_cols=["a", "b", "c"], categorical_cols=["kind"]),
        model_config=CategoryEmbeddingModelConfig(task=task, layers="16-8"),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(
            batch_size=12, max_epochs=2, accelerator="cpu", devices=1, checkpoints=None, load_best=False,
            early_stopping=None, progress_bar="none", trainer_kwargs=quiet,
        ),
        verbose=False,
    )  # fmt: skip
    tabular.fit(train=table(), callbacks=callbacks)
    return tabular.model


def test_regression(compare: Callable[..., None]) -> None:
    compare(partial(model, task="regression", target="number"), train=range(20), query=range(5))


def test_classification(compare: Callable[..., None]) -> None:
    compare(partial(model, task="classification", target="class"), train=range(20), query=range(5))
