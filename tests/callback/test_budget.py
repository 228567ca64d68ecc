"""The budget: its account, its choice of draws, and what it refuses."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset

import bif_lightning as bl
from bif_lightning.estimator import CHECKING_DRAWS
from bif_lightning.trainer.budget import Budget, budget_of, draws_for
from bif_lightning.trainer.triggers import share_done

from .tiny_run import Points, bif, fit


class Clock:
    """Seconds that a test passes."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Late(Callback):
    """Makes the budget's clock pass so many seconds at every training batch, beside those that pass."""

    def __init__(self, callback: Any, seconds: float) -> None:
        self.seconds, self.passed = seconds, 0.0
        callback.budget.clock = lambda: time.monotonic() + self.passed

    def on_train_batch_start(self, *_: Any) -> None:
        self.passed += self.seconds


class Slow(Callback):
    """Makes every training batch take a known time, outside of the callback under test."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(self.seconds)


class Stop(Callback):
    """Ends training after so many steps, which nobody knows before."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.steps


def account(share: float = 0.1) -> tuple[Budget, Clock]:
    clock = Clock()
    budget = Budget(share, clock)
    budget.start()
    return budget, clock


@pytest.mark.parametrize("wrong", [0, 1, 0.0, 1.0, -0.1, 1.5, True, "10 %", float("nan")])
def test_what_is_no_share_is_refused(wrong: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"budget is .* above 0 and below 1"):
        budget_of(wrong)


def test_no_budget_limits_nothing() -> None:
    assert budget_of(None).pays(1e9, 1e9)
    assert not budget_of(None).limited


def test_a_snapshot_is_paid_for_by_all_time_so_far() -> None:
    """One of 2 s with a share of 10 % needs 18 s of training; with another in reserve, 36 s."""
    budget, clock = account()
    clock.now += 17.9
    assert not budget.pays(2.0)
    clock.now += 0.2
    assert budget.pays(2.0)
    assert not budget.pays(2.0, 2.0)
    clock.now += 18.0
    assert budget.pays(2.0, 2.0)
    with budget.buying():
        clock.now += 2.0
    assert budget.used == pytest.approx(2 / 38.1)
    assert budget.expected(99.0) == pytest.approx(2.0)


def test_room_for_the_last_snapshot_is_kept_only_where_the_rest_does_not_earn_it() -> None:
    """20 s pay for one of 2 s; the last one of 2 s needs 16 to 18 s more."""
    budget, clock = account()
    clock.now += 20.0
    assert budget.ahead(0.5) == pytest.approx(20.0)
    assert budget.pays(2.0, 2.0, ahead=20.0)
    assert not budget.pays(2.0, 2.0, ahead=15.0)
    assert not budget.pays(3.0, 3.0, ahead=1e9)  # not paid for by now


class Done(Callback):
    """Keeps what is done of the training, at each batch."""

    def __init__(self) -> None:
        self.found = list[float]()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.found.append(share_done(trainer))


class Stream(IterableDataset[Any]):
    """Points without a known number."""

    def __iter__(self) -> Any:
        points = Points()
        return (points[index] for index in range(len(points)))


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_epochs": 2}, [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0]),
        ({"max_epochs": 9, "max_steps": 4}, [0.25, 0.5, 0.75, 1.0]),
        ({"max_epochs": -1, "max_steps": 2}, [0.5, 1.0]),
    ],
)
def test_the_nearest_limit_says_how_much_is_done(tmp_path: Path, limits: Any, expected: list[float]) -> None:
    done = Done()
    fit(tmp_path, [done], **limits)
    assert done.found == pytest.approx(expected)


def test_where_the_end_is_not_known_what_is_done_is_not_too_little(tmp_path: Path) -> None:
    streamed, timed, endless = Done(), Done(), Done()
    fit(tmp_path, [streamed], data=DataLoader(Stream(), batch_size=8))
    assert streamed.found == pytest.approx([0.5] * 3 + [1.0] * 3)
    fit(tmp_path, [timed], max_time={"seconds": 1}, max_epochs=-1)
    assert timed.found == sorted(timed.found)
    assert timed.found[0] < 0.5 < 0.9 < timed.found[-1]
    fit(tmp_path, [endless, Stop(4)], max_epochs=-1)
    assert endless.found == [1.0] * 4


def test_a_failed_snapshot_costs_but_says_nothing_of_the_next() -> None:
    budget, clock = account()

    def fail() -> None:
        with budget.buying():
            clock.now += 3.0
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (budget.spent, budget.snapshots) == (3.0, [])


