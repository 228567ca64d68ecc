"""The budget: its account, which snapshots it skips, and what it refuses."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, timer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

import bif_lightning as bl
from bif_lightning.sampling.controlled import NUM_DRAWS
from bif_lightning.trainer.schedule import training_fraction
from bif_lightning.trainer.time_budget import TimeBudget, budget_of
from tiny_run import Points, bif, fit

pytestmark = pytest.mark.trainer


class Clock:
    """Seconds that a test passes."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Work:
    """A clock that counts work instead of time, so that every snapshot takes the seconds that it takes again anywhere.

    Each example whose loss the callback asks for takes a millisecond, and each batch of training what `Pace` says.

    Attributes:
        own: seconds of work for the callback.
        training: seconds of training.
    """

    def __init__(self) -> None:
        self.own = self.training = self.readings = 0.0

    def __call__(self) -> float:
        return self.own + self.training

    def reading(self) -> float:
        """The same for the forecast, which repeats a short call until the clock has moved: this one moves."""
        self.readings += 0.005
        return self() + self.readings

    def losses(self, module: Any, batch: Any) -> Tensor:
        """Loss of each example; only the callback asks for these."""
        x, y = batch
        self.own += 1e-3 * len(y)
        return F.cross_entropy(module.net(x), y, reduction="none")


class Pace(Callback):
    """Makes every training batch take some seconds of work, and keeps the account after each snapshot."""

    def __init__(self, work: Work, callback: Any, seconds: float) -> None:
        callback.budget.clock = work
        self.work, self.callback, self.seconds = work, callback, seconds
        self.accounts = list[tuple[float, float]]()

    def on_train_batch_start(self, *_: Any) -> None:
        self.work.training += self.seconds

    def on_train_batch_end(self, *_: Any) -> None:
        if len(self.callback.budget.snapshots) > len(self.accounts):
            self.accounts.append((self.work.own, self.work()))


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """The clock of the forecast too; one chain at a time, so that none counts the work of another as its own."""
    torch.set_num_threads(1)
    clock = Work()
    monkeypatch.setattr(time, "perf_counter", clock.reading)
    return clock


def check_spacing(work: Work, pace: Pace, share: float) -> None:
    """The share is kept after every snapshot but the first, whose cost is a forecast, and at the end; and it is used.

    At the last due step that was skipped, either one more of c seconds was not paid for yet, or there was none to spare
    beside the last one. The former falls short by what training pays for from there to the end, less than a snapshot;
    the latter by at most (1 − share)·c. What snapshots differ in is added.
    """
    taken = pace.callback.budget.snapshots
    shares = [own / total for own, total in [*pace.accounts[1:], (work.own, work())]]
    assert max(shares) <= share * (1 + 1e-9)
    lacking = share * work() - work.own
    assert lacking < (1 - share) * (2 * max(taken) - min(taken))
    # A snapshot is small enough here that the goal follows: within a factor of 1.2.
    assert (1 - share) * (2 * max(taken) - min(taken)) < (1 - 1 / 1.2) * share * work()


class Stop(Callback):
    """Ends training after so many steps, which nobody knows before."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.steps


def account(share: float = 0.1) -> tuple[TimeBudget, Clock]:
    clock = Clock()
    budget = TimeBudget(share, clock)
    budget.start()
    return budget, clock


@pytest.mark.parametrize("wrong", [0, 1, 0.0, 1.0, -0.1, 1.5, True, "10 %", float("nan")])
def test_what_is_no_share_is_refused(wrong: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"budget is .* above 0 and below 1"):
        budget_of(wrong)


def test_no_budget_limits_nothing() -> None:
    assert budget_of(None).within_budget(1e9, 1e9)
    assert not budget_of(None).limited


def test_a_snapshot_is_paid_for_by_all_time_so_far() -> None:
    """One of 2 s with a share of 10 % needs 18 s of training; with another in reserve, 36 s."""
    budget, clock = account()
    clock.now += 17.9
    assert not budget.within_budget(2.0)
    clock.now += 0.2
    assert budget.within_budget(2.0)
    assert not budget.within_budget(2.0, 2.0)
    clock.now += 18.0
    assert budget.within_budget(2.0, 2.0)
    with budget.timed_snapshot():
        clock.now += 2.0
    assert budget.used == pytest.approx(2 / 38.1)
    assert budget.expected(99.0) == pytest.approx(2.0)


def test_room_for_the_last_snapshot_is_kept_only_where_the_rest_does_not_earn_it() -> None:
    """20 s pay for one of 2 s; the last one of 2 s needs 16 to 18 s more."""
    budget, clock = account()
    clock.now += 20.0
    assert budget.ahead(0.5) == pytest.approx(20.0)
    assert budget.within_budget(2.0, 2.0, ahead=20.0)
    assert not budget.within_budget(2.0, 2.0, ahead=15.0)
    assert not budget.within_budget(3.0, 3.0, ahead=1e9)  # not paid for by now


class Done(Callback):
    """Keeps what is done of the training, at each batch."""

    def __init__(self) -> None:
        self.found = list[float]()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.found.append(training_fraction(trainer))


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
    streamed, endless = Done(), Done()
    fit(tmp_path, [streamed], data=DataLoader(Stream(), batch_size=8))
    assert streamed.found == pytest.approx([0.5] * 3 + [1.0] * 3)
    fit(tmp_path, [endless, Stop(4)], max_epochs=-1)
    assert endless.found == [1.0] * 4


def test_a_limit_of_time_says_how_much_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second, of batches that take an eighth each on Lightning's own timer."""
    work, done = Work(), Done()
    monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=work))
    fit(tmp_path, [Pace(work, bif(tmp_path), 1 / 8), done], max_time={"seconds": 1}, max_epochs=-1)
    assert done.found == pytest.approx([n / 8 for n in range(1, 9)])


