"""A LightningCLI as a user writes one, and what its YAML names: data, a loss, an observable.

python cli_app.py fit --config run.yaml
"""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class Points(Dataset[Any]):
    """Points of three classes.

    Args:
        size: how many.
        seed: of their places.
    """

    def __init__(self, size: int = 24, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.y = torch.arange(size) % 3
        self.x = torch.randn(size, 4, generator=generator) + self.y[:, None]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


class Data(L.LightningDataModule):
    """Loads points."""

    def train_dataloader(self) -> Any:
        return DataLoader(Points(), batch_size=8, shuffle=True)


class Model(L.LightningModule):
    """Two layers.

    Args:
        width: of the hidden one.
    """

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def losses(module: Any, batch: Any) -> Tensor:
    """The loss of each example."""
    return F.cross_entropy(module.net(batch[0]), batch[1], reduction="none")


def margin(module: Any, batch: Any) -> Tensor:
    """How far the first class is above the second."""
    return module.net(batch[0])[:, :2].diff(dim=1)[:, 0]


if __name__ == "__main__":
    LightningCLI(Model, Data)
