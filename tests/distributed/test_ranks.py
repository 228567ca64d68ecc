"""The same bits whoever runs the chains: threads, processes, and in whichever order."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import ranks
import small_models as models
from bif_lightning.config import SGLD, Chains, Subspace
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.estimation.estimate import estimate
from bif_lightning.losses.observables import PerExample
from bif_lightning.results.estimate import Estimate
from bits import differences
from forked import together
from ports import free_port

pytestmark = pytest.mark.bitwise

CHAINS = Chains(num_chains=4, num_draws=5, batch_size=5)


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
    placed = [c for rank in range(ranks_) for c in Ranks(rank, ranks_).mine(7)]
    assert sorted(placed) == list(range(7))


def test_two_processes_give_the_same_bits_as_one(tmp_path: Path) -> None:
    together(ranks.work, 2, 2, str(tmp_path))
    both = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2)]
    for kind in ranks.KINDS:
        alone = ranks.estimated(kind)
        assert [differences(alone, found[kind]) for found in both] == [[], []], kind


@pytest.mark.slow
def test_ranks_succeed_or_fail_together(tmp_path: Path) -> None:
    """Whoever fails first, and however: all learn of it, none waits for ever, and the next work is possible."""
    together(ranks.meet, 2, 2, str(tmp_path))
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
            "OutOfStepError: counting: no progress for 3 s of rank 1 (step 5 of 9). They hang, or lost their process; "
            "look at their logs. Training cannot go on without them",
            "done",
        ),
    }
    assert {name: (first[name], second[name]) for name in first} == expected


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("fails_everywhere_at_last", "ValueError: rank 1"),
        ("fails_late", "PeerFailedError: counting: rank 0: KeyError: 'late'"),
        ("ends_before_the_other_fails", "ValueError: rank 1"),
        ("ends_at_once", "OutOfStepError: counting: the store of the process group, which lives in rank 0 or its "),
    ],
)
def test_the_end_of_rank_0_hides_no_error(tmp_path: Path, case: str, expected: str) -> None:
    """Rank 0 holds the store of the process group, through which the others learn what happened."""
    together(ranks.part, 2, 2, str(tmp_path), free_port(), case)
    assert pickle.loads((tmp_path / "1.pickle").read_bytes()).startswith(expected)


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


@pytest.mark.parametrize("queries", [0, 6])
@pytest.mark.parametrize("observables", [(), (PerExample("loss again", models.cross_entropy),)], ids=["", "observable"])
def test_progress_counts_what_a_closed_form_needs_before_its_draws(
    observables: tuple[PerExample, ...], queries: int
) -> None:
    """Gradients of 12 train and 6 query examples (none where the former are the queries too), slopes of observables
    along 4 directions, products of each of these with the Hessians of 8 groups, and 2 chains of 4 draws."""
    seen: list[tuple[int, int]] = []
    data = models.data()
    estimate(
        models.seeded(models.mlp), models.cross_entropy, data, data[:queries] if queries else None,
        sampler=Subspace(num_directions=4), chains=Chains(num_chains=2, num_draws=4),
        observables=observables, progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    gradients = 12 + queries
    total = gradients + 4 * len(observables) + 4 * 8 + 2 * 4
    assert {each for _, each in seen} == {total}
    done = [each for each, _ in seen]
    assert done == sorted(set(done))
    assert done[:gradients] == list(range(1, gradients + 1))
    assert done[-1] == total
