"""The forecast knows of ranks, of the matrices' time, and of the file that they lie in."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bif_lightning.estimation.forecast as forecast_module
from bif_lightning.config import SGLD, Chains, ControlledSGLD, Subspace
from bif_lightning.data.dataset import Examples
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.estimation.blocks import Block, BlockBuilder, MatrixShape
from bif_lightning.estimation.estimator import estimate_problem
from bif_lightning.estimation.forecast import Forecast, forecast
from bif_lightning.estimation.matrix_cost import PieceSeconds, matrix_seconds
from bif_lightning.losses.observables import mean_of
from bif_lightning.losses.problem import Problem
from bif_lightning.sampling.trace import ChainTrace, keeps_traces, moment_bytes, trace_bytes
from targets import Regression, half_square

pytestmark = pytest.mark.exact

SAMPLER = SGLD(step_size=0.02, inverse_temperature=7.0, localization=11.0)
CHAINS = Chains(num_chains=5, num_draws=8, batch_size=5)


def problem(train: int = 50, query: int = 20) -> Problem:
    examples = Examples(Regression.random(train, 3, 0).data())
    return Problem(
        module=Regression.random(train, 3, 0).model(), loss=half_square,
        objective=lambda module, batch: mean_of(half_square(module, batch)), train=examples,
        query=Examples(Regression.random(query, 3, 1).data()), training=examples, prepare=lambda batch: batch,
    )  # fmt: skip


def test_what_is_said_of_a_snapshot() -> None:
    alone = Forecast(12.34, 340_000_000, 1)
    assert "and 17.1 kB a snapshot" in str(Forecast(seconds=1.0, extra_bytes=17_100, workers=1))
    assert str(alone) == "about 12 s and 340 MB a snapshot, 1 chain at a time"
    shared = replace(alone, workers=2, num_ranks=3, file_bytes=1_600_000_000)
    assert str(shared) == (
        "about 12 s and 340 MB a snapshot, 2 chains at a time on each of 3 ranks, "
        "1.6 GB of matrices in a temporary file"
    )


def test_the_matrices_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that takes every call for a second: of a tile, too, one after the other."""
    monkeypatch.setattr(forecast_module, "_clock", lambda call, calls: 1.0)
    torch.set_num_threads(1)
    few = replace(CHAINS, num_chains=1, num_draws=4)
    small, large = (forecast(problem(size, size), SAMPLER, few, ranks=Ranks()) for size in (100, 1500))
    assert (small.seconds, large.seconds) == (8 + 1, 8 + 9)  # 4 steps, 4 measurements, and the tiles
    stored = 6 * 4 * 1500**2 + 2 * 8 * 64 * 1500
    assert small.file_bytes == large.file_bytes == 0
    assert large.extra_bytes > 2 * stored  # as long as blocks wait, too
    in_file = forecast(problem(1500, 1500), SAMPLER, few, ranks=Ranks(), matrix_bytes=1000, scratch=tmp_path)
    assert in_file.file_bytes == stored
    assert large.extra_bytes - in_file.extra_bytes == stored
    assert "of matrices in a temporary file" in str(in_file)


