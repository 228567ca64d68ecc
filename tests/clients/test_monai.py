"""MONAI: its network, Dice loss, dictionary transforms and loader, whose batches hold MetaTensors."""

from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import pytest
from monai.data import CacheDataset, DataLoader, create_test_image_2d
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from monai.transforms import Compose, EnsureChannelFirstd, ScaleIntensityd
from torch import Tensor

from client_training import Module

pytestmark = [pytest.mark.clients, pytest.mark.trainer, pytest.mark.bitwise]


def images() -> CacheDataset:
    pairs = [
        create_test_image_2d(
            32, 32, num_objs=2, rad_max=10, rad_min=4, noise_max=0.3, num_seg_classes=1,
            random_state=np.random.RandomState(row),
        )
        for row in range(24)
    ]  # fmt: skip
    keys = ["image", "label"]
    prepare = Compose([EnsureChannelFirstd(keys, channel_dim="no_channel"), ScaleIntensityd(keys)])
    return CacheDataset([dict(zip(keys, pair, strict=True)) for pair in pairs], prepare, progress=False)


def segmentation(callbacks: list[Any], settings: dict[str, Any]) -> Module:
    dice = DiceLoss(sigmoid=True)

    def step(net: Any, batch: Any) -> Tensor:
        return dice(net(batch["image"]), batch["label"])

    net = UNet(spatial_dims=2, in_channels=1, out_channels=1, channels=(4, 8), strides=(2,), num_res_units=1)
    module = Module(net, step, rate=1e-2)
    loader = DataLoader(images(), batch_size=4, shuffle=True)
    L.Trainer(max_epochs=2, callbacks=callbacks, **settings).fit(module, loader)
    return module


def test_unet_with_dice_loss(compare: Callable[..., None]) -> None:
    compare(segmentation, train=range(20), query=range(5))
