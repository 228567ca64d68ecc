"""Whatever fails in a snapshot, wherever, leaves the training, the process and the folder as they were."""

import os
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

import bif_lightning as bl
from bif_lightning.trainer import interrupts
from bif_lightning.trainer.guard.fingerprint import difference, fingerprint
from faults import FUSE, Breakable, Due, Fragile, Journal, Place, Screen, Surviving, collate, condition, surviving

pytestmark = [pytest.mark.trainer, pytest.mark.bitwise, pytest.mark.crash]

POINTS = ("loss", "read", "collate", "observable", "before transfer", "after transfer", "screen", "logger")


@contextmanager
def screen() -> Iterator[None]:
    """A terminal that can fail, for as long as the Trainer runs."""
    before = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = Screen()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def fit(folder: Path, callbacks: list[Any], batches: int) -> L.Trainer:
    """Train this many batches, one step each."""
    L.seed_everything(5, verbose=False)
    with screen(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            max_epochs=-1, max_steps=batches, accelerator="cpu", logger=Journal(), log_every_n_steps=1,
            callbacks=[TQDMProgressBar(), *callbacks], enable_model_summary=False, enable_checkpointing=False,
            default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(Breakable(), DataLoader(Fragile(24, 1), batch_size=8, shuffle=True, collate_fn=collate))
    return trainer


def places(folder: Path, *, every: bool) -> list[Due]:
    """Where one snapshot can fail: at the first and the last visit to each point; or from every place in the code that
    visits one, at the first visit from there, the one in the middle, and the last."""
    whole = surviving(folder).prepare([], RuntimeError())
    fit(folder, [whole], 2)
    visits = whole.visits[-1]
    assert set(visits) == set(POINTS)
    if every:
        return [Place(*place, n) for place, last in whole.places.items() for n in sorted({1, (last + 1) // 2, last})]
    return [(point, n) for point in POINTS for n in sorted({1, visits[point]})]


def run_with_faults(tmp_path: Path, error: BaseException, *, every: bool) -> tuple[L.Trainer, Surviving]:
    """One training, with a snapshot after each batch that fails somewhere else each time, and a last that does not."""
    plan = places(tmp_path / "whole", every=every)
    broken = surviving(tmp_path).prepare([*plan, None], error)
    trainer = fit(tmp_path, [broken], len(plan) + 1)
    missed = [place for place in plan if place not in FUSE.blown and place[0] != "screen"]
    assert missed == [], "these places were never reached"
    return trainer, broken


@pytest.mark.parametrize(
    ("error", "every"),
    [
        pytest.param(RuntimeError("on purpose"), False, id="some"),
        pytest.param(RuntimeError("on purpose"), True, id="every", marks=pytest.mark.slow),
        pytest.param(KeyboardInterrupt(), True, id="every, KeyboardInterrupt", marks=pytest.mark.slow),
    ],
)
def test_a_failure_at_each_point_leaves_no_trace(tmp_path: Path, error: BaseException, every: bool) -> None:
    trainer, broken = run_with_faults(tmp_path, error, every=every)
    assert broken.disturbed == []
    plain = fit(tmp_path / "plain", [], trainer.global_step)
    assert difference(fingerprint(plain, plain.lightning_module), state_of(trainer)) == []
    files = sorted(path.name for path in (tmp_path / "bif").iterdir())
    others = [name for name in files if not name.startswith("step=")]
    assert "samples.h5" in others
    assert set(others) <= {"samples.h5", "integrated.h5"}
    assert files[-1] == f"step={trainer.global_step:09d}.h5", "the snapshot after all failures is whole"
    bl.open_run(tmp_path / "bif").load()


def state_of(trainer: L.Trainer) -> dict[str, str]:
    return fingerprint(trainer, trainer.lightning_module)


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError("on purpose"), KeyboardInterrupt()], ids=repr)
def test_a_failure_before_the_first_batch_leaves_no_trace(tmp_path: Path, error: BaseException) -> None:
    """While the callback reads data, proves the loss and times a step, at the first visit and half-way."""
    seen: list[list[str]] = []
    visits: dict[str, int] = {}

    class Opening(Surviving):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            before = condition(trainer, pl_module)
            FUSE.light(self.plan.pop(), self.error)
            try:
                super().on_train_start(trainer, pl_module)
            finally:
                FUSE.lit = False
                visits.update(FUSE.visits)
                after = condition(trainer, pl_module)
                seen.append([name for name, value in before.items() if after[name] != value])

    def begin(due: Any) -> None:
        example = surviving(tmp_path / f"{len(seen)}")
        opening = Opening.__new__(Opening)
        vars(opening).update(vars(example))
        fit(tmp_path, [opening.prepare([due], error)], 1)

    begin(None)
    stopped: list[str] = []
    others = False  # whether a refusal had another cause
    for point, count in dict(visits).items():  # how often a step is timed depends on the clock
        for visit in sorted({1, count // 2} - {0}):
            try:
                begin((point, visit))
            except (type(error), SystemExit, MisconfigurationException) as ended:
                stopped.append(point)
                others |= isinstance(ended, MisconfigurationException) and ended.__cause__ is not error
            else:  # where a copy of the module fails, the module itself is used
                assert not FUSE.blown or isinstance(error, RuntimeError)
    assert seen == [[]] * len(seen)
    assert set(stopped) == set(visits)
    assert not others


def test_a_full_disk_costs_one_snapshot(tmp_path: Path) -> None:
    """The file may not grow beyond a limit, as on a full disk, at the second of three snapshots."""

    class Full(Surviving):
        def attempt(self, trainer: Any, module: Any) -> None:
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            limit = 2048 if trainer.global_step == 2 else soft
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                super().attempt(trainer, module)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    full = Full.__new__(Full)
    vars(full).update(vars(surviving(tmp_path)))
    full.prepare([], RuntimeError())
    with pytest.warns(UserWarning, match=r"snapshot at step 2 failed.*File too large"):
        fit_loudly(tmp_path, full)
    assert full.disturbed == []
    names = [f"step={step:09d}.h5" for step in (1, 3)]
    assert sorted(path.name for path in (tmp_path / "bif").iterdir()) == ["integrated.h5", "samples.h5", *names]


def fit_loudly(folder: Path, callback: Any) -> L.Trainer:
    L.seed_everything(5, verbose=False)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, callbacks=[callback], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Breakable(), DataLoader(Fragile(24, 1), batch_size=8, shuffle=True, collate_fn=collate))
    return trainer


def test_control_c_inside_a_chain_stops_the_training_with_its_weights(tmp_path: Path) -> None:
    """A real SIGINT while chains run on threads: Lightning shuts down, and the module holds the training's state."""

    sent = list[str]()

    def interrupted(module: Any, batch: Any) -> Any:
        thread = threading.current_thread()
        if module.trainer.global_step == 2 and thread is not threading.main_thread() and not sent:
            sent.append(thread.name)
            os.kill(os.getpid(), signal.SIGINT)
            # The main thread notes a signal when it next runs; chains as short as these may end before.
            assert interrupts._pending.wait(60)
        return margin_of(module, batch)

    broken = surviving(tmp_path, observables=[bl.PerExample("stop", interrupted)], on_error="raise")
    broken.prepare([], RuntimeError())
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fit(tmp_path, [broken], 4)
    finally:
        torch.set_num_threads(threads)
    assert broken.disturbed == []
    assert len(broken.visits) == 2
    assert sorted(path.name for path in (tmp_path / "bif").iterdir()) == ["samples.h5", "step=000000001.h5"]


PASSES = 12
"""Backward passes after a signal, of hundreds to come: two threads pass one another in a few."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "sampler", [bl.Subspace(), bl.ControlledSGLD(), "auto"], ids=["Subspace", "controlled", "auto"]
)
def test_a_signal_ends_the_curvature_before_its_next_pass(
    tmp_path: Path, number: signal.Signals, sampler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real signal in a product with the Hessian, or in a backward pass of the sketch, long before the first chain."""
    passes, grad, due = list[str](), torch.autograd.grad, list[int]()

    def signalled(*arguments: Any, **options: Any) -> Any:
        if due and options.get("retain_graph"):
            passes.append(threading.current_thread().name)
            if len(passes) == 1:
                os.kill(os.getpid(), number)
                time.sleep(0.2)  # until the main thread notes it
        return grad(*arguments, **options)

    class Begins(L.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            due.append(trainer.global_step)

    monkeypatch.setattr(torch.autograd, "grad", signalled)
    callback = bl.BIFCallback(range(24), sampler=sampler, dirpath=tmp_path / "bif", at_steps=[1], at_end=False)
    trainer = L.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Begins(), callback], default_root_dir=tmp_path,
    )  # fmt: skip
    threads, before = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    torch.set_num_threads(2)
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            trainer.fit(Breakable(), DataLoader(Fragile(24, 1), batch_size=8, collate_fn=collate))
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGTERM, before)
    assert 0 < len(passes) < PASSES
    assert not list((tmp_path / "bif").glob("step=*"))


def margin_of(module: Any, batch: Any) -> torch.Tensor:
    return module.body(batch.x)[:, 0]


@pytest.mark.slow
def test_control_c_at_any_moment_leaves_no_trace(tmp_path: Path) -> None:
    """SIGINT at random moments of a snapshot, also while the guard takes or puts back: a hundred, each interrupted.

    The moments are shares of what the shortest of the first snapshots took, which are left alone: this says how long
    one takes on this machine.
    """
    moments = torch.rand(105, generator=torch.Generator().manual_seed(0)).tolist()
    alone = list[float]()

    class Hasty(Surviving):
        def attempt(self, trainer: Any, module: Any) -> None:
            started = time.perf_counter()
            if len(alone) == 5:
                signal.setitimer(signal.ITIMER_REAL, max(1e-3, moments[trainer.global_step - 1] * min(alone)))
            try:
                super().attempt(trainer, module)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                if len(alone) < 5:
                    alone.append(time.perf_counter() - started)

    def interrupt(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGALRM, interrupt)
    hasty = Hasty.__new__(Hasty)
    vars(hasty).update(vars(surviving(tmp_path, chains=bl.Chains(num_chains=2, num_draws=40, batch_size=4))))
    try:
        fit(tmp_path, [hasty.prepare([], KeyboardInterrupt())], len(moments))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert hasty.disturbed == []
    # About half of a snapshot is chains, in which it is given up; after them the dump is finished first.
    assert 15 < len(list((tmp_path / "bif").glob("step=*.h5"))) < 90
    assert [path.name for path in (tmp_path / "bif").iterdir() if path.suffix != ".h5"] == []
