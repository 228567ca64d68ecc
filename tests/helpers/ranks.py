"""One process among several, for tests of torch.distributed."""

import os
import pickle
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

import small_models as models
from bif_lightning.config import SGLD, Chains, ControlledSGLD, Pairs, Sampler, Subspace
from bif_lightning.distributed.ranks import current_ranks
from bif_lightning.distributed.watchdog import CollectiveSection
from bif_lightning.estimation.estimate import estimate
from bif_lightning.results.estimate import Estimate

SAMPLER = SGLD(step_size=1e-3, inverse_temperature=20.0, localization=10.0)
CHAINS = Chains(num_chains=3, num_draws=9, batch_size=5, storage="moments")


KINDS: dict[str, tuple[Sampler, Chains]] = {
    "SGLD": (SAMPLER, CHAINS),
    "SGLD, conditioned": (SAMPLER, replace(CHAINS, storage="auto")),
    "SGLD in directions": (replace(SAMPLER, num_directions=5), CHAINS),
    "Pairs": (Pairs(scale=0.05), Chains(num_chains=3, num_draws=8)),
    "Subspace": (Subspace(num_directions=7), Chains(num_chains=3, num_draws=4)),
    "controlled": (ControlledSGLD(num_directions=7), Chains(num_chains=3, num_draws=4, thinning=2, batch_size=8)),
    "controlled, sketched": (
        ControlledSGLD(num_directions=7, gradient_bytes=8_000),
        Chains(num_chains=3, num_draws=4, thinning=2, batch_size=8),
    ),
}


def estimated(kind: str) -> Estimate:
    torch.set_num_threads(2)
    sampler, chains = KINDS[kind]
    return estimate(
        models.seeded(models.mlp), models.cross_entropy, models.data(), models.data(1, 4),
        sampler=sampler, chains=chains, train_labels=[0, 1] * 6, query_labels=[0, 1, 1, 0],
    )  # fmt: skip


def peacefully(rank: int, section: CollectiveSection) -> str:
    time.sleep(0.5 * rank)
    return "done"


def fails_on_one(rank: int, section: CollectiveSection) -> str:
    if rank == 1:
        raise ValueError("a bad number\nand more about it")
    while True:  # until the other's failure is heard
        section.beat("step 3 of 9")
        time.sleep(0.05)


def fails_late(rank: int, section: CollectiveSection) -> str:
    if rank == 0:
        time.sleep(1.0)
        raise KeyError("late")
    return "done early"


def fails_everywhere(rank: int, section: CollectiveSection) -> str:
    raise ValueError(f"rank {rank}")


def slow_but_alive(rank: int, section: CollectiveSection) -> str:
    for step in range(8 * rank):
        section.beat(f"step {step}")
        time.sleep(0.5)
    return "done"


def hangs(rank: int, section: CollectiveSection) -> str:
    section.beat("step 5 of 9")
    time.sleep(4.0 * rank)
    return "done"


def fails_everywhere_at_last(rank: int, section: CollectiveSection) -> str:
    if rank == 0:
        time.sleep(1.0)
    raise ValueError(f"rank {rank}")


def ends_at_once(rank: int, section: CollectiveSection) -> str:
    if rank == 0:
        os._exit(0)
    while True:
        section.beat("step 3 of 9")
        time.sleep(0.05)


def ends_before_the_other_fails(rank: int, section: CollectiveSection) -> str:
    dist.barrier()
    if rank == 0:
        os._exit(0)
    time.sleep(2.0)
    raise ValueError(f"rank {rank}")


def part(rank: int, world_size: int, folder: str, port: int, case: str) -> None:
    """Work together where the store ends with rank 0, which does not linger, and the others are slow to look at it."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    dist.barrier()  # the first one may end as soon as it likes
    if rank:
        pause = time.sleep
        time.sleep = lambda seconds: pause(max(seconds, 2.0))
    try:
        with current_ranks().collective("counting") as section:
            found = globals()[case](rank, section)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(found))
    os._exit(0)


def meet(rank: int, world_size: int, folder: str) -> None:
    """Work together in every way that can go wrong, and leave what each rank got of it."""
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world_size)
    ranks = replace(current_ranks(), patience=3.0)
    found = dict[str, str]()
    for case in (peacefully, fails_on_one, fails_late, fails_everywhere, slow_but_alive, peacefully, hangs):
        try:
            with ranks.collective("counting") as section:
                found[case.__name__] = case(rank, section)
        except Exception as error:
            found[case.__name__] = f"{type(error).__name__}: {error}"
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(found))
    time.sleep(4.0 * (1 - rank))  # the store lives as long as its first process


def work(rank: int, world_size: int, folder: str) -> None:
    """Estimate as one of `world_size` processes, and leave the result in the folder."""
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps({kind: estimated(kind) for kind in KINDS}))
    finally:
        dist.destroy_process_group()
