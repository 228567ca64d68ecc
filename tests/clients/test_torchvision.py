"""Networks of torchvision on its FakeData: all weights of a small one, the last layer of a larger one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import FakeData
from torchvision.models import resnet18, shufflenet_v2_x0_5
from torchvision.transforms import ToTensor

from client_training import Module

pytestmark = [pytest.mark.clients, pytest.mark.trainer, pytest.mark.bitwise]

IMAGES = FakeData(32, (3, 32, 32), num_classes=4, transform=ToTensor())
LABELS = [int(IMAGES[row][1]) for row in range(20)]


def step(net: Any, batch: Any) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])


def classifier(callbacks: list[Any], settings: dict[str, Any], *, network: Callable[..., nn.Module]) -> Module:
    module = Module(network(num_classes=4), step)
    L.Trainer(max_epochs=2, callbacks=callbacks, **settings).fit(module, DataLoader(IMAGES, batch_size=8, shuffle=True))
    return module


def test_shufflenet_v2(compare: Callable[..., None]) -> None:
    compare(partial(classifier, network=shufflenet_v2_x0_5), train=range(20), query=range(5), labels=LABELS)


def test_resnet18_with_its_last_layer_sampled(compare: Callable[..., None]) -> None:
    fit = partial(classifier, network=resnet18)
    compare(fit, train=range(20), query=range(5), labels=LABELS, params="net.fc.*")
