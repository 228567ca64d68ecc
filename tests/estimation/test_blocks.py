"""The rows of the matrices divided over ranks: the same bits, kept where asked for, and failures that all learn of."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shared_rows
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.estimation import blocks, matrices
from bif_lightning.estimation.blocks import MatrixShape
from bif_lightning.estimation.matrices import compute, rounds
from forked import together

pytestmark = pytest.mark.bitwise

Results = dict[str, Any]


@pytest.fixture(autouse=True)
def _small_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((blocks, "_TILE_ENTRIES"), (blocks, "_BLOCKS"), (matrices, "ROUND_BYTES")):
        monkeypatch.setattr(module, name, getattr(module, name))
    shared_rows.in_small_rounds()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Results]]:
    folder = tmp_path_factory.mktemp("ranks")
    together(shared_rows.work, 3, str(folder), (3, 2))
    paths = {size: [Path(folder, f"{size}-{rank}.pickle") for rank in range(size)] for size in (2, 3)}
    assert not {path for path in folder.iterdir() if not path.name.endswith(("pickle", "store2", "store3"))}
    return {size: [pickle.loads(path.read_bytes()) for path in paths[size]] for size in paths}


@pytest.fixture(params=[2, 3])
def ranks(request: pytest.FixtureRequest, of_ranks: dict[int, list[Results]]) -> list[Results]:
    return of_ranks[request.param]


def alone(workers: int = 1, **more: Any) -> dict[str, np.ndarray]:
    found = shared_rows.contents(compute(shared_rows.maker(), workers, Ranks(), **more))
    assert found is not None
    return found


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_every_rank_gets_the_bits_of_one(ranks: list[Results]) -> None:
    for result in ranks:
        same(alone(), result["everywhere"])


def test_the_draws_alone_have_the_bits_of_an_influence_of_draws() -> None:
    found = alone()
    for name in ("influence", "influence_error"):
        np.testing.assert_array_equal(found[name.replace("influence", "influence_draws")], found[name])


def test_rank_0_alone_gets_them_where_they_are_not_wanted_elsewhere(ranks: list[Results]) -> None:
    for when in ("first", "again"):
        same(alone(), ranks[0][when])
        assert [result[when] for result in ranks[1:]] == [None] * (len(ranks) - 1)


def test_all_ranks_learn_of_a_failure_and_can_go_on(ranks: list[Results]) -> None:
    assert ranks[0]["no folder"].startswith("NotADirectoryError: ")
    assert ranks[1]["broken"] == "ArithmeticError: no such rows"
    for rank, result in enumerate(ranks):
        if rank != 0:
            assert result["no folder"].startswith("PeerFailedError: the matrices: rank 0: NotADirectoryError")
        if rank != 1:
            assert result["broken"] == "PeerFailedError: the matrices: rank 1: ArithmeticError: no such rows"


def test_the_forecast_divides_chains_and_rows(ranks: list[Results]) -> None:
    """By a clock that takes every call for a second: 17 steps and 17 measurements a chain, and 101 tiles of a row."""
    chains, tiles = {2: (2, 51), 3: (1, 34)}[len(ranks)]
    for result in ranks:
        found = result["forecast"]
        assert (found.num_ranks, found.workers) == (len(ranks), 1)
        assert found.seconds == chains * 34 + tiles


def test_threads_and_the_file_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone()
    same(expected, alone(3))
    same(expected, alone(2, matrix_bytes=0, scratch=tmp_path))
    monkeypatch.setattr(matrices, "ROUND_BYTES", 1 << 26)
    same(expected, alone(2))


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "layout",
    [
        MatrixShape(101, 13, 9, 24),
        MatrixShape(100_000, 1000, 1000, 24),
        MatrixShape(3, 10**6, 5, 6),
        MatrixShape(100_000, 1000, 1000, 8, drawn_batches=24),
    ],
)
def test_rounds_hold_every_row_once_in_order(layout: MatrixShape, world: int) -> None:
    groups = rounds(layout, world)
    flat = [row for group in groups for row in group]
    assert [each.start for each in flat] == [0, *(each.stop for each in flat[:-1])]
    assert flat[-1].stop == layout.train
    assert flat == [row for group in rounds(layout, 1) for row in group]
    assert all(len(group) % world == 0 for group in groups[:-1])


def test_blocks_are_whole_tiles_of_bounded_size_and_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_TILE_ENTRIES", 10 * 24 * 1000)
    monkeypatch.setattr(blocks, "_BLOCKS", 64)
    layout = MatrixShape(100_000, 1000, 1000, 24)
    assert layout.block_bytes < 1.1 * 4 * 4 * (1 << 19)
    assert len(layout.blocks()) >= 64
    assert [tile for each in layout.blocks() for tile in layout.tiles(each)] == layout.tiles(slice(0, 100_000))
    assert MatrixShape(100_000, 1000, 1000, 8, drawn_batches=24).tiles(slice(0, 100_000)) == layout.tiles(
        slice(0, 100_000)
    )  # of whatever has more batches
    assert MatrixShape(10**6, 10, 10, 24, 10**6).block_bytes > 2 * 8 * 24 * 10**6  # sums over blocks of labels count
