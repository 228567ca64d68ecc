"""Promises 1 and 2 on several processes over gloo: training bitwise as it was, the same dumps on any number of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

import bif_lightning as bl
import strategy_run
from bif_lightning.curvature.example_weights import DIVIDED
from bif_lightning.exceptions import PeerFailedError
from bif_lightning.trainer.support import check_trainer
from strategy_run import launch

pytestmark = [pytest.mark.trainer, pytest.mark.bitwise]

OFTEN = {"every_n_train_steps": 2, "at_start": True}
slow = pytest.mark.slow


def dumps(folder: Path) -> Any:
    return bl.open_run(folder / "bif").load()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "ranks"),
    [
        ("ddp", 2),
        pytest.param("fsdp", 2, marks=slow),
        pytest.param("unused", 2, marks=slow),
        pytest.param("static", 2, marks=slow),
        pytest.param("fsdp", 3, marks=slow),
        pytest.param("tp", 2, marks=slow),
        pytest.param("both", 4, marks=slow),
    ],
)
def test_training_on_several_ranks_is_bitwise_untouched(tmp_path: Path, kind: str, ranks: int) -> None:
    left = launch(tmp_path, ranks, strategy=kind, compare=True, options=OFTEN)
    for plain, watched in left:
        assert plain == watched
    assert dumps(tmp_path).step.values.tolist()[:3] == [0, 2, 4]


@slow
def test_snapshots_after_validation_find_the_shards_again(tmp_path: Path) -> None:
    """A forward pass without a backward one leaves gathered weights in the module, just where an epoch ends."""
    left = launch(tmp_path, 2, strategy="fsdp", compare=True, validates=True)
    for plain, watched in left:
        assert plain == watched
    assert dumps(tmp_path).step.values.tolist() == [3, 6]


@slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_resumed_run_on_several_ranks_writes_the_same_dumps(tmp_path: Path, kind: str) -> None:
    launch(tmp_path / "whole", 2, strategy=kind, keeps=True, options={"every_n_train_steps": 2})
    start = str(tmp_path / "whole" / "step=3.ckpt")
    launch(tmp_path / "rest", 2, strategy=kind, keeps=True, ckpt=start, options={"every_n_train_steps": 2})
    whole, rest = dumps(tmp_path / "whole"), dumps(tmp_path / "rest")
    assert rest.step.values.tolist() == [4, 6]
    assert np.array_equal(rest.influence, whole.influence.sel(step=[4, 6]))
    assert np.array_equal(rest.loss_trace, whole.loss_trace.sel(step=[4, 6]))


@slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_training_that_accumulates_gradients_is_bitwise_untouched(tmp_path: Path, kind: str) -> None:
    trainer = {"accumulate_grad_batches": 2}
    left = launch(tmp_path, 2, strategy=kind, compare=True, options={"every_n_train_steps": 1}, trainer=trainer)
    for plain, watched in left:
        assert plain == watched


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Weights and running statistics off their start, and the dump that one process makes of them."""
    folder = tmp_path_factory.mktemp("alone")
    torch.manual_seed(5)
    module = strategy_run.Net()
    for _ in range(3):
        module.net(torch.randn(8, 4) + 1.0)
    torch.save(module.state_dict(), folder / "start.pt")
    assert launch(folder, 1, strategy="single", start=str(folder / "start.pt"), **AT_START)[0]
    return folder / "start.pt", folder


AT_START: dict[str, Any] = {"options": {"at_start": True, "at_steps": [], "at_end": False}, "trainer": {"max_steps": 1}}


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=slow)])
def test_the_dump_is_bitwise_the_same_on_any_number_of_ranks(tmp_path: Path, alone: Any, ranks: int) -> None:
    start, folder = alone
    launch(tmp_path, ranks, strategy="ddp", start=str(start), **AT_START)
    found, expected = dumps(tmp_path), dumps(folder)
    assert found.sizes == expected.sizes
    for name in expected.data_vars:
        if name != "seconds" and np.issubdtype(expected[name].dtype, np.number) and "cost" not in name:
            assert np.array_equal(found[name].values, expected[name].values, equal_nan=True), name


