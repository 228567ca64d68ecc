"""Tops, curves, trust, differences and exports of a small run: the numbers are those of the archive."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from bif_lightning import changes, open_run, top, trajectory
from bif_lightning.archive.write import write_dump, write_samples
from bif_lightning.tensorboard.plugin.answers import plain
from bif_lightning.tensorboard.plugin.exports import as_csv
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.trajectories import assemble
from plugin_runs import STEPS, ask, estimate_of, files_of, refused, samples_of, told, write_run

pytestmark = pytest.mark.exact

N, Q = 40, 12


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    made = write_run(folder, N, Q)
    return folder, files_of(folder), made


def window(answer):
    height, width = map(int, answer.headers["X-Shape"].split(","))
    parts = np.frombuffer(answer.body, "<f4").reshape(-1, height, width)
    assert len(parts) == 1 + int(answer.headers["X-Errors"])
    return parts


@pytest.mark.parametrize("matrix", ["correlation", "influence", "conditioned"])
def test_tops_are_those_of_the_archive(run, matrix):
    folder, files, _ = run
    for query in (0, 5):
        of = told(files, "top", step=200, matrix=matrix, query=query, k=N)
        table = top(open_run(folder), query, k=N, step=200, by=matrix)
        for effect in ("helps", "hurts"):
            expected = table[table.effect == effect]
            assert [card["row"] for card in of[effect]] == expected.train.tolist()
            sign = 1 if matrix == "correlation" else -1  # cards hold effects
            np.testing.assert_allclose([card["value"] for card in of[effect]], sign * expected.value)
            clear = expected.value.abs() > 1.959963984540054 * expected.standard_error
            assert [card["clear"] for card in of[effect]] == clear.tolist()
    last = told(files, "top", step=200, matrix=matrix, query=Q - 1, k=1)
    assert last["stability"] is None
    if matrix == "influence":
        assert of["stability_text"].startswith("Of the 10 most helpful")
        assert (
            f"was measured for {Q - 1} of {Q} queries, not for this one; their median is 75%" in last["stability_text"]
        )
    else:  # it was measured of another ranking
        assert (of["stability"], "was not measured" in of["stability_text"]) == (None, True)
    assert of["verdict"] == "diverged"


def test_ranks_since_an_earlier_step(run):
    _, files, made = run
    of = told(files, "top", step=400, matrix="influence", query=2, k=5, since=100)
    now, before = made[400].influence[:, 2], made[100].influence[:, 2]
    for effect, sign in (("helps", 1), ("hurts", -1)):
        for place_, card in enumerate(of[effect]):
            row = card["row"]
            assert card["rank"] == place_ + 1 == 1 + (sign * now < sign * now[row]).sum()
            assert card["value_since"] == pytest.approx(-float(before[row]))
            same = before[row] * sign < 0
            assert card["rank_since"] == (1 + (sign * before < sign * before[row]).sum() if same else None)


def test_queries_of_a_train_example(run):
    _, files, made = run
    of = told(files, "top", step=400, matrix="correlation", train=3, k=2)
    assert [card["row"] for card in of["helps"]] == np.argsort(-made[400].correlation[3])[:2].tolist()


def points(files, parameters):
    found = sorted(told(files, "trajectory_points", **parameters)["points"], key=lambda point: point["step"])
    asked = Parameters({name: str(value) for name, value in parameters.items()})
    return plain(assemble(found, asked, {100: "good"}))


def test_a_trajectory_is_that_of_the_archive(run):
    folder, files, _ = run
    of = points(files, {"matrix": "influence", "train": 7, "query": 4})
    expected = trajectory(open_run(folder), 7, 4, by="influence")
    np.testing.assert_allclose(of["value"], expected.value)
    np.testing.assert_allclose(of["low"], expected.band_low, rtol=1e-6)
    np.testing.assert_allclose(of["high"], expected.band_high, rtol=1e-6)
    assert of["verdict"] == ["good", None, None, None]
    found = changes(open_run(folder), 7, 4, by="influence")
    assert [change["step"] for change in of["changes"]] == found.step.tolist()
    assert of["error_kind"] == "of the mean"


def test_a_block_has_a_mean_and_an_upper_bound_of_its_error(run):
    _, files, made = run
    of = points(files, {"matrix": "influence", "train": "3,4,9", "query": "0,2"})
    block = made[200].influence[[3, 4, 9]][:, [0, 2]]
    errors = made[200].losses.influence_standard_error[[3, 4, 9]][:, [0, 2]]
    assert of["value"][1] == pytest.approx(float(block.mean()), rel=1e-5)
    assert of["standard_error"][1] == pytest.approx(float(errors.mean()), rel=1e-5)
    assert of["error_kind"] == "upper bound"


def test_a_class_block_has_the_error_of_its_mean(run):
    _, files, made = run
    of = points(files, {"matrix": "correlation", "train_class": 0, "query_class": 2})
    means = made[300].label_means
    pair = (means.train_labels.tolist().index(0), means.query_labels.tolist().index(2))
    assert (of["value"][2], of["standard_error"][2]) == (
        means.correlation[pair], means.correlation_standard_error[pair],
    )  # fmt: skip
    assert (of["class_block"], of["error_kind"]) == (True, "of the mean")


def test_a_dump_that_cannot_be_read_is_a_gap(tmp_path):
    write_run(tmp_path, 6, 4)
    broken = tmp_path / "step=000000200.h5"
    broken.write_bytes(broken.read_bytes()[:4000])
    of = points(files_of(tmp_path), {"matrix": "correlation", "train": 1, "query": 1})
    assert [value is None for value in of["value"]] == [False, True, False, False]
    assert of["missing"][0]["step"] == 200
    assert "not a whole HDF5 file" in of["missing"][0]["why"]


def test_trust_and_chains(run):
    _, files, made = run
    found = told(files, "trust_points")["points"]
    assert [point["step"] for point in found] == list(STEPS)
    assert (found[0]["rhat"], found[0]["score_agreement"], found[0]["divergences"]) == (1.01, None, 1)
    assert found[1]["metrics"] == {"val_loss": 0.5}
    of = told(files, "chains", step=200)
    np.testing.assert_array_equal(of["loss"], made[200].loss_trace)
    assert (of["chain"], of["thinned"]) == ([0, 2], 1)
    assert of["divergences"] == [{"chain": 1, "draw": -1, "message": "chain 1 left"}]
    assert of["settings"]["sampler"]["step_size"] == 1e-4
    assert (of["notes"], of["cost"]["workers"]) == (["a note"], 2)


def test_a_difference_of_two_steps(run):
    _, files, made = run
    asked = {"step": 400, "other_step": 100, "matrix": "influence"}
    answer = ask(files, "compare", files, **asked)
    values, errors = window(answer)
    np.testing.assert_array_equal(values, made[100].influence - made[400].influence)
    ends = [made[step].losses.influence_standard_error for step in (400, 100)]
    np.testing.assert_allclose(errors, np.hypot(*ends))
    for part, step in (("this", 400), ("other", 100)):
        shown = window(ask(files, "compare", files, part=part, **asked))[0]
        np.testing.assert_array_equal(shown, -made[step].influence)
    ranks = [spearmanr(made[400].influence[:, j], made[100].influence[:, j]).statistic for j in range(Q)]
    assert float(answer.headers["X-Rank-Correlation"]) == pytest.approx(np.median(ranks))
    of = told(files, "compare_ranks", files, **asked)
    np.testing.assert_allclose(of["rank_correlation"], ranks)


def taken(samples, rows):
    """Some examples, in another order."""
    texts = tuple(samples.texts[row] for row in rows)
    ids = tuple(samples.ids[row] for row in rows)
    labels, index = samples.labels[rows], samples.index[rows]
    return replace(samples, ids=ids, texts=texts, labels=labels, index=index, thumbnails=None, columns=None)


def test_runs_are_compared_by_the_examples_that_both_have(run, tmp_path):
    _, files, made = run
    train = taken(samples_of("train", N), np.arange(39, 0, -2))  # every other one, backwards
    query = taken(samples_of("query", Q, seed=1), np.arange(8))
    query = replace(query, ids=("new", *query.ids[1:]))
    other = estimate_of(train, query, 9)
    write_samples(tmp_path, train, query)
    write_dump(tmp_path, other, step=7, epoch=0, train=train, query=query)
    answer = ask(files, "compare", files_of(tmp_path), step=400, other_step=7, matrix="influence", r1=5, c1=4)
    assert answer.headers["X-Common"] == "20,7"
    values, _ = window(answer)
    mine = made[400].influence[1:10:2, 1:5]
    theirs = other.influence[[19, 18, 17, 16, 15], 1:5]
    np.testing.assert_array_equal(values, theirs - mine)
    strangers = replace(train, ids=tuple(f"x{row}" for row in range(20)))
    write_samples(tmp_path / "b", strangers, query)
    write_dump(tmp_path / "b", other, step=7, epoch=0, train=strangers, query=query)
    why = refused(files, "compare", files_of(tmp_path / "b"), step=400, other_step=7, matrix="influence")
    assert (why[0], "no train examples of the same id" in why[1]) == (400, True)


def test_an_id_alone_makes_no_two_examples_the_same(run, tmp_path):
    """Row numbers are the default ids, so that any two datasets share them."""
    _, files, _ = run
    whole, query = samples_of("train", N), samples_of("query", Q, seed=1)
    texts = tuple(f"another text {row}" if row % 2 else text for row, text in enumerate(whole.texts))
    for folder, train in (("texts", replace(whole, texts=texts)), ("strangers", replace(whole, texts=("x",) * N))):
        write_samples(tmp_path / folder, train, query)
        estimate = estimate_of(train, query, 9)
        write_dump(tmp_path / folder, estimate, step=7, epoch=0, train=train, query=query)
    asked = {"step": 400, "other_step": 7, "matrix": "correlation"}
    of = told(files, "common", files_of(tmp_path / "texts"), **asked)
    assert of["train"] == list(range(0, N, 2))
    assert of["left_out"] == {"train": N // 2, "query": 0}
    why = refused(files, "compare", files_of(tmp_path / "strangers"), **asked)[1]
    assert f"no train examples: {N} have the same id in both, but other data" in why


@pytest.mark.parametrize(("labels", "same"), [("equal", True), ("other", False), ("none", False)])
def test_row_numbers_need_labels_that_all_agree(tmp_path, labels, same):
    folders = tmp_path / "here", tmp_path / "there"
    for folder, seed in zip(folders, (0, 0 if labels == "equal" else 5), strict=True):
        sides = []
        for count, own in ((20, seed), (9, seed + 1)):
            bare = samples_of("train", count, own)
            ids, given = tuple(map(str, range(count))), None if labels == "none" else np.maximum(bare.labels, 0)
            plain = {"texts": None, "thumbnails": None, "columns": None, "label_names": None}
            sides.append(replace(bare, ids=ids, labels=given, **plain))
        if folder.name == "there":  # else the two sets of examples are one and the same
            few = sides[0]
            given = None if few.labels is None else few.labels[:19]
            sides[0] = replace(few, ids=few.ids[:19], index=few.index[:19], labels=given)
        write_samples(folder, *sides)
        estimate = replace(estimate_of(*(samples_of("train", len(side)) for side in sides), 3), label_means=None)
        write_dump(folder, estimate, step=7, epoch=0, train=sides[0], query=sides[1])
    there = files_of(folders[1])
    answer = ask(files_of(folders[0]), "common", there, step=7, other_step=7, matrix="correlation")
    assert (answer.status == 200) == same, answer.body


def rows_of(answer):
    assert answer.kind.startswith("text/csv")
    assert answer.headers["Content-Disposition"].startswith("attachment")
    return list(csv.DictReader(io.StringIO(answer.body.decode())))


def test_exports(run):
    _, files, made = run
    rows = rows_of(ask(files, "export_top", step=200, matrix="influence", query=1, k=3))
    assert [row["effect"] for row in rows] == ["helps"] * 3 + ["hurts"] * 3
    assert {(row["query"], row["quantity"]) for row in rows} == {("1", "influence")}
    assert [float(row["value"]) for row in rows] == [float(made[200].influence[int(row["train"]), 1]) for row in rows]

    assert rows[0]["id"] == f"train-{rows[0]['train']}"
    rows = rows_of(ask(files, "export_window", step=200, matrix="influence", r0=2, r1=4, c1=3))
    assert len(rows) == 6
    assert float(rows[4]["influence"]) == made[200].influence[3, 1]
    rows = rows_of(ask(files, "export_classes", step=200, matrix="correlation"))
    assert len(rows) == made[200].label_means.correlation.size
    rows = rows_of(ask(files, "export_compare_ranks", files, step=200, other_step=100, matrix="influence"))
    assert [row["id"] for row in rows] == [f"query-{row}" for row in range(Q)]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", " =1", "\t=1", "\n=1"])
def test_a_text_is_no_formula_in_an_export(text):
    (row,) = csv.reader(io.StringIO(as_csv([text], [], "x").body.decode()))
    assert row == [f"'{text}"]
