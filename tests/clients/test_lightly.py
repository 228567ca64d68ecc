"""lightly: its linear evaluation of a frozen network, on its data set of image files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
from lightly.data import LightlyDataset
from lightly.utils.benchmarking import LinearClassifier
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import ToTensor

pytestmark = [pytest.mark.clients, pytest.mark.trainer, pytest.mark.bitwise]

CLASSES = 3
LABELS = [row // 8 for row in range(24)]
HEAD = "classification_head.*"  # the other weights are run without gradients


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for each class, with eight images of about its colour."""
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        (tmp_path / "images" / str(label)).mkdir(parents=True)
        for row in range(8):
            pixels = rng.integers(0, 160, (32, 32, 3)) + 90 * np.eye(CLASSES, dtype=int)[label]
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / str(label) / f"{row}.png")
    return tmp_path / "images"


def backbone() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def fitted(module: pl.LightningModule, data: LightlyDataset, callbacks: list[Any], settings: dict[str, Any]) -> Any:
    loader = DataLoader(data, batch_size=8, shuffle=True)
    pl.Trainer(max_epochs=2, callbacks=callbacks, **settings).fit(module, loader)
    return module


def test_linear_evaluation(compare: Callable[..., None], folder: Path) -> None:
    def fit(callbacks: list[Any], settings: dict[str, Any]) -> Any:
        module = LinearClassifier(backbone(), 8, feature_dim=16, num_classes=CLASSES, topk=(1, 2))
        return fitted(module, LightlyDataset(str(folder), transform=ToTensor()), callbacks, settings)

    compare(fit, train=range(24), query=range(24), labels=LABELS, params=HEAD)
