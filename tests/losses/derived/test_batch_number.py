"""Training steps whose loss depends on the number of the batch are refused, and the remedy works."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader

import bif_lightning as bl
import small_models as models
from bif_lightning.losses.derived.batch_number import check_number_of_batch

pytestmark = pytest.mark.exact

DATA = models.data()
BATCH = torch.stack([x for x, _ in DATA]), torch.stack([y for _, y in DATA])


def only_zero(number: int) -> float:
    if number:
        raise IndexError("list index out of range")
    return 0.0


SAME: dict[str, Callable[[int], float]] = {
    "none": lambda number: 0.0,
    "rounding": lambda number: 1e-7 * number % 1e-6,
    "fails": only_zero,
}
OTHER: dict[str, Callable[[int], float]] = {
    "every second batch": lambda number: float(number % 2 == 0),
    "every hundredth batch": lambda number: float(number % 100 == 0),
    "the first batches": lambda number: float(number < 500),
    "a ramp": lambda number: min(1.0, number / 1000),
}


def step_at(extra: Callable[[int], float]) -> Callable[[int], Any]:
    def of(number: int) -> Any:
        return lambda module, batch: F.cross_entropy(module(batch[0]), batch[1]) + extra(number)

    return of


@pytest.mark.parametrize("name", SAME)
def test_one_loss_for_all_numbers(name: str) -> None:
    check_number_of_batch(step_at(SAME[name]), models.seeded(models.mlp), BATCH)


@pytest.mark.parametrize("name", OTHER)
def test_other_losses_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"with batch_idx=0 and .* with batch_idx=\d+ for the same batch.*loss_fn"):
        check_number_of_batch(step_at(OTHER[name]), models.seeded(models.mlp), BATCH)


class Alternating(L.LightningModule):
    """Fits its classes in one batch, and rebuilds its inputs in the next."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.back = nn.Linear(6, 3), nn.Linear(3, 6)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hidden = self.net(batch[0])
        return F.mse_loss(self.back(hidden), batch[0]) if batch_idx % 2 else F.cross_entropy(hidden, batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.trainer
def test_a_step_that_alternates_takes_a_loss_fn(tmp_path: Path) -> None:
    def fit(name: str, **options: Any) -> bl.BIFCallback:
        bif = bl.BIFCallback(range(6), range(6, 9), dirpath=tmp_path / name, at_steps=[0], at_end=False, **options)
        trainer = L.Trainer(
            max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False, callbacks=[bif],
        )  # fmt: skip
        trainer.fit(Alternating(), DataLoader(DATA, batch_size=4))
        return bif

    with pytest.raises(MisconfigurationException, match="depends on the number of the batch"):
        fit("refused")
    found = fit("given", loss_fn=lambda m, b: F.cross_entropy(m.net(b[0]), b[1], reduction="none"))
    assert found.latest is not None
