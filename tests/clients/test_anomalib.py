"""anomalib: FastFlow by its Engine, on folders of images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import Fastflow
from PIL import Image

pytestmark = [pytest.mark.clients, pytest.mark.trainer, pytest.mark.bitwise, pytest.mark.timeout(600)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Normal images of stripes, and some with a bright spot."""
    rng = np.random.default_rng(0)
    for kind, count in (("good", 20), ("bad", 4)):
        (tmp_path / "images" / kind).mkdir(parents=True)
        for row in range(count):
            pixels = rng.integers(0, 100, (64, 64, 3)) + 60 * (np.arange(64) // 8 % 2)[:, None, None]
            if kind == "bad":
                pixels[20:30, 20:30] = 255
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / kind / f"{row:02d}.png")
    return tmp_path / "images"


def test_fastflow(compare: Callable[..., None], folder: Path) -> None:
    def fit(callbacks: list[Any], settings: dict[str, Any]) -> Any:
        images = Folder(
            name="stripes", root=folder, normal_dir="good", abnormal_dir="bad", train_batch_size=5, eval_batch_size=4,
            num_workers=0,
        )  # fmt: skip
        model = Fastflow(
            backbone="resnet18", pre_trained=False, flow_steps=2, evaluator=False, visualizer=False,
            pre_processor=Fastflow.configure_pre_processor((64, 64)),
        )  # fmt: skip
        quiet = {name: value for name, value in settings.items() if name != "enable_checkpointing"}
        Engine(max_epochs=2, limit_val_batches=0, callbacks=callbacks, **quiet).fit(model, datamodule=images)
        return model

    compare(fit, train=range(12), query=range(4))
