"""Tokens through a Trainer: ragged Hugging Face data, a tokenizer, dumps that hold every token, training untouched."""

from pathlib import Path
from typing import Any

import datasets
import lightning as L
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader

import bif_lightning as bl
from small_language import CHAINS, SAMPLER, language, padded, sequences


class Training(L.LightningModule):
    """Trains the tiny model with next-token cross-entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.model = language()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses, mask = bl.causal_lm_loss(self.model, batch)
        return losses.sum() / mask.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-2)


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, ids: list[int], /) -> str:
        return "".join("abcdefghijk"[number] for number in ids)


def of_model(module: nn.Module, batch: Any) -> Any:
    return bl.causal_lm_loss(module.model, batch)


def collate(items: list[Any]) -> Any:
    return padded([{name: torch.as_tensor(value) for name, value in item.items()} for item in items])


def hugging_face(count: int, seed: int = 0) -> datasets.Dataset:
    rows = [{name: value.tolist() for name, value in item.items()} for item in sequences(count, seed)]
    return datasets.Dataset.from_list(rows)


def fit(folder: Path, *callbacks: L.Callback) -> Training:
    L.seed_everything(3, verbose=False)
    module = Training()
    loader = DataLoader(hugging_face(12), batch_size=4, shuffle=True, collate_fn=collate)
    trainer = L.Trainer(
        max_epochs=2, callbacks=list(callbacks), default_root_dir=folder, logger=False, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader)
    return module


def influence(folder: Path, **more: Any) -> bl.BIFCallback:
    options: dict[str, Any] = {
        "loss_fn": of_model, "per_token": True, "tokenizer": Letters(), "sampler": SAMPLER, "chains": CHAINS,
        "every_n_epochs": 1,
    } | more  # fmt: skip
    return bl.BIFCallback(range(6), hugging_face(3, 1), dirpath=folder / "bif", **options)


def test_dumps_hold_every_token(tmp_path: Path) -> None:
    with_it = fit(tmp_path, influence(tmp_path))
    without = fit(tmp_path)
    for one, other in zip(with_it.parameters(), without.parameters(), strict=True):
        assert torch.equal(one, other)
    dumps = sorted((tmp_path / "bif").glob("step=*.h5"))
    assert [dump.name for dump in dumps] == ["step=000000003.h5", "step=000000006.h5"]
    for dump in dumps:
        stored = bl.open_tokens(dump)
        block = stored.correlation(4, 2)
        ids = sequences(12)[4]["input_ids"].tolist()
        assert stored.texts("train", 4) == [Letters().decode([number]) for number in ids]
        assert block["train_text"].values.tolist() == stored.texts("train", 4)[1:]
        assert np.isfinite(block["value"]).all()
    train, _ = bl.open_samples(tmp_path / "bif")
    assert train.texts is not None
    assert train.texts[4] == Letters().decode(ids)
    assert bl.open_run(tmp_path / "bif").sizes["step"] == 2


@pytest.mark.slow
def test_texts_may_be_told(tmp_path: Path) -> None:
    def describe(item: Any) -> dict[str, Any]:
        return {"tokens": [f"[{number}]" for number in item["input_ids"]]}

    fit(tmp_path, influence(tmp_path, describe=describe, tokenizer=None, every_n_epochs=2))
    stored = bl.open_tokens(tmp_path / "bif" / "step=000000006.h5")
    assert stored.texts("query", 0) == [f"[{number}]" for number in sequences(3, 1)[0]["input_ids"].tolist()]


@pytest.mark.slow
def test_the_default_sampler_knows_of_tokens(tmp_path: Path) -> None:
    callback = influence(tmp_path, sampler=None, chains=bl.Chains(num_chains=2, num_draws=12, batch_size=6))
    fit(tmp_path, callback)
    assert callback.latest is not None
    assert isinstance(callback.latest.sampler, bl.SGLD)


def test_losses_of_examples_are_no_losses_of_tokens(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="pass a loss_fn"):
        influence(tmp_path, loss_fn=None)
    with pytest.raises(ValueError, match="per_token=True; return"):
        fit(tmp_path, influence(tmp_path, loss_fn=lambda module, batch: of_model(module, batch)[0].sum(1)))


@pytest.mark.slow
def test_masked_tokens_count_nothing_without_per_token(tmp_path: Path) -> None:
    """The same matrix whether absent tokens are 0 or something else."""
    found = []
    for absent in (0.0, 7.0):

        def losses(module: nn.Module, batch: Any, absent: float = absent) -> Any:
            values, mask = of_model(module, batch)
            return values.masked_fill(~mask, absent), mask

        callback = influence(tmp_path / str(absent), loss_fn=losses, per_token=False, tokenizer=None)
        fit(tmp_path, callback)
        assert callback.latest is not None
        found.append(callback.latest.influence)
    np.testing.assert_array_equal(*found)