def test_the_forecast_makes_up_few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many draws as the paper's vision run: arrays of the forecast are as small as for hundreds."""
    pushed = list[int]()

    def push(self: ChainTrace, train: torch.Tensor, columns: torch.Tensor) -> None:
        pushed.append(len(train))
        made(self, train, columns)

    made = ChainTrace.push
    monkeypatch.setattr(ChainTrace, "push", push)
    torch.set_num_threads(1)
    for draws in (200, 24_000):
        pushed.clear()
        said = forecast(problem(), SAMPLER, Chains(num_chains=4, num_draws=draws // 4, batch_size=5), ranks=Ranks())
        assert sum(pushed) == 6 * 8 * 50  # batches of a chain x draws of each x train rows
        assert 0 < said.seconds < float("inf")


def test_the_update_that_conditions_the_draws_is_counted() -> None:
    """Beside the fifth and sixth matrix and their share of a round: 4 x 249 increments, 50 train examples."""
    chains = Chains(num_chains=4, num_draws=250, batch_size=5)
    with_it, without = (forecast(problem(), SAMPLER, replace(chains, ridge=r), ranks=Ranks()) for r in ("auto", None))
    matrices = 2 * 4 * 50 * 20
    assert with_it.extra_bytes - without.extra_bytes == 2 * matrices + 8 * (3 * 50**2 + (996 + 50) * 20)


@pytest.mark.parametrize("paired", [False, True])
def test_seconds_of_the_matrices_are_counted(*, paired: bool) -> None:
    """By hand: two tiles on one worker, of 1,000 increments (of each of two chains) and 30 train examples."""
    shape = MatrixShape(train=30, columns=1 << 13, queries=5, batches=2, conditioned=True)
    assert len(shape.tiles(slice(0, 30))) == 2
    chains = Chains(num_chains=2, num_draws=2000 if paired else 1001)
    further, increments = 2 * (chains.num_draws - 16), 2000
    pieces = PieceSeconds(tile=1.0, draw=2.0, sweep=3.0, product=5.0, inverse=7.0)
    solved = 5.0 * (increments * 30 * (30 + 2 * (1 << 13))) + 7.0 * 30**3
    each = 1.0 + 2.0 * (further + increments) + 3.0 * increments * 30
    assert matrix_seconds(shape, chains, 16, pieces, 1, paired=paired) == pytest.approx(solved + 2 * each)
    assert matrix_seconds(shape, chains, 16, pieces, 2, paired=paired) == pytest.approx(solved + each)
    plain = replace(shape, conditioned=False)
    assert matrix_seconds(plain, chains, 16, pieces, 2, paired=paired) == pytest.approx(1.0 + 2.0 * further)


def test_no_room_is_said_before_the_first_snapshot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 12_000})())
    with pytest.raises(OSError, match=r"need .* in a temporary file in .*, which has 1\.2e-05 GB free"):
        forecast(problem(), SAMPLER, CHAINS, ranks=Ranks(), matrix_bytes=1000, scratch=tmp_path)


def test_moments_are_never_chosen_where_traces_are_smaller() -> None:
    chains = Chains(num_chains=4, num_draws=100)
    assert moment_bytes(chains, 100_000, 1000) == 19_200_000_000
    assert trace_bytes(chains, 100_000, 1000) == 161_600_000
    assert keeps_traces(chains, 100_000, 1000)
    assert not keeps_traces(replace(chains, num_draws=10_000), 1000, 1)


def test_a_snapshot_of_controlled_chains_is_forecast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a third matrix, of the draws alone, and its error: in what is timed, and in the file."""
    timed = set[int]()

    def block(self: BlockBuilder, rows: slice) -> Block:
        found = made(self, rows)
        timed.add(len(found.matrices))
        return found

    made = BlockBuilder.block
    monkeypatch.setattr(BlockBuilder, "block", block)
    sampler, chains = ControlledSGLD(num_directions=4), Chains(num_chains=2, num_draws=4, thinning=2, batch_size=8)
    found = forecast(problem(), sampler, chains, ranks=Ranks(), matrix_bytes=1000, scratch=tmp_path)
    assert 0 < found.seconds < 60
    assert found.extra_bytes > 0
    assert timed == {6}
    stored = 6 * 4 * 50 * 20 + 2 * 8 * 20 * 50
    assert found.file_bytes == stored
    in_memory = forecast(problem(), sampler, chains, ranks=Ranks())
    assert in_memory.extra_bytes - found.extra_bytes == stored
    timed.clear()
    done = estimate_problem(problem(), sampler, chains, ranks=Ranks())
    assert done is not None
    assert done.influence_draws is not None
    assert timed == {6}
    closed = forecast(
        problem(), Subspace(num_directions=4), replace(chains, thinning=1), ranks=Ranks(), matrix_bytes=1000,
        scratch=tmp_path,
    )  # fmt: skip
    assert closed.file_bytes == 4 * 4 * 50 * 20 + 2 * 8 * 20 * 50
