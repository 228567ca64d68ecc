"""litgpt: its GPT, its collate function for instructions, and its cross entropy in a LightningModule."""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from litgpt.data.base import get_sft_collate_fn
from litgpt.model import GPT, Config
from litgpt.utils import chunked_cross_entropy
from torch import Tensor
from torch.utils.data import DataLoader

from client_training import Module

pytestmark = [pytest.mark.clients, pytest.mark.trainer, pytest.mark.bitwise]


def instructions() -> list[dict[str, Tensor]]:
    """Token numbers of 5 to 12 tokens, of which the first three are the prompt, without a loss."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for row in range(24):
        tokens = torch.randint(1, 40, (5 + row % 8,), generator=generator)
        labels = tokens.clone()
        labels[:3] = -100
        found.append({"input_ids": tokens, "labels": labels})
    return found


def step(net: Any, batch: Any) -> Tensor:
    return chunked_cross_entropy(net(batch["input_ids"])[..., :-1, :], batch["labels"][..., 1:])


def language_model(callbacks: list[Any], settings: dict[str, Any]) -> Module:
    config = Config(block_size=16, vocab_size=40, padded_vocab_size=40, n_layer=2, n_head=2, n_embd=16)
    module = Module(GPT(config), step)
    loader = DataLoader(instructions(), batch_size=6, shuffle=True, collate_fn=get_sft_collate_fn())
    L.Trainer(max_epochs=2, callbacks=callbacks, **settings).fit(module, loader)
    return module


def test_gpt_on_instructions(compare: Callable[..., None]) -> None:
    compare(language_model, train=range(20), query=range(5))