def test_a_failed_snapshot_costs_but_says_nothing_of_the_next() -> None:
    budget, clock = account()

    def fail() -> None:
        with budget.timed_snapshot():
            clock.now += 3.0
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (budget.spent, budget.snapshots) == (3.0, [])


def test_time_between_fits_does_not_count_and_a_checkpoint_carries_the_rest() -> None:
    budget, clock = account()
    clock.now += 30.0
    with budget.timed_snapshot():
        clock.now += 1.0
    budget.stop()
    clock.now += 1000.0
    assert budget.elapsed == pytest.approx(31.0)
    other = TimeBudget(0.1, clock)
    other.load(budget.state())
    other.start()
    clock.now += 9.0
    assert (other.elapsed, other.spent) == (pytest.approx(40.0), pytest.approx(1.0))


@pytest.mark.parametrize("chains", [bl.Chains(num_chains=2, num_draws=4, batch_size=8), None])
def test_due_snapshots_are_skipped_but_not_the_last(tmp_path: Path, dumps: Any, chains: Any, work: Work) -> None:
    """A snapshot takes far longer than all 12 steps here: all due ones but the last are skipped."""
    callback = bif(tmp_path, budget=0.1, every_n_train_steps=1, chains=chains, loss_fn=work.losses)
    fit(tmp_path, [callback, Pace(work, callback, 0.01)], max_epochs=4)
    assert dumps() == [12]
    assert callback.budget.skipped == 11


def test_steps_that_were_asked_for_are_taken_with_a_warning(tmp_path: Path, dumps: Any) -> None:
    with pytest.warns(UserWarning, match=r"step 1 is taken as requested, although .* exceed the budget of 5 %"):
        fit(tmp_path, [bif(tmp_path, budget=0.05, at_steps=[1, 2], at_end=False)])
    assert dumps() == [1, 2]


def test_the_account_is_kept_through_a_resume(tmp_path: Path, work: Work) -> None:
    """A resumed run goes on with the account of its checkpoint."""
    settings = {"budget": 0.1, "every_n_train_steps": 6, "at_end": False, "loss_fn": work.losses}
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=12, save_top_k=-1)
    first = bif(tmp_path, **settings)
    fit(tmp_path, [first, keep, Pace(work, first, 12.0)], max_epochs=4, enable_checkpointing=True)
    assert first.latest is not None
    before, second = work(), bif(tmp_path, **(settings | {"at_end": True}))
    fit(tmp_path, [second, Pace(work, second, 0.0)], ckpt=tmp_path / "step=12.ckpt", max_epochs=6)
    assert second.latest is not None
    assert second.budget.elapsed == pytest.approx(work())  # the first fit's time pays on
    assert second.budget.spent == pytest.approx(work.own)
    assert second.budget.training == pytest.approx(12 * 12.0)
    assert work() > before


def test_training_is_bitwise_what_it_is_without_a_budget(tmp_path: Path) -> None:
    runs = [
        fit(tmp_path / str(n), callbacks)[1]
        for n, callbacks in enumerate(([], [bif(tmp_path, budget=0.1, every_n_train_steps=1)]))
    ]
    for one, other in zip(runs[0].parameters(), runs[1].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_by_default_spacing_alone_keeps_the_share(tmp_path: Path, work: Work) -> None:
    """24 snapshots are due in 576 s, of 6 s each."""
    settings = {"every_n_train_steps": 8, "chains": None, "sampler": None, "log": False, "loss_fn": work.losses}
    callback = bif(tmp_path, budget=0.1, **settings)
    pace = Pace(work, callback, 3.0)
    fit(tmp_path, [callback, pace], data=Points(64), max_epochs=24)
    assert callback.latest is not None
    assert isinstance(callback.latest.sampler, bl.ControlledSGLD)
    assert callback.latest.chains.num_draws == NUM_DRAWS
    assert callback.budget.skipped > 0
    check_spacing(work, pace, 0.1)


@pytest.mark.slow
def test_spacing_keeps_the_share_within_a_factor_of_1_2(tmp_path: Path, work: Work) -> None:
    """Of chains as the user gave them; a due snapshot in every 5 of 400 steps, 80 s of training."""
    chains = bl.Chains(num_chains=2, num_draws=8, batch_size=8)
    settings = {"every_n_train_steps": 5, "chains": chains, "log": False, "loss_fn": work.losses}
    callback = bif(tmp_path, budget=0.1, **settings)
    pace = Pace(work, callback, 0.2)
    fit(tmp_path, [callback, pace], data=Points(64), max_epochs=50)
    check_spacing(work, pace, 0.1)
