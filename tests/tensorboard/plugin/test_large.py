"""Matrices that no reader takes whole: what is read of them, and what is refused."""

import numpy as np
import pytest

from bif_lightning.archive.read import cells
from bif_lightning.archive.write.matrices import mean_pooled
from bif_lightning.tensorboard.plugin import clustering, matrix, orders, trajectories, views
from plugin_runs import ask, files_of, refused, told, write_run

pytestmark = pytest.mark.exact

N, Q = 1500, 300


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    made = write_run(folder, N, Q, steps=(1, 2, 3))
    return files_of(folder), made


@pytest.fixture
def files(run, monkeypatch):
    """The run, where a reader takes no more than two of its twelve chunks whole, and ten at once."""
    for module in (matrix, orders, views):
        monkeypatch.setattr(module, "WHOLE_CELLS", 2 * 256 * 256)
    monkeypatch.setattr(cells, "MOST_CELLS", 10 * 256 * 256)
    return run[0]


def shown(answer):
    assert answer.status == 200, answer.body
    height, width = map(int, answer.headers["X-Shape"].split(","))
    return np.frombuffer(answer.body, "<f4").reshape(-1, height, width)


def test_all_of_it_comes_from_the_overview(files, run):
    asked = {"step": 1, "matrix": "correlation", "height": 128, "width": 64}
    (values,) = shown(ask(files, "view", **asked))
    overview, _, _ = mean_pooled(run[1][1].correlation, 256)
    np.testing.assert_allclose(values, overview[np.arange(128) * 2][:, np.arange(64) * 4], rtol=1e-6)
    why = refused(files, "view", **asked | {"train_by": "label"})
    assert why[0] == 400
    assert "would have to be read at once" in why[1]


def test_a_part_of_it_is_read_in_any_order(files, run):
    answer = ask(files, "view", step=2, matrix="influence", train_by="label", r0=10, r1=60, c0=3, c1=9)
    rows = np.frombuffer(ask(files, "order", side="train", by="label", matrix="influence").body, "<i4")[10:60]
    np.testing.assert_array_equal(shown(answer)[0], -run[1][2].influence[rows, 3:9])
    (pooled,) = shown(ask(files, "view", step=2, matrix="influence", r1=200, c1=100, height=20, width=10))
    blocks = -run[1][2].influence[:200, :100].reshape(20, 10, 10, 10)

    np.testing.assert_allclose(pooled, blocks.mean(axis=(1, 3)), rtol=1e-4, atol=1e-6)


def test_orders_and_the_scale_come_from_parts(files):
    for by in ("cluster", "strength"):
        for side, size in (("train", N), ("query", Q)):
            found = np.frombuffer(ask(files, "order", side=side, by=by, matrix="influence", at=1).body, "<i4")
            assert sorted(found) == list(range(size))
    scale = float(ask(files, "view", step=1, matrix="influence", r1=2, c1=2).headers["X-Scale"])
    assert 2.3 < scale < 2.8, "99th percentile of |N(0, 1)| is 2.58"


def test_a_curve_of_a_cell_needs_no_whole_matrix(files, run):
    points = told(files, "trajectory_points", matrix="influence", train=1499, query=299)["points"]
    expected = {step: float(estimate.influence[1499, 299]) for step, estimate in run[1].items()}
    assert {point["step"]: point["value"] for point in points} == pytest.approx(expected)


def test_a_block_that_takes_long_is_read_at_some_steps(run, monkeypatch):
    monkeypatch.setattr(trajectories, "_SECONDS", -1.0)
    points = told(run[0], "trajectory_points", matrix="influence", train="0,1", query="0,1")["points"]
    assert all("choose a smaller one" in point["why"] for point in points)
    assert trajectories.spread(8) == [0, 4, 2, 6, 1, 5, 3, 7]
    assert [sorted(trajectories.spread(size)) for size in range(40)] == [list(range(size)) for size in range(40)]


def groups(rng, size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of some groups that act alike, under noise, and the group of each."""
    centres = rng.normal(size=(count, 40))
    group = rng.integers(count, size=size)
    return group, (centres[group] + 0.5 * rng.normal(size=(size, 40))).astype(np.float32)


@pytest.mark.parametrize("size", [60, 2000])
def test_rows_that_act_alike_are_neighbours(size):
    group, values = groups(np.random.default_rng(0), size, 7)
    order = clustering.cluster_order(values)
    assert sorted(order) == list(range(size))
    assert (np.diff(group[order]) != 0).sum() == 6, "each group is one stretch"
    np.testing.assert_array_equal(order, clustering.cluster_order(values))


@pytest.mark.parametrize(
    "values", [np.zeros((5, 3)), np.full((4, 4), np.nan), np.ones((1, 1)), np.eye(2), np.zeros((600, 1))]
)
def test_a_matrix_without_structure_has_an_order_too(values):
    assert sorted(clustering.cluster_order(values.astype(np.float32))) == list(range(len(values)))


def test_columns_of_a_matrix_that_is_not_read_whole_have_one_scale(files):
    why = refused(files, "view", step=1, matrix="influence", scaling="column", r1=9, c1=9)
    assert why == (400, "The matrix is too large to scale each query by itself; choose one scale for all.")
