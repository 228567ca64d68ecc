"""torchgeo: its Trainer tasks for classification and segmentation, with frozen backbones, on a data set of its kind."""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchgeo.datasets import NonGeoDataset
from torchgeo.trainers import ClassificationTask, SemanticSegmentationTask

pytestmark = [pytest.mark.clients, pytest.mark.trainer, pytest.mark.bitwise]

LABELS = [row % 3 for row in range(24)]


class Scenes(NonGeoDataset):
    """Scenes of four bands, of which one or none is bright, with a label or a mask."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(index))
        image[LABELS[index], :, 16:] += 1
        mask = torch.zeros(32, 32, dtype=torch.long)
        mask[:, 16:] = LABELS[index]
        return {"image": image, self.target: torch.tensor(LABELS[index]) if self.target == "label" else mask}


def task(callbacks: list[Any], settings: dict[str, Any], *, make: Callable[[], Any], target: str) -> Any:
    module = make()
    loader = DataLoader(Scenes(target), batch_size=8, shuffle=True)
    L.Trainer(max_epochs=2, callbacks=callbacks, **settings).fit(module, loader)
    return module


def test_classification(compare: Callable[..., None]) -> None:
    make = partial(ClassificationTask, model="resnet18", in_channels=4, num_classes=3, freeze_backbone=True)
    compare(partial(task, make=make, target="label"), train=range(20), query=range(5), labels=LABELS[:20])


def test_segmentation(compare: Callable[..., None]) -> None:
    make = partial(
        SemanticSegmentationTask, model="unet", backbone="resnet18", in_channels=4, num_classes=3,
        freeze_backbone=True, freeze_decoder=True,
    )  # fmt: skip
    compare(partial(task, make=make, target="mask"), train=range(20), query=range(5))
