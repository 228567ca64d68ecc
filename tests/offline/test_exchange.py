"""Chains of one snapshot divided among workers: each is run once, by whoever is free, and the dump keeps its bits."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import bif_lightning as bl
from bif_lightning.distributed.leases import Leases
from bif_lightning.estimation.estimator import ChainsDivergedError, estimate_problem
from bif_lightning.offline.chain_exchange import ChainExchange
from small_models import mlp, problem_of, seeded

SAMPLER = bl.SGLD(step_size=1e-3, inverse_temperature=20.0, localization=10.0)
CHAINS = bl.Chains(num_chains=5, num_draws=6, batch_size=5)


def estimated(exchange: ChainExchange | None, **more: Any) -> Any:
    settings = {"sampler": SAMPLER, "chains": CHAINS} | more
    return estimate_problem(problem_of(seeded(mlp)), settings["sampler"], settings["chains"], exchange=exchange)


def exchange(folder: Path, *, finishes: bool) -> ChainExchange:
    return ChainExchange(folder / "step=7", Leases(folder / "claims"), finishes)


@pytest.mark.parametrize("storage", ["traces", "moments"])
def test_chains_that_another_worker_ran_are_taken_as_they_are(tmp_path: Path, storage: Any) -> None:
    chains = bl.Chains(num_chains=5, num_draws=6, batch_size=5, storage=storage)
    alone = estimated(None, chains=chains)
    helper, finisher = (exchange(tmp_path, finishes=finishes) for finishes in (False, True))
    assert estimated(helper, chains=chains) is None
    assert helper.ran == 5
    (tmp_path / "step=7" / "chain=0003.pt").unlink()
    together = estimated(finisher, chains=chains)
    assert finisher.ran == 1
    for name in ("influence", "correlation", "conditioned"):
        one, other = getattr(alone.losses, name), getattr(together.losses, name)
        assert (one is None and other is None) or (one == other).all()
    finisher.clear()
    assert not (tmp_path / "step=7").exists()


def test_outcomes_of_other_weights_or_settings_are_not_used(tmp_path: Path) -> None:
    assert estimated(exchange(tmp_path, finishes=False)) is None
    again = exchange(tmp_path, finishes=True)
    assert estimated(again, sampler=bl.SGLD(step_size=1e-3, inverse_temperature=21.0, localization=10.0)) is not None
    assert again.ran == 5


def test_a_finisher_waits_for_a_chain_that_is_under_way(tmp_path: Path) -> None:
    helper, finisher = (exchange(tmp_path, finishes=finishes) for finishes in (False, True))
    assert estimated(helper) is None
    kept = (tmp_path / "step=7" / "chain=0002.pt").rename(tmp_path / "kept.pt")
    other = Leases(tmp_path / "claims")
    release = threading.Timer(2.0, lambda: kept.rename(tmp_path / "step=7" / "chain=0002.pt"))
    with other.claimed("step=7.chain=0002") as mine:
        assert mine
        release.start()
        assert estimated(finisher) is not None
    assert finisher.ran == 0


def test_progress_is_that_of_all_chains_whoever_ran_them(tmp_path: Path) -> None:
    assert estimated(exchange(tmp_path, finishes=False)) is None
    for chain in (0, 1, 2):
        (tmp_path / "step=7" / f"chain={chain:04d}.pt").unlink()
    told = list[tuple[int, int]]()
    model, finisher = problem_of(seeded(mlp)), exchange(tmp_path, finishes=True)
    estimate_problem(model, SAMPLER, CHAINS, exchange=finisher, progress=lambda *step: told.append(step))
    steps = CHAINS.num_steps
    assert told == [(2 * steps + done + 1, 5 * steps) for done in range(3 * steps)]


def test_a_diverged_chain_travels_too(tmp_path: Path) -> None:
    wild = bl.SGLD(step_size=1.0, inverse_temperature=1e6, localization=1.0)
    helper = exchange(tmp_path, finishes=False)
    assert estimated(helper, sampler=wild) is None
    found = torch.load(tmp_path / "step=7" / "chain=0000.pt", weights_only=True)
    assert found["kind"] == "Divergence"
    with pytest.raises(ChainsDivergedError):
        estimated(exchange(tmp_path, finishes=True), sampler=wild)


def test_helpers_begin_at_the_other_end(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    order = list[int]()

    def run(chains: Any, told: Any) -> Any:
        order.extend(chains)
        raise KeyboardInterrupt

    model = problem_of(seeded(mlp))

    class Ends(ChainExchange):
        def __call__(self, plan: Any, _: Any, chains: Any, at_once: int, beat: Any) -> Any:
            return super().__call__(plan, run, chains, 1, beat)

    for finishes in (True, False):
        with pytest.raises(KeyboardInterrupt):
            estimate_problem(
                model, SAMPLER, CHAINS, exchange=Ends(tmp_path / "x", Leases(tmp_path / "claims"), finishes)
            )
    assert order == [0, 4]
    assert not list((tmp_path / "claims").glob("*.claim"))
