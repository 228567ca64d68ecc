"""All metrics on fixed data, alone or as one process among several."""

import pickle
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from bif_lightning.config import SGLD
from bif_lightning.metrics import (
    EffectiveSampleSize,
    LinearDatamodelingScore,
    LocalLearningCoefficient,
    ScoreAgreement,
    SplitRHat,
)

SAMPLER = SGLD(step_size=0.03, inverse_temperature=7.0, localization=11.0)


def retrained() -> tuple[Tensor, Tensor, Tensor]:
    """Influences of 12 train examples on 5 queries, 40 subsets, and losses that follow them in part."""
    generator = torch.Generator().manual_seed(3)
    influence = torch.randn(12, 5, generator=generator)
    subsets = torch.rand(40, 12, generator=generator) < 0.5
    return influence, subsets, subsets.float() @ influence + 2 * torch.randn(40, 5, generator=generator)


def traces() -> Tensor:
    """4 chains of 30 draws with unlike means."""
    return torch.randn(4, 30, generator=torch.Generator().manual_seed(5)).double() + torch.arange(4)[:, None] * 0.2


def computed(part: slice) -> dict[str, float]:
    """What the metrics give when this process brings `part` of the subsets, chains and queries."""
    influence, subsets, losses = retrained()
    lds = LinearDatamodelingScore(influence)
    lds.update(subsets[part], losses[part])
    agreement = ScoreAgreement()
    one, other = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(7))
    agreement.update(one[:, part], other[:, part])
    rhat, ess, llc = SplitRHat(), EffectiveSampleSize(), LocalLearningCoefficient(SAMPLER, 0.25)
    for metric in (rhat, ess, llc):
        metric.update(traces()[part])
    found = {**lds.compute(), **llc.compute()}
    found |= {"agreement": agreement.compute(), "rhat": rhat.compute(), "ess": ess.compute()}
    return {name: float(value) for name, value in found.items()}


def work(rank: int, world_size: int, folder: str) -> None:
    """Compute as one of `world_size` processes, the first with one row and chain, and leave the result."""
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        first, last = (slice(None, 1), slice(1, None))
        Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(computed((first, last)[rank])))
    finally:
        dist.destroy_process_group()
