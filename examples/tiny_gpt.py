"""Watch influence between single tokens appear while a small GPT learns Python from Python's own library.

A GPT of 200,000 weights is trained from scratch on the sources of the standard library, in pieces of 64
tokens. At log-spaced steps, SGLD chains around the weights show how the loss of every token of 40 training sequences
moves with that of every token of 12 others. Tokens of a kind (brackets, numbers, names) come to move together: learning
about one bracket is learning about others. The page `tokens.html` shows when.

    python examples/tiny_gpt.py [--out runs/tiny_gpt]

With the `tokenizers` package tokens are pieces of words, learned from the same sources; else they are bytes.
"""

import argparse
import keyword
import logging
import shutil
import sysconfig
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import numpy as np
import token_page
import torch
from datasets import Dataset
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import bif_lightning as bl

WORDS, LENGTH, WIDTH, LAYERS, HEADS = 768, 64, 64, 2, 4
TRAIN, QUERIES = 40, 12
STEPS = [5, 20, 80, 250, 800]
SAMPLER = bl.SGLD(step_size=3e-6, inverse_temperature=50.0, localization=1e5)
CHAINS = bl.Chains(num_chains=4, num_draws=60, thinning=2, batch_size=8)
KINDS = ("bracket", "keyword", "name", "number", "punctuation", "space")


class Tokenizer(Protocol):
    """What is needed of one."""

    def decode(self, ids: list[int], /) -> str: ...


