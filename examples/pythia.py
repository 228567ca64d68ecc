"""Influence of every token of the Pile on every token of some queries, by checkpoints of a Pythia model.

The settings are those of the scaling runs of "Bayesian Influence Functions for Hessian-Free Data Attribution" (arXiv
2509.26544): 400 sequences of 150 tokens against 18 queries, weights of attention and MLP, 4 chains of 500 draws, all
weights in bfloat16. One dump for each checkpoint; nothing is trained.

    pip install transformers
    python examples/pythia.py --model EleutherAI/pythia-14m --revision step512 step4000 step143000
    python examples/pythia.py --random-init --sequences 16 --queries 4 --tokens 24 --draws 20   # without a network

With `--random-init` the model is a tiny one with random weights, and the text comes from Python's own sources.
"""

import argparse
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

import bif_lightning as bl

PARAMS = ["*.attention.*", "*.mlp.*"]
CORPUS = "NeelNanda/pile-10k"


class Bytes:
    """Tokens of one byte each, for a model of random weights."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int], /) -> str:
        return bytes(ids).decode(errors="replace")


def checkpoints(given: argparse.Namespace) -> Iterator[tuple[int, Any]]:
    """(step, model) of every revision."""
    if given.random_init:
        torch.manual_seed(given.seed)
        config = GPTNeoXConfig(
            vocab_size=256, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=given.tokens, bos_token_id=0, eos_token_id=0, use_cache=False,
        )  # fmt: skip
        yield 0, GPTNeoXForCausalLM(config).to(given.dtype)
        return
    for revision in given.revision:
        model = AutoModelForCausalLM.from_pretrained(given.model, revision=revision, dtype=given.dtype)
        model.config.use_cache = False
        found = re.search(r"\d+", revision)
        yield int(found[0]) if found else 0, model


def sequences(given: argparse.Namespace, tokenizer: Any) -> list[dict[str, Tensor]]:
    """Pieces of text of so many tokens, each from the start of a text of its own."""
    found = list[dict[str, Tensor]]()
    for text in _texts(given):
        ids = tokenizer.encode(text)[: given.tokens]
        if len(ids) > given.tokens // 2:
            found.append({"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.long)})
        if len(found) == given.sequences + given.queries:
            return found
    raise SystemExit(
        f"there are {len(found)} texts of more than {given.tokens // 2} tokens, and {given.sequences + given.queries} "
        "are wanted; lower --sequences, --queries or --tokens"
    )


def _texts(given: argparse.Namespace) -> Iterator[str]:
    if not given.random_init:
        yield from (row["text"] for row in load_dataset(given.data, split="train", streaming=True))
        return
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        yield path.read_text(errors="replace")


def padded(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch of ragged sequences."""
    return {
        name: torch.nn.utils.rnn.pad_sequence([item[name] for item in items], batch_first=True) for name in items[0]
    }


def described(side: str, items: list[dict[str, Tensor]], tokenizer: Any) -> bl.Samples:
    """Who the sequences are, with the texts of their tokens."""
    ids = tuple(item["input_ids"].numpy() for item in items)
    tokens = tuple(tuple(tokenizer.decode([int(number)]) for number in row) for row in ids)
    return bl.Samples(
        ids=tuple(f"{side}-{row}" for row in range(len(items))),
        index=np.arange(len(items)),
        texts=tuple("".join(row) for row in tokens),
        tokens=tokens,
        token_ids=ids,
    )


def strongest(stored: Any, query: int, count: int = 5) -> list[str]:
    """The pairs of tokens that move together most, for certain, of one query with all sequences."""
    block = stored.correlation(None, query)
    value, error = block["value"].values, block["standard_error"].values
    order = np.argsort(np.where(abs(value) > 1.96 * error, -abs(value), 0), axis=None)[:count]
    rows, columns = np.unravel_index(order, value.shape)
    return [
        f"{block['train_text'].values[i]!r} (sequence {block['train_sequence'].values[i]}) and "
        f"{block['query_text'].values[j]!r}: {value[i, j]:+.2f} ± {1.96 * error[i, j]:.2f}"
        for i, j in zip(rows, columns, strict=True)
    ]


def main() -> None:
    """Estimate at every checkpoint, write the dumps, and print the strongest pairs of tokens."""
    given = arguments()
    tokenizer = Bytes() if given.random_init else AutoTokenizer.from_pretrained(given.model)
    items = sequences(given, tokenizer)
    train, query = items[given.queries :], items[: given.queries]
    who = described("train", train, tokenizer), described("query", query, tokenizer)
    bl.write_samples(given.out, *who)
    # A sequence's loss is the sum over its tokens here, and their mean in the paper.
    sampler = bl.SGLD(
        step_size=given.step_size, inverse_temperature=given.inverse_temperature / given.tokens,
        localization=given.localization, gradient=given.gradient,
    )  # fmt: skip
    chains = bl.Chains(num_chains=given.chains, num_draws=given.draws, batch_size=given.batch_size, seed=given.seed)
    for step, model in checkpoints(given):
        found = bl.estimate(
            model.to(given.device), bl.causal_lm_loss, train, query, sampler=sampler, chains=chains, params=PARAMS,
            collate_fn=padded, eval_batch_size=given.eval_batch_size, per_token=True,
        )  # fmt: skip
        path = bl.write_dump(given.out, found, step=step, epoch=0, train=who[0], query=who[1], precision="10bit")
        print(f"step {step}: {bl.judge(found)}")
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {found.cost.seconds:.0f} s")
        print("\n".join(strongest(bl.open_tokens(path), 0)))


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="EleutherAI/pythia-14m")
    parser.add_argument("--revision", nargs="+", default=["step143000"], help="checkpoints of the model")
    parser.add_argument("--data", default=CORPUS, help="a dataset of the hub with a column 'text'")
    parser.add_argument("--random-init", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/pythia"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.bfloat16)
    words = "how steps see the loss; the paper's is minibatch, which drifts where a model is not at a minimum"
    parser.add_argument("--gradient", default="control_variate", choices=["control_variate", "minibatch"], help=words)
    numbers = {
        "sequences": 400, "queries": 18, "tokens": 150, "chains": 4, "draws": 500, "batch-size": 32,
        "eval-batch-size": 32, "seed": 0,
    }  # fmt: skip
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, value in {"step-size": 1e-5, "inverse-temperature": 30.0, "localization": 300.0}.items():
        parser.add_argument(f"--{name}", type=float, default=value)
    return parser.parse_args()


if __name__ == "__main__":
    main()
