"""Hooks on a batch's way: what they give at each snapshot is used, and weights that chains move are refused."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bif_lightning as bl

pytestmark = [pytest.mark.trainer, pytest.mark.exact]

G = torch.Generator().manual_seed(0)
DATA = TensorDataset(torch.randn(24, 4, generator=G), torch.randint(3, (24,), generator=G))
CHAINS = bl.Chains(num_chains=2, num_draws=6)
SGLD = bl.SGLD(step_size=1e-3, inverse_temperature=50.0, localization=50.0)


class Resting(L.LightningModule):
    """Keeps its weights, so that snapshots differ by their batches alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(4, 3)

    def factor(self) -> float:
        return 1.0

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        batch[0] *= self.factor()  # in place, as it must not be a second time
        return batch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Doubled(Resting):
    def factor(self) -> float:
        return 2.0


class Growing(Resting):
    def factor(self) -> float:
        return 1.0 + self.current_epoch


class Counting(Resting):
    """By statistics of its own, which each batch changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def on_train_epoch_end(self) -> None:
        self.seen += 1

    def on_train_start(self) -> None:
        self.seen.fill_(0.5)

    def factor(self) -> Any:
        return 1.0 if self.seen < 1 else 2.0


def estimates(folder: Path, module: L.LightningModule, **options: Any) -> list[np.ndarray]:
    """At the end of the first epoch, and at a step of the second."""
    given: dict[str, Any] = {"sampler": SGLD, "chains": CHAINS} | options
    bif = bl.BIFCallback(range(8), range(12, 16), dirpath=folder / "bif", at_steps=[3, 5], at_end=False, **given)
    trainer = L.Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, callbacks=[bif],
    )  # fmt: skip
    trainer.fit(module, DataLoader(DATA, batch_size=8))
    return list(bl.open_run(folder / "bif").influence.values)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Growing, Counting])
@pytest.mark.parametrize("options", [{}, {"sampler": None, "chains": None}], ids=["SGLD", "closed form"])
def test_batches_are_those_of_each_snapshot(tmp_path: Path, kind: Any, options: Any) -> None:
    first, second = estimates(tmp_path / "found", kind(), **options)
    plain = estimates(tmp_path / "plain", Resting(), **options)
    doubled = estimates(tmp_path / "doubled", Doubled(), **options)
    assert np.array_equal(first, plain[0])
    assert np.array_equal(second, doubled[1])
    assert not np.allclose(second, plain[1], rtol=0.1)


class Embedded(Resting):
    """Embeds its inputs on their way, as tokens may be."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [torch.tanh(self.embed(batch[0])), batch[1]]


class EmbeddedInStep(Embedded):
    """The remedy of the message."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((torch.tanh(self.embed(batch[0])), batch[1]), batch_idx)


@pytest.mark.slow
def test_weights_that_chains_move_are_refused_on_a_batchs_way_and_the_remedies_work(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"computes with weights that chains move.*params"):
        estimates(tmp_path / "refused", Embedded())
    assert estimates(tmp_path / "in step", EmbeddedInStep())
    left, right = (
        estimates(tmp_path / kind.__name__, kind(), params=["net.*"])[0] for kind in (Embedded, EmbeddedInStep)
    )
    np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-8)


def test_frozen_weights_may_be_used(tmp_path: Path) -> None:
    module = Embedded()
    module.embed.requires_grad_(False)
    assert estimates(tmp_path, module)