class Bytes:
    """The tokenizer of last resort: every byte is a token."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int], /) -> str:
        return bytes(ids).decode(errors="replace")


class Block(nn.Module):
    """Attention to the tokens before, then two layers for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.attention(self.attention_norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """Token numbers [batch, token] to logits [batch, token, word]."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, words, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.words(idx) + self.places(torch.arange(idx.shape[1], device=idx.device))
        return self.head(self.norm(self.blocks(x)))


class Training(L.LightningModule):
    """The usual training of a language model."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.gpt = GPT(words)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = _mean(bl.causal_lm_loss(self.gpt, batch))
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", _mean(bl.causal_lm_loss(self.gpt, batch)), prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 3e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS[-1], pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _mean(losses: tuple[Tensor, Tensor]) -> Tensor:
    return losses[0].sum() / losses[1].sum()


def sources() -> list[str]:
    """Modules of Python's standard library, in a fixed order."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [path.read_text(errors="replace") for path in sorted(folder.glob("*.py"))[:60]]


def tokenized(texts: list[str]) -> tuple[Tokenizer, list[list[int]], int]:
    """A tokenizer learned from the texts, their tokens, and how many kinds of token there are."""
    try:
        from tokenizers import Tokenizer as Trained
        from tokenizers import decoders, models, pre_tokenizers, trainers
    except ImportError:
        return Bytes(), [Bytes().encode(text) for text in texts], 256
    learned = Trained(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" {1,8}|\n", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    learned.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learned.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=WORDS, initial_alphabet=alphabet, show_progress=False)
    )
    return learned, [each.ids for each in learned.encode_batch(texts)], learned.get_vocab_size()


def pieces(tokens: list[list[int]]) -> list[list[int]]:
    """Pieces of 64 tokens, in a fixed random order."""
    found = [row[start : start + LENGTH] for row in tokens for start in range(0, len(row) - LENGTH, LENGTH)]
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def kind(token: str) -> str | None:
    """What kind of Python a token is; None for what is none of these."""
    text = token.strip()
    if not text:
        return "space"
    if all(character in "()[]{}" for character in text):
        return "bracket"
    if text.isdigit():
        return "number"
    if text in keyword.kwlist:
        return "keyword"
    if text.isidentifier():
        return "name"
    return None if any(character.isalnum() for character in text) else "punctuation"


def kinds_of(stored: Any, side: str) -> list[str | None]:
    """The kind of every token that has a loss."""
    axis = stored.train if side == "train" else stored.query
    texts = [stored.texts(side, row) or [] for row in range(axis.num_sequences)]
    return [kind(texts[i][s]) for i, s in zip(axis.sequence, axis.position, strict=True)]


def train(out: Path) -> None:
    """Train, with snapshots, into a folder."""
    L.seed_everything(0, verbose=False)
    tokenizer, tokens, words = tokenized(sources())
    rows = Dataset.from_dict({"input_ids": pieces(tokens)}).with_format("torch")
    queries, validation = rows.select(range(QUERIES)), rows.select(range(QUERIES, QUERIES + 64))
    training = rows.select(range(QUERIES + 64, len(rows)))
    influence = bl.BIFCallback(
        range(TRAIN), queries, loss_fn=lambda module, batch: bl.causal_lm_loss(module.gpt, batch), per_token=True,
        tokenizer=tokenizer, at_steps=STEPS, at_end=False, sampler=SAMPLER, chains=CHAINS, precision="10bit",
        dirpath=out / "bif",
    )  # fmt: skip
    trainer = L.Trainer(
        max_steps=STEPS[-1], accelerator="cpu", callbacks=[influence], logger=TensorBoardLogger(out, "logs"),
        val_check_interval=100, check_val_every_n_epoch=None, num_sanity_val_steps=0, enable_checkpointing=False,
        enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader(training, batch_size=24, shuffle=True, drop_last=True)  # pyright: ignore[reportArgumentType]
    module = Training(words)
    print(f"{sum(each.numel() for each in module.parameters()):,} weights, {len(training):,} pieces of {LENGTH} tokens")
    trainer.fit(module, loader, DataLoader(validation, batch_size=64))  # pyright: ignore[reportArgumentType]


def curves(dumps: list[Path]) -> Iterator[token_page.Snapshot]:
    """Of each dump, how tokens of a kind move with tokens of each kind, and with every query token."""
    for dump in dumps:
        stored = bl.open_tokens(dump)
        rows, columns = (kinds_of(stored, side) for side in ("train", "query"))
        by_kind, names, across = stored.tokens.group_means(rows, columns)
        single = [f"{place:09d}" for place in range(len(columns))]
        by_token, _, _ = stored.tokens.group_means(rows, single)
        yield token_page.Snapshot(int(dump.stem.partition("=")[2]), names, across, by_kind, by_token, stored)


def table(snapshots: list[token_page.Snapshot]) -> str:
    """Mean correlation of tokens with tokens of their own kind, and with the rest, at each step."""
    lines = ["mean correlation of query tokens with train tokens of the same kind (± its 95 % interval):"]
    lines.append("step  " + "".join(f"{name:>18}" for name in KINDS))
    for each in snapshots:
        cells = []
        for name in KINDS:
            value, error = each.same(name)
            clear = "*" if abs(value) > 1.96 * error else " "
            cells.append(f"{value:+10.3f} ±{1.96 * error:.3f}{clear}")
        lines.append(f"{each.step:<6}" + "".join(f"{cell:>18}" for cell in cells))
    for name in KINDS:
        clear = [each.step for each in snapshots if each.excess(name)[0] > 1.96 * each.excess(name)[1]]
        when = f"from step {clear[0]}" if clear else "at no step"
        lines.append(f"{name}: more alike among themselves than with other kinds, for certain, {when}")
    return "\n".join(lines)


def main(out: Path) -> None:
    """Train, then show what the dumps say."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "The '.*dataloader' does not have many workers")
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    train(out)
    snapshots = list(curves(sorted((out / "bif").glob("step=*.h5"))))
    print(table(snapshots))
    page = out / "tokens.html"
    page.write_text(token_page.page(snapshots), encoding="utf-8")
    print(f"\n{page}: open it in a browser. tensorboard --logdir {out} has the views of whole sequences.")
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny_gpt"))
    main(parser.parse_args().out)
