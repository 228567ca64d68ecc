"""Tables of a snapshot, against values computed by hand."""

from dataclasses import replace

import numpy as np
import pytest

from bif_lightning.tensorboard.tables import MOST_ROWS, ranking, tables, top_examples
from estimates import bare, estimate_from, texts

pytestmark = pytest.mark.exact


def test_a_ranking_is_by_the_mean_over_queries() -> None:
    train = replace(bare(4, "t"), labels=np.array([0, 1, 0, -1]), label_names=("cat", "dog"))
    correlation = np.array([[0.1, -0.3], [0.5, 0.2], [-0.5, 0.078], [np.nan, np.nan]])
    estimate = estimate_from(correlation, train, bare(2, "q"))
    errors = estimate.losses.correlation_standard_error.copy()
    errors[0] = (0.01, 0.03)
    estimate = replace(estimate, losses=replace(estimate.losses, correlation_standard_error=errors))
    found = ranking(estimate, train, bare(2, "q"))
    assert found["train"].tolist() == ["t1", "t0", "t2", "t3"]
    assert found["train_label"].tolist() == ["dog", "cat", "cat", "no label"]
    assert found["mean_correlation"].tolist() == pytest.approx([0.35, -0.1, -0.211, np.nan], nan_ok=True)
    assert found["standard_error_at_most"].tolist() == pytest.approx([0.04, 0.02, 0.04, np.nan], nan_ok=True)
    assert found["helps"].tolist() == pytest.approx([1.0, 0.5, 0.0, np.nan], nan_ok=True)
    assert found["hurts"].tolist() == pytest.approx([0.0, 0.5, 0.5, np.nan], nan_ok=True)
    assert found["train_loss"].tolist() == estimate.train_loss[[1, 0, 2, 3]].tolist()
    assert "text" not in found


def test_a_ranking_leaves_out_an_example_with_itself() -> None:
    both = bare(2, "x")
    found = ranking(estimate_from(np.array([[1.0, 0.2], [-0.4, 1.0]]), both, both), both, both)
    assert found["mean_correlation"].tolist() == pytest.approx([0.2, -0.4])


def test_the_bound_holds_for_errors_that_move_together() -> None:
    """Of queries that are all the same, the error of the mean is the error of one."""
    train, query = bare(1, "t"), bare(3, "q")
    found = ranking(estimate_from(np.full((1, 3), 0.2), train, query), train, query)
    assert found["standard_error_at_most"].tolist() == pytest.approx([0.04])


def test_of_many_examples_both_ends_are_kept() -> None:
    count = MOST_ROWS + 5
    train, query = bare(count, "t"), bare(1, "q")
    values = np.linspace(0.9, -0.9, count)[:, None]
    values[1] = np.nan
    kept = ranking(estimate_from(values, train, query), train, query)["train"].tolist()
    half = MOST_ROWS // 2
    assert kept[:half] == ["t0", *(f"t{place}" for place in range(2, half + 1))]
    assert kept[half:] == [f"t{place}" for place in range(count - half, count)]


def test_the_top_of_a_query_is_by_influence() -> None:
    train, query = texts(4, "doc"), bare(2, "q")
    estimate = estimate_from(np.array([[0.5, 0.0], [-0.3, 0.0], [0.05, 0.0], [np.nan, 0.0]]), train, query)
    influence = np.array([[0.1, 0.0], [0.3, 0.0], [-0.2, 0.0], [-0.7, 0.0]], np.float32)
    estimate = replace(estimate, losses=replace(estimate.losses, influence=influence))
    found = top_examples(estimate, train, query, [0, 1], 2)
    assert found[["query", "effect", "rank", "train"]].values.tolist() == [
        ["q0", "helps", 1, "doc/3"],
        ["q0", "helps", 2, "doc/2"],
        ["q0", "hurts", 1, "doc/1"],
        ["q0", "hurts", 2, "doc/0"],
    ]
    assert found["influence"].tolist() == pytest.approx([-0.7, -0.2, 0.3, 0.1])
    assert found["correlation"].tolist() == pytest.approx([np.nan, 0.05, -0.3, 0.5], nan_ok=True)
    assert found["text"][0] == train.texts[3]
    assert "query_label" not in found


def test_tables_of_nothing() -> None:
    train, query = bare(1, "t"), bare(1, "q")
    found = tables(estimate_from(np.array([[np.nan]]), train, query), train, query, step=7, columns=[0])
    assert {tag: len(table) for tag, table in found.items()} == {"bif/verdict": 1, "bif/top": 0, "bif/ranking": 1}
    assert all(next(iter(table)) == "step" for table in found.values())
    assert found["bif/verdict"]["step"].tolist() == [7]
