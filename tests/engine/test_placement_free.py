"""The same bits whoever runs the chains: threads, processes, and in whichever order."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

import ranks
import small_models as models
from bif_lightning.config import SGLD, Chains
from bif_lightning.estimator import estimate
from bif_lightning.placement import Placement
from bif_lightning.result import Cost, Estimate

CHAINS = Chains(num_chains=4, num_draws=5, batch_size=5)


def differences(one: object, other: object, path: str = "") -> list[str]:
    """Paths of fields that differ in any bit; what an estimate cost may differ."""
    if isinstance(one, Cost):
        return []
    if dataclasses.is_dataclass(one):
        pairs = [(f.name, getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one)]
        return [d for name, a, b in pairs for d in differences(a, b, f"{path}.{name}")]
    if isinstance(one, np.ndarray):
        return [] if one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True) else [path]
    return [] if repr(one) == repr(other) else [path]


def with_threads(threads: int, kind: str = "SGLD", make: object = models.mlp) -> Estimate:
    sampler, chains = ranks.KINDS[kind]
    chains = CHAINS if kind == "SGLD" else chains
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return estimate(
            models.seeded(make), models.cross_entropy, models.data(), models.data(1, 4),
            sampler=sampler, chains=chains, train_labels=[0, 1] * 6, query_labels=[0, 1, 1, 0],
        )  # fmt: skip
    finally:
        torch.set_num_threads(before)


def test_chains_side_by_side_give_the_same_bits() -> None:
    one, two = with_threads(1), with_threads(2)
    assert (one.cost.workers, two.cost.workers) == (1, 2)
    assert differences(one, two) == []
    assert differences(one, with_threads(4)) == []


@pytest.mark.parametrize("kind", ranks.KINDS)
def test_threads_give_every_sampler_the_same_bits(kind: str) -> None:
    assert differences(with_threads(1, kind), with_threads(3, kind)) == []


@pytest.mark.parametrize("ranks_", [1, 2, 3, 5])
def test_every_chain_is_placed_once(ranks_: int) -> None:
    placed = [c for rank in range(ranks_) for c in Placement(rank, ranks_).mine(7)]
    assert sorted(placed) == list(range(7))


def test_two_processes_give_the_same_bits_as_one(tmp_path: Path) -> None:
    mp.spawn(ranks.work, args=(2, str(tmp_path)), nprocs=2)
    both = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2)]
    for kind in ranks.KINDS:
        alone = ranks.estimated(kind)
        assert [differences(alone, found[kind]) for found in both] == [[], []], kind


def test_ranks_succeed_or_fail_together(tmp_path: Path) -> None:
    """Whoever fails first, and however: all learn of it, none waits for ever, and the next work is possible."""
    mp.spawn(ranks.meet, args=(2, str(tmp_path)), nprocs=2)
    first, second = (pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2))
    expected = {
        "peacefully": ("done", "done"),
        "fails_on_one": (
            "PeerFailedError: counting: rank 1: ValueError: a bad number",
            "ValueError: a bad number\nand more about it",
        ),
        "fails_late": ("KeyError: 'late'", "PeerFailedError: counting: rank 0: KeyError: 'late'"),
        "fails_everywhere": ("ValueError: rank 0", "ValueError: rank 1"),
        "slow_but_alive": ("done", "done"),
        "hangs": (
            "OutOfStepError: counting: no progress for 2 s of rank 1 (step 5 of 9). They hang, or lost their process; "
            "look at their logs. Training cannot go on without them",
            "done",
        ),
    }
    assert {name: (first[name], second[name]) for name in first} == expected


def test_the_seed_and_the_number_of_chains_matter() -> None:
    """A chain is the same among any number of chains, and another with another seed."""

    def losses(**more: int) -> np.ndarray:
        chains = dataclasses.replace(CHAINS, **more)
        return estimate(
            models.seeded(models.mlp), models.cross_entropy, models.data(), sampler=ranks.SAMPLER, chains=chains
        ).loss_trace

    base = losses()
    assert np.array_equal(base[:3], losses(num_chains=3))
    assert np.array_equal(base[:, :3], losses(num_draws=3))
    assert not np.isclose(base, losses(seed=1)).any()
    assert len({tuple(trace) for trace in base}) == 4


def test_progress_counts_every_step_of_every_chain() -> None:
    seen: list[tuple[int, int]] = []
    estimate(
        models.seeded(models.mlp), models.cross_entropy, models.data(), sampler=SGLD(
            step_size=1e-3, inverse_temperature=20.0, localization=10.0
        ), chains=Chains(num_chains=2, num_draws=3, burn_in=1, thinning=2, batch_size=5),
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(i, 14) for i in range(1, 15)]