def test_time_between_fits_does_not_count_and_a_checkpoint_carries_the_rest() -> None:
    budget, clock = account()
    clock.now += 30.0
    with budget.buying():
        clock.now += 1.0
    budget.stop()
    clock.now += 1000.0
    assert budget.elapsed == pytest.approx(31.0)
    other = Budget(0.1, clock)
    other.load(budget.state())
    other.start()
    clock.now += 9.0
    assert (other.elapsed, other.spent) == (pytest.approx(40.0), pytest.approx(1.0))


def test_draws_are_what_an_interval_pays_for() -> None:
    budget, clock = account()
    clock.now += 95.0
    with budget.spending():
        clock.now += 5.0
    budget.due = 5  # 19 s of training each
    assert budget.each() == pytest.approx(0.95 * 19 / 9)
    assert draws_for(budget.each(), 1.0, 0.01, 16, 1000) == 100
    assert draws_for(1e-3, 1.0, 0.01, 16, 1000) == 16


@pytest.mark.parametrize("chains", [bl.Chains(num_chains=2, num_draws=4, batch_size=8), None])
def test_due_snapshots_are_skipped_but_not_the_last(tmp_path: Path, dumps: Any, chains: Any) -> None:
    """A snapshot takes far longer than a step of this model: most of 12 due ones are skipped, the last is taken."""
    callback = bif(tmp_path, budget=0.1, every_n_train_steps=1, chains=chains)
    fit(tmp_path, [callback], max_epochs=4)
    assert dumps()[-1] == 12
    assert len(dumps()) < 4
    assert callback.budget.skipped == 12 - len(dumps())


def test_steps_that_were_asked_for_are_taken_with_a_warning(tmp_path: Path, dumps: Any) -> None:
    with pytest.warns(UserWarning, match=r"step 1 is taken, as asked for, though the budget of 5 %"):
        fit(tmp_path, [bif(tmp_path, budget=0.05, at_steps=[1, 2], at_end=False)])
    assert dumps() == [1, 2]


def test_the_number_of_draws_is_chosen_once_and_kept_through_a_resume(tmp_path: Path) -> None:
    """Slow steps pay for more than the least number; a resumed run keeps it, whatever its steps take."""
    settings = {"budget": 0.1, "every_n_train_steps": 6, "chains": None, "at_end": False}
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=12, save_top_k=-1)
    first = bif(tmp_path, **settings)
    fit(tmp_path, [first, keep, Late(first, 3.0)], max_epochs=4, enable_checkpointing=True)
    assert first.latest is not None
    draws = first.latest.chains.num_draws
    assert draws > 16
    second = bif(tmp_path, **(settings | {"at_end": True}))
    fit(tmp_path, [second], ckpt=tmp_path / "step=12.ckpt", max_epochs=6)
    assert second.latest is not None
    assert second.latest.chains.num_draws == draws
    assert second.budget.elapsed > 36  # the first fit's time pays on


def test_training_is_bitwise_what_it_is_without_a_budget(tmp_path: Path) -> None:
    runs = [
        fit(tmp_path / str(n), callbacks)[1]
        for n, callbacks in enumerate(([], [bif(tmp_path, budget=0.1, every_n_train_steps=1)]))
    ]
    for one, other in zip(runs[0].parameters(), runs[1].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_by_default_spacing_alone_keeps_the_share(tmp_path: Path) -> None:
    """The draws of the default sampler are few, and not chosen by the budget; 24 snapshots are due in 40 s."""
    callback = bif(tmp_path, budget=0.1, every_n_train_steps=8, chains=None, sampler=None, log=False)
    fit(tmp_path, [callback, Late(callback, 0.2)], data=Points(64), max_epochs=24)
    assert callback.latest is not None
    assert isinstance(callback.latest.sampler, bl.Subspace)
    assert callback.latest.chains.num_draws == CHECKING_DRAWS
    assert callback.budget.skipped > 0
    assert 0.1 / 1.2 < callback.budget.used < 0.1 * 1.2, str(callback.budget)


@pytest.mark.slow
def test_spacing_keeps_the_share_within_a_factor_of_1_2(tmp_path: Path) -> None:
    """Over 80 s of training the callback, its opening included, takes between 8.3 and 12 % of all time."""
    chains = bl.Chains(num_chains=2, num_draws=8, batch_size=8)
    callback = bif(tmp_path, budget=0.1, every_n_train_steps=5, chains=chains, log=False)
    fit(tmp_path, [callback, Slow(0.1)], data=Points(64), max_epochs=100)
    assert callback.budget.elapsed > 80
    assert 0.1 / 1.2 < callback.budget.used < 0.1 * 1.2, str(callback.budget)
