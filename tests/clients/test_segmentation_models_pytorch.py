"""segmentation-models-pytorch: a loss of each pixel, and the Dice loss of its documentation, which couples a batch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import pytest
import segmentation_models_pytorch as smp
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from client_training import Module

pytestmark = [pytest.mark.clients, pytest.mark.trainer, pytest.mark.bitwise]

DICE = smp.losses.DiceLoss("binary", from_logits=True)


def images() -> TensorDataset:
    """Bright squares on noise, and where they are."""
    generator = torch.Generator().manual_seed(0)
    noise, masks = torch.rand(24, 3, 32, 32, generator=generator), torch.zeros(24, 1, 32, 32)
    for mask in masks:
        row, column = torch.randint(20, (2,), generator=generator).tolist()
        mask[:, row : row + 12, column : column + 12] = 1
    return TensorDataset(0.5 * noise + 0.5 * masks, masks)


def segmentation(callbacks: list[Any], settings: dict[str, Any], *, loss: nn.Module) -> Module:
    def step(net: Any, batch: Any) -> Tensor:
        return loss(net(batch[0]), batch[1])

    net = smp.Unet("resnet18", encoder_depth=3, encoder_weights=None, decoder_channels=(16, 8, 4))
    module = Module(net, step)
    loader = DataLoader(images(), batch_size=8, shuffle=True)
    L.Trainer(max_epochs=2, callbacks=callbacks, **settings).fit(module, loader)
    return module


def dice_of_each(module: Any, batch: Any) -> Tensor:
    pairs = zip(module.net(batch[0]), batch[1], strict=True)
    return torch.stack([DICE(out[None], mask[None]) for out, mask in pairs])


def test_unet_with_cross_entropy(compare: Callable[..., None]) -> None:
    fit = partial(segmentation, loss=smp.losses.SoftBCEWithLogitsLoss())
    compare(fit, train=range(16), query=range(4))


def test_unet_with_dice_loss(compare: Callable[..., None]) -> None:
    compare(partial(segmentation, loss=DICE), train=range(16), query=range(4), loss_fn=dice_of_each)


def test_the_dice_loss_of_a_batch_has_no_shares(compare: Callable[..., None]) -> None:
    with pytest.raises(MisconfigurationException, match="couples the examples"):
        compare(partial(segmentation, loss=DICE), train=range(16), query=range(4))
