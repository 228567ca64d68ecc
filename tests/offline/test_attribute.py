"""`attribute` against the callback: the same dumps from checkpoints as during training, and what bad ones do."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bif_lightning as bl
from bif_lightning.distributed.leases import Leases
from bif_lightning.trainer.outputs import Outputs
from offline_run import CHAINS, SAMPLER, STEPS, Net, assert_same_dumps, attribute, points, train

pytestmark = pytest.mark.bitwise


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(folder, sampler=SAMPLER, chains=CHAINS)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": SAMPLER, "chains": CHAINS},
        {"sampler": SAMPLER, "chains": bl.Chains(num_chains=2, num_draws=6, batch_size=8, common_random_numbers=False)},
        {},
        {"sampler": "auto"},
    ],
    ids=["SGLD", "noise of each step", "default", "auto"],
)
def test_checkpoints_give_the_dumps_that_training_gave(tmp_path: Path, settings: dict[str, Any]) -> None:
    inline = train(tmp_path, **settings)
    done = attribute(tmp_path, **({"sampler": None, "chains": None} | settings))
    assert done.written == tuple(STEPS)
    assert not done.failed
    assert_same_dumps(inline, done.directory)
    assert (inline / "integrated.h5").exists()
    assert (done.directory / "integrated.h5").exists()


def test_a_second_call_goes_on_and_other_settings_are_refused(trained: Path, tmp_path: Path) -> None:
    saved = trained / "saved"
    first = attribute(tmp_path, checkpoints=[saved / "at-2.ckpt", saved / "at-8.ckpt"])
    assert first.written == (2, 8)
    before = (first.directory / "step=000000002.h5").stat()
    second = attribute(tmp_path, checkpoints=saved)
    assert (second.written, second.present) == ((5,), (2, 8))
    assert (first.directory / "step=000000002.h5").stat().st_mtime_ns == before.st_mtime_ns
    assert_same_dumps(trained / "bif", second.directory)
    with pytest.raises(ValueError, match="other settings"):
        attribute(tmp_path, checkpoints=saved, chains=bl.Chains(num_chains=3, num_draws=6, batch_size=8))


@pytest.mark.parametrize(
    ("where", "name", "of", "done"),
    [(Leases, "_take", "h5.claim", []), (Outputs, "write", "", [2]), (Leases, "_mine", "h5.claim", [2])],
    ids=["a lease is acquired", "a dump is written", "a lease is released"],
)
def test_control_c_waits_until_nothing_is_half_done(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: type, name: str, of: str, done: list[int]
) -> None:
    once, real = iter([signal.SIGINT]), getattr(where, name)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **options)
        if of in str(arguments):
            for number in once:
                signal.raise_signal(number)
        return found

    monkeypatch.setattr(where, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        attribute(tmp_path, checkpoints=trained / "saved")
    directory = tmp_path / "later" / "bif"
    assert sorted(directory.glob("step=*")) == [directory / f"step={step:09d}.h5" for step in done]
    assert not list(directory.glob("claims/*"))
    attribute(tmp_path, checkpoints=trained / "saved")
    assert_same_dumps(trained / "bif", directory)


def test_the_folder_of_a_training_run_is_left_alone(trained: Path) -> None:
    with pytest.raises(ValueError, match="holds 3 dumps of another run"):
        bl.attribute(
            Net(), trained / "saved", range(10), range(30, 36), data=points(), dirpath=trained / "bif",
            sampler=SAMPLER, chains=CHAINS, log=False,
        )  # fmt: skip


def test_bad_checkpoints_are_named_and_the_others_done(trained: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    saved.mkdir()
    good = (trained / "saved" / "at-5.ckpt").read_bytes()
    (saved / "at-5.ckpt").write_bytes(good)
    (saved / "cut.ckpt").write_bytes(good[: len(good) // 2])
    (saved / "text.ckpt").write_text("nothing")
    torch.save(Net(width=7).state_dict(), saved / "other-step=7.pt")
    torch.save({"global_step": 9, "state_dict": nn.Linear(2, 2).state_dict()}, saved / "alien.ckpt")
    torch.save(Net().state_dict(), saved / "nameless.pt")
    torch.save(Net().state_dict() | {"head.weight": torch.zeros(2)}, saved / "more-step=11.pt")
    done = attribute(tmp_path)
    assert done.written == (5,)
    why = {Path(path).name: reason for path, reason in done.failed.items()}
    assert set(why) == {"cut.ckpt", "text.ckpt", "other-step=7.pt", "alien.ckpt", "nameless.pt", "more-step=11.pt"}
    assert "cannot be read as a checkpoint" in why["cut.ckpt"]
    assert "net.0.weight has shape (7, 4) there and (5, 4)" in why["other-step=7.pt"]
    assert "lacks net.0.bias, net.0.weight" in why["alien.ckpt"]
    assert "it has bias, weight" in why["alien.ckpt"]
    assert "does not fit Net: it has head.weight" in why["more-step=11.pt"]
    assert "step=1000" in why["nameless.pt"]


def test_code_in_a_checkpoint_is_not_run(trained: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    saved = tmp_path / "saved"
    saved.mkdir()
    torch.save({"global_step": 3, "state_dict": Net().state_dict(), "trap": Trap()}, saved / "trap.ckpt")
    with pytest.raises(ValueError, match=r"none of 1 checkpoints can be read.*weights_only"):
        attribute(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(trained: Path, tmp_path: Path) -> None:
    done = attribute(tmp_path, checkpoints=trained / "saved", dry_run=True)
    assert done.written == ()
    assert done.expected is not None
    assert done.expected.seconds > 0
    assert not (tmp_path / "later").exists()


def test_arguments_that_cannot_work_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        attribute(tmp_path, checkpoints=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="at_steps applies to snapshots during training"):
        attribute(tmp_path, checkpoints=trained / "saved", at_steps=[1])
    with pytest.raises(ValueError, match="as `data`"):
        bl.attribute(Net(), trained / "saved", range(10), dirpath=tmp_path)
    twice = [trained / "saved" / "at-2.ckpt", tmp_path / "last.ckpt"]
    twice[1].write_bytes(twice[0].read_bytes())
    with pytest.raises(ValueError, match="both have step 2"):
        attribute(tmp_path, checkpoints=twice)


def test_plain_state_dicts_and_datasets_serve(tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "model-step=30.pt")
    done = bl.attribute(
        Net(),
        str(tmp_path / "model-step=30.pt"),
        points(),
        dirpath=tmp_path / "out" / "bif",
        sampler=SAMPLER,
        chains=CHAINS,
    )
    run = bl.open_run(done.directory)
    assert run.sizes["train"] == run.sizes["query"] == 40
    assert list(run.step.values) == [30]
    assert list((tmp_path / "out").glob("events.out.tfevents.*"))
