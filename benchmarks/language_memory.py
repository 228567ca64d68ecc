"""Memory that a snapshot of a language model needs, from its shapes; and of the smallest one, measured.

    python benchmarks/language_memory.py            # the table, from shapes alone
    python benchmarks/language_memory.py --measure  # and the peak of a model of 14M weights on this machine

The settings are those of the paper's scaling runs: the weights of attention and MLP are sampled, 400 x 150 tokens
against 18 x 150, 4 chains of 500 draws, one chain at a time (as on a GPU), the model in bfloat16. The chain's state is
float32; what is not sampled stays as it is, and is neither copied nor saved. Activations are those of the bare passes
and not counted, but for the logits, which are the largest.
"""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bif_lightning as bl
from bif_lightning.losses.causal_lm import CHUNK

TOKENS = 150
GIGA = 1e9
TRACES = 4 * 500 * (400 + 18) * TOKENS * 4  # float32, kept in memory up to 1 GiB


@dataclass(frozen=True)
class Shape:
    """A decoder: layers, width, vocabulary, weights of attention and of the MLP in units of width², and tied head."""

    name: str
    layers: int
    width: int
    words: int
    attention: float = 4.0
    mlp: float = 8.0

    @property
    def sampled(self) -> float:
        """Weights of attention and MLP."""
        return self.layers * self.width**2 * (self.attention + self.mlp)

    @property
    def frozen(self) -> float:
        """Embedding and head."""
        return 2 * self.words * self.width


SHAPES = [
    Shape("Pythia-14M", 6, 128, 50304),
    Shape("Pythia-410M", 24, 1024, 50304),
    Shape("Pythia-2.8B", 32, 2560, 50304),
    # 8 of 64 heads have keys and values of their own; the MLP has a gate.
    Shape("Llama-2-70B", 80, 8192, 32000, attention=2 + 2 / 8, mlp=3 * 28672 / 8192),
]


def chain_bytes(weights: float, preconditioned: bool) -> float:
    """Of the snapshot, and one chain and its anchor: float32 vectors, bfloat16 weights to compute with, gradients."""
    vectors = 4 * (1 + 2 + 2 * preconditioned)
    rounded = 2 * 2 * 2
    return weights * (vectors + rounded)


def row(shape: Shape, batch: int = 32) -> str:
    model = 2 * (shape.sampled + shape.frozen)
    logits = batch * TOKENS * shape.words * 2
    plain, preconditioned = (chain_bytes(shape.sampled, each) for each in (False, True))
    whole = model + preconditioned + 2 * logits + 4 * CHUNK
    cells = [model, plain, preconditioned, 2 * logits, whole]
    sampled = f"{shape.sampled / 1e6:,.0f} M of {(shape.sampled + shape.frozen) / 1e6:,.0f} M"
    return f"| {shape.name} | {sampled} | " + " | ".join(f"{each / GIGA:.3g}" for each in cells) + " |"


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = nn.ModuleList([nn.Linear(width, 3 * width), nn.Linear(width, width)])
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.attention[0](self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.attention[1](F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class Decoder(nn.Module):
    """Of the sizes of a Pythia, without its rotary embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(shape.words, shape.width), nn.Linear(shape.width, shape.words, bias=False)
        self.blocks = nn.Sequential(*(Block(shape.width, 4) for _ in range(shape.layers)))

    def forward(self, idx: Tensor) -> Tensor:
        return self.head(self.blocks(self.words(idx)))


def peak() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def measure(shape: Shape, sequences: int = 8, draws: int = 2) -> None:
    """In a process of its own: the peak of the bare passes, then that of a snapshot."""
    torch.manual_seed(0)
    model = Decoder(shape).bfloat16().eval()
    rows = list(torch.randint(0, shape.words, (sequences, TOKENS)))
    sampler = bl.SGLD(step_size=1e-7, inverse_temperature=30.0, localization=300.0, preconditioner="rmsprop")
    chains = bl.Chains(num_chains=1, num_draws=draws, batch_size=sequences)
    sampled = [p for name, p in model.named_parameters() if ".attention." in name or ".mlp." in name]

    def passes() -> None:
        batch = torch.stack(rows)
        losses, mask = bl.causal_lm_loss(model, batch)
        torch.autograd.grad(losses.sum() / mask.sum(), sampled)

    with ThreadPoolExecutor(1) as pool:  # the engine, too, computes on threads
        pool.submit(passes).result()
        pool.submit(passes).result()
    bare = peak()
    found = bl.estimate(
        model, bl.causal_lm_loss, rows, sampler=sampler, chains=chains, per_token=True, eval_batch_size=sequences,
        params=["*.attention.*", "*.mlp.*"],
    )  # fmt: skip
    weights = sum(p.numel() for p in sampled)
    print(
        f"{shape.name}, {weights / 1e6:.2f} M weights sampled: announced {found.cost.extra_bytes / 1e6:.0f} MB, by the "
        f"table {chain_bytes(weights, True) / 1e6:.0f} MB and {draws * sequences * TOKENS * 4 / 1e6:.1f} MB of draws; "
        f"measured {(peak() - bare) / 1e6:.0f} MB beyond the bare passes ({bare / 1e6:.0f} MB)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        measure(SHAPES[0])
        return
    print("| model | sampled weights | model GB | a chain GB | with RMSprop GB | logits, gradient GB | in all GB |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(row(shape) for shape in SHAPES))
    print(f"\nDraws of all tokens: {TRACES / GIGA:.2g} GB of main memory, the same for every model.")
    if given.measure:
        subprocess.run([sys.executable, __file__, "--alone"], check=True)


if __name__ == "__main__":
    main()
