"""What the verdict says of settings that "auto" finds, from the first step of training on, as markdown.

    python benchmarks/verdicts.py [--steps 0 16 96 600] > table.md        # some minutes

Three small networks learn digits; at some steps each is attributed by itself, with no settings given.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bif_lightning as bl
import models
from bif_lightning.results.verdict import reliability
from bif_lightning.sampling.choice import judge

TRAIN, QUERY, BATCH = 1000, 100, 32
STEPS = (0, 16, 96, 600)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP": lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
    "BatchNorm": lambda: nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)),
    "LayerNorm": lambda: nn.Sequential(
        nn.Linear(64, 64),
        nn.GELU(),
        nn.LayerNorm(64),
        nn.Linear(64, 64),
        nn.GELU(),
        nn.LayerNorm(64),
        nn.Linear(64, 10),
    ),
}


def losses(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Of each example, nats."""
    return F.cross_entropy(module(batch[0]), batch[1], reduction="none")


def snapshots(make: Callable[[], nn.Module], train: models.Pairs, steps: Sequence[int]) -> dict[int, nn.Module]:
    """The network at each of the steps."""
    torch.manual_seed(0)
    module, generator = make(), torch.Generator().manual_seed(1)
    optimizer, found = torch.optim.Adam(module.parameters(), 1e-3), dict[int, nn.Module]()
    for step in range(max(steps) + 1):
        if step in steps:
            found[step] = deepcopy(module).eval()
        rows = torch.randint(0, TRAIN, (BATCH,), generator=generator).tolist()
        x, y = (torch.stack([torch.as_tensor(train[row][part]) for row in rows]) for part in (0, 1))
        optimizer.zero_grad()
        losses(module, (x, y)).mean().backward()
        optimizer.step()
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="training steps to attribute at")
    steps = parser.parse_args().steps
    warnings.simplefilter("ignore")
    data = models.digits(TRAIN + QUERY)
    train, query = data[:TRAIN], data[TRAIN:]
    print("| network | step | verdict | lasting | draws a chain | reliability | noise ratio | LLC ratio | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, make in NETWORKS.items():
        for step, module in snapshots(make, train, steps).items():
            found = bl.estimate(module, losses, train, query, sampler="auto")
            of = found.diagnostics
            numbers = (reliability(of.group_agreement), of.noise_ratio, of.llc_ratio, found.cost.seconds)
            cells = (name, step, judge(found).word, found.lasting, found.chains.num_draws)
            print(
                f"| {' | '.join(map(str, cells))} | {' | '.join(f'{number:.2f}' for number in numbers)} |", flush=True
            )


if __name__ == "__main__":
    main()
