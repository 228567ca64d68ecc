"""Losses and batches that are random are refused in these words, and what the message says to do works."""

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

import bif_lightning as bl

pytestmark = [pytest.mark.trainer, pytest.mark.exact]

G = torch.Generator().manual_seed(0)
DATA = TensorDataset(torch.randn(40, 6, generator=G), torch.randint(3, (40,), generator=G))


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(6, 3)

    def losses(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.body(batch[0]), batch[1], reduction="none")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.losses(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class VAE(Net):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 4), nn.Linear(2, 6)

    def losses(self, batch: Any) -> Tensor:
        mean, log = self.encode(batch[0]).chunk(2, -1)
        back = self.decode(mean + torch.randn_like(mean) * (log / 2).exp())
        return (back - batch[0]).square().sum(-1) - 0.5 * (1 + log - mean**2 - log.exp()).sum(-1)


class Denoiser(Net):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(7, 6)

    def losses(self, batch: Any) -> Tensor:
        level, noise = torch.rand(len(batch[0]), 1), torch.randn_like(batch[0])
        found = self.net(torch.cat([batch[0] * (1 - level) + noise * level, level], 1))
        return F.mse_loss(found, noise, reduction="none").mean(1)


class Running(Net):
    """Keeps running means, in evaluation mode too."""

    running: Tensor
    always = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.zeros(6))

    def losses(self, batch: Any) -> Tensor:
        if self.always or self.training:
            self.running.lerp_(batch[0].mean(0), 0.1)
        return super().losses([batch[0] - self.running, batch[1]])


class RunningInTrainingMode(Running):
    """The remedy of the message."""

    always = False


class Augmented(Net):
    def augments(self) -> bool:
        return self.trainer.training

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] + 0.3 * torch.randn_like(batch[0]), batch[1]] if self.augments() else batch


class AugmentedInTrainingMode(Augmented):
    """The remedy of the message."""

    def augments(self) -> bool:
        return self.training


def masking(items: Any) -> Any:
    x, y = default_collate(items)
    return [x * (torch.rand_like(x) > 0.3), y]


def own(module: Any, batch: Any) -> Tensor:
    return module.losses(batch)


def run(folder: Path, kind: Any, collate: Any = None, **options: Any) -> bl.Estimate:
    options = {"sampler": bl.Pairs(), "chains": bl.Chains(num_chains=2, num_draws=4)} | options
    bif = bl.BIFCallback(range(8), range(20, 24), dirpath=folder / "bif", at_steps=[0], at_end=False, **options)
    trainer = L.Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", callbacks=[bif],
    )  # fmt: skip
    trainer.fit(kind(), DataLoader(DATA, batch_size=8, collate_fn=collate))
    assert bif.latest is not None
    return bif.latest


@pytest.mark.parametrize("given", [{}, {"loss_fn": own}], ids=["training_step", "loss_fn"])
@pytest.mark.parametrize(
    ("kind", "collate", "match"),
    [
        (VAE, None, "draws random numbers in evaluation mode too"),
        (Denoiser, None, "draws random numbers in evaluation mode too"),
        (Running, None, r"another loss from call to call.*buffer with running statistics.*self\.training"),
        (Augmented, None, r"a hook of the module.*draws random numbers.*self\.training"),
        (Net, masking, "the collate function.*draws random numbers.*a collate_fn without them"),
    ],
)
def test_randomness_is_named(tmp_path: Path, kind: Any, collate: Any, match: str, given: Any) -> None:
    with pytest.raises(MisconfigurationException, match=match):
        run(tmp_path, kind, collate, **given)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [VAE, Denoiser])
def test_the_loss_fn_of_the_message_works(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(MisconfigurationException, match="keyed_loss_fn") as refused:
        run(tmp_path / "refused", kind)
    source = re.search(r"def keyed_loss_fn(.|\n)*torch\.stack\(losses\)", str(refused.value))
    assert source is not None
    names: dict[str, Any] = {"torch": torch}
    exec(source[0], names)
    one, two = (run(tmp_path / name, kind, loss_fn=names["keyed_loss_fn"]) for name in ("one", "two"))
    assert (one.influence == two.influence).all()
    assert any("draws random numbers" in note and "sequentially" in note for note in one.notes)


@pytest.mark.slow
def test_what_changes_in_training_mode_alone_and_a_plain_collate_fn_work(tmp_path: Path) -> None:
    right = run(tmp_path / "right", Net)
    assert (run(tmp_path / "hook", AugmentedInTrainingMode).influence == right.influence).all()
    assert (run(tmp_path / "state", RunningInTrainingMode).influence == right.influence).all()
    assert (run(tmp_path / "mask", Net, masking, collate_fn=default_collate).influence == right.influence).all()