@slow
def test_running_statistics_are_those_of_rank_0(tmp_path: Path) -> None:
    """BatchNorm saw other data on each rank; all chains take what rank 0 saw, and would save."""
    launch(tmp_path / "both", 2, strategy="ddp", save=2, options={"at_steps": [2], "at_end": False})
    of_ranks = [torch.load(tmp_path / "both" / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(of_ranks[0]["net.0.weight"], of_ranks[1]["net.0.weight"])
    assert not torch.equal(of_ranks[0]["net.1.running_mean"], of_ranks[1]["net.1.running_mean"])
    start = str(tmp_path / "both" / "rank0.pt")
    launch(tmp_path / "one", 1, strategy="single", start=start, **AT_START)
    found, expected = dumps(tmp_path / "both"), dumps(tmp_path / "one")
    assert np.array_equal(found.influence[0], expected.influence[0])
    assert np.array_equal(found.loss_trace[0], expected.loss_trace[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dump of one process, with the whole model: what shards of it are compared with."""
    folder = tmp_path_factory.mktemp("whole")
    launch(folder, 1, strategy="single", norm=False, **AT_START)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "ranks"), [("fsdp", 2), pytest.param("tp", 2, marks=slow), pytest.param("both", 4, marks=slow)]
)
def test_a_model_in_shards_has_the_influence_of_the_whole(tmp_path: Path, whole: Path, kind: str, ranks: int) -> None:
    """The same noise, the same minibatches: equal up to the rounding of sums."""
    launch(tmp_path, ranks, strategy=kind, **AT_START)
    found, expected = dumps(tmp_path), dumps(whole)
    np.testing.assert_allclose(found.correlation, expected.correlation, atol=1e-4)
    np.testing.assert_allclose(found.influence, expected.influence, atol=1e-4 * float(abs(expected.influence).max()))
    np.testing.assert_allclose(found.distance_trace, expected.distance_trace, rtol=1e-5)
    np.testing.assert_allclose(found.loss_trace, expected.loss_trace, rtol=1e-5)


@pytest.mark.slow
def test_examples_that_count_unequally_are_noted_where_ranks_divide_them(tmp_path: Path) -> None:
    launch(tmp_path, 2, strategy="fsdp", weighted=True, **AT_START)
    assert DIVIDED in dumps(tmp_path).notes.item()


@pytest.fixture(scope="module")
def whole_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    launch(folder, 1, strategy="single", norm=False, tokens=True, **AT_START)
    return folder


@slow
@pytest.mark.parametrize(("kind", "ranks"), [("fsdp", 2), ("tp", 2), ("both", 4)])
def test_tokens_of_a_model_in_shards_are_those_of_the_whole(
    tmp_path: Path, whole_tokens: Path, kind: str, ranks: int
) -> None:
    """Of batches of unequal width, and of 12 train and 5 query examples in batches of 2 on up to 2 parts."""
    launch(tmp_path, ranks, strategy=kind, tokens=True, **AT_START)
    found, expected = (bl.open_tokens(folder / "bif" / "step=000000000.h5") for folder in (tmp_path, whole_tokens))
    for one, other in ((found.train, expected.train), (found.query, expected.query)):
        assert one.sequence.tolist() == other.sequence.tolist()
        assert one.position.tolist() == other.position.tolist()
    assert np.bincount(expected.train.sequence).tolist() == [1, 2, 3] * 4
    np.testing.assert_allclose(found.correlation().value, expected.correlation().value, atol=1e-4)
    most = float(abs(expected.influence().value).max())
    np.testing.assert_allclose(found.influence().value, expected.influence().value, atol=1e-4 * most)


FAILS = {"kind": "error", "step": 2, "ranks": [1]}


@pytest.mark.slow
def test_where_one_rank_fails_all_skip_together(tmp_path: Path) -> None:
    """Out of memory on rank 1, in its chains from step 2 on: no dump, no hang, and training as it was."""
    left = launch(tmp_path, 2, compare=True, trouble=FAILS, options={**OFTEN, "on_error": "warn"})
    for plain, watched in left:
        assert plain == watched
    assert [path.name for path in (tmp_path / "bif").glob("step=*")] == ["step=000000000.h5"]
    assert "rank 1: MemoryError: no more memory on this rank" in (tmp_path / "0.log").read_text()


@slow
def test_where_one_rank_fails_all_stop_if_asked_to(tmp_path: Path) -> None:
    first, second = launch(tmp_path, 2, trouble=FAILS, options={**OFTEN, "on_error": "raise"})
    assert isinstance(second, MemoryError)
    assert isinstance(first, PeerFailedError | RuntimeError)
    assert "rank 1: MemoryError: no more memory" in str(first)


@slow
def test_a_model_in_shards_skips_a_snapshot_that_fails_everywhere(tmp_path: Path) -> None:
    fails = {"kind": "error", "step": 2, "ranks": [0, 1]}
    left = launch(tmp_path, 2, strategy="fsdp", compare=True, trouble=fails, options={**OFTEN, "on_error": "warn"})
    for plain, watched in left:
        assert plain == watched
    assert [path.name for path in (tmp_path / "bif").glob("step=*")] == ["step=000000000.h5"]


@slow
def test_a_rank_that_fails_alone_ends_a_model_in_shards(tmp_path: Path) -> None:
    """The other one waits for it in a collective, and no snapshot can be skipped any more: an error, and no hang."""
    warns = {**OFTEN, "on_error": "warn"}
    first, second = launch(tmp_path, 2, strategy="fsdp", waits=20, trouble=FAILS, options=warns)
    assert "no progress for 20 s of rank 0" in str(second)
    assert isinstance(first, Exception)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=slow)])
def test_a_job_that_is_asked_to_end_gives_the_snapshot_up(tmp_path: Path, ranks: int) -> None:
    """SIGTERM in a chain: no dump, whatever on_error says, and Lightning ends the run in its own way at once."""
    sigterm = {"kind": "sigterm", "step": 2, "ranks": [0, 1]}  # schedulers signal every process
    kind = "ddp" if ranks > 1 else "single"
    left = launch(tmp_path, ranks, strategy=kind, trouble=sigterm, options={**OFTEN, "on_error": "raise"})
    assert [path.name for path in (tmp_path / "bif").glob("step=*")] == ["step=000000000.h5"]
    assert "snapshot at step 2 is given up, since the job received SIGTERM" in (tmp_path / "0.log").read_text()
    assert "SIGTERM" in repr(left[0])


@slow
def test_a_rank_that_hangs_is_named(tmp_path: Path) -> None:
    """The others wait as long as their process group would for a collective (20 s here), and say for whom."""
    sleeps, warns = {"kind": "hang", "step": 2, "ranks": [1]}, {**OFTEN, "on_error": "warn"}
    first, second = launch(tmp_path, 2, hangs=(1,), waits=20, trouble=sleeps, options=warns)
    assert second is None
    assert "no progress for 20 s of rank 1" in str(first)


@slow
def test_collectives_in_a_training_step_are_named(tmp_path: Path) -> None:
    for error in launch(tmp_path, 2, talking=True):
        assert isinstance(error, MisconfigurationException)
        assert "all_gather" in str(error)
        assert "loss_fn" in str(error)


@slow
def test_examples_that_differ_between_ranks_are_refused(tmp_path: Path) -> None:
    for error in launch(tmp_path, 2, differing=True):
        assert isinstance(error, ValueError)
        assert "ranks [1] read other train or query examples" in str(error)


@slow
def test_spawned_processes_leave_their_dumps(tmp_path: Path) -> None:
    launch(tmp_path, 1, strategy="spawn", devices=2, options=OFTEN)
    assert dumps(tmp_path).step.values.tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "XLAStrategy", "SomebodysStrategy"])
def test_other_strategies_are_refused(name: str) -> None:
    base = type("DDPStrategy", (), {}) if name == "DeepSpeedStrategy" else object
    trainer = SimpleNamespace(strategy=type(name, (base,), {})(), world_size=2, precision="32-true")
    with pytest.raises(MisconfigurationException, match=rf"{name} on 2 ranks: .*bif_lightning\.attribute"):
        check_trainer(trainer, allow_untested=False)
    check_trainer(trainer, allow_untested=True)


def test_other_precisions_are_refused() -> None:
    trainer = SimpleNamespace(strategy=type("SingleDeviceStrategy", (), {})(), precision="transformer-engine")
    with pytest.raises(MisconfigurationException, match="precision='transformer-engine'"):
        check_trainer(trainer, allow_untested=False)
