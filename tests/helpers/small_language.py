"""A tiny language model, ragged sequences for it, and an estimate of its tokens, also as one of several processes."""

import pickle
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bif_lightning.config import SGLD, Chains, Sampler
from bif_lightning.estimation.estimate import estimate
from bif_lightning.losses.causal_lm import causal_lm_loss
from bif_lightning.results.estimate import Estimate

WORDS, WIDTH = 11, 6
SAMPLER = SGLD(step_size=1e-3, inverse_temperature=20.0, localization=50.0)
CHAINS = Chains(num_chains=3, num_draws=20, batch_size=4)

Item = dict[str, Tensor]


class Language(nn.Module):
    """Token numbers to logits, the way LitGPT's models do it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, idx: Tensor) -> Tensor:
        before = self.embedding(idx).cumsum(1) / torch.arange(1, idx.shape[1] + 1, device=idx.device)[:, None]
        return self.head(torch.nn.functional.gelu(self.mix(self.norm(before))))


def language(dtype: torch.dtype = torch.float32) -> Language:
    torch.manual_seed(0)
    return Language().to(dtype)


def sequences(count: int, seed: int = 0, longest: int = 7) -> list[Item]:
    """Sequences of 2 to `longest` tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest + 1, (count,), generator=generator).tolist()
    rows = [torch.randint(0, WORDS, (length,), generator=generator) for length in lengths]
    return [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]


def padded(items: list[Item], side: str = "right") -> Item:
    """A batch of sequences, padded with a token that occurs."""
    width = max(len(item["input_ids"]) for item in items)

    def pad(row: Tensor) -> Tensor:
        missing = width - len(row)
        return nn.functional.pad(row, (missing, 0) if side == "left" else (0, missing))

    return {name: torch.stack([pad(item[name]) for item in items]) for name in ("input_ids", "attention_mask")}


def by_tokens(sampler: Sampler = SAMPLER, chains: Chains | None = CHAINS, **more: Any) -> Estimate:
    """Of 9 train sequences and 4 queries."""
    options = {"dtype": torch.float32, "per_token": True} | more
    model = language(options.pop("dtype"))
    return estimate(
        model, causal_lm_loss, sequences(9), sequences(4, 1),
        sampler=sampler, chains=chains, collate_fn=padded, eval_batch_size=5, **options,
    )  # fmt: skip


@cache
def shared_by_tokens() -> Estimate:
    """`by_tokens()`, once for all tests of a process that only read it."""
    return by_tokens()


def work(rank: int, world_size: int, folder: str) -> None:
    """Estimate as one of `world_size` processes, and leave the changes and a block in the folder."""
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        torch.set_num_threads(1)
        Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(by_tokens()))
    finally:
        dist.destroy_process_group()
