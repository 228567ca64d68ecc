"""Every question of the Influence tab, answered from a small run: the numbers are those of the estimates."""

from pathlib import Path

import numpy as np
import pytest

from bif_lightning.archive.write.matrices import mean_pooled
from plugin_runs import PNG, STEPS, ask, files_of, refused, samples_of, told, write_run

pytestmark = pytest.mark.exact

N, Q = 40, 12
GOLDEN = sorted((Path(__file__).parents[2] / "archive" / "golden").iterdir())


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


def order(files, side, **parameters):
    answer = ask(files, "order", side=side, **{"matrix": "correlation", **parameters})
    assert answer.status == 200, answer.body
    return np.frombuffer(answer.body, "<i4")


def test_a_description_says_what_the_run_has(run):
    of = told(run[1], "description", step=400)
    assert (of["num_train"], of["num_query"], of["kind"]) == (N, Q, "SGLD")
    assert of["matrices"] == ["correlation", "influence", "conditioned"]
    assert (of["observables"], of["own_columns"]) == (["margin"], ["margin"])
    assert of["parameters_text"] == "12 weights in 2 tensors: layer.weight, layer.bias"
    assert of["sort_columns"] == {"train": ["hardness", "source"], "query": ["hardness", "source"]}
    assert {name for name, has in of["has"].items() if not has} == {"tokens", "traces"}


def test_lines_of_dumps(run):
    lines = told(run[1], "dump_lines")["lines"]
    assert [(line["step"], line["epoch"]) for line in lines] == list(zip(STEPS, range(4), strict=True))
    assert {line["verdict"] for line in lines} == {"diverged"}
    assert all(line["verdict_text"].startswith("diverged: 1 of 3 chains") for line in lines)


def test_samples_texts_and_pictures(run):
    of, expected = told(run[1], "samples", side="train"), samples_of("train", N)
    assert of["id"] == list(expected.ids)
    assert of["label"] == expected.labels.tolist()
    assert of["text_head"][3] == expected.texts[3][:80]
    assert of["columns"]["hardness"][:3] == [None, 0.25, 0.5]
    assert told(run[1], "text", side="train", row=3)["text"] == expected.texts[3]
    picture = ask(run[1], "thumbnail", side="query", row=2)
    assert (picture.body, picture.kind) == (PNG, "image/png")
    assert refused(run[1], "thumbnail", side="query", row=1)[0] == 404
    assert refused(run[1], "thumbnail", side="query", row=Q)[0] == 404
    assert refused(run[1], "text", side="train", row=N)[0] == 400


def test_a_window_that_is_not_pooled_has_values_and_errors(run):
    _, files, made = run
    answer = ask(files, "view", step=200, matrix="influence", r0=5, r1=9, c0=2, c1=12)
    values, errors = window(answer)
    np.testing.assert_array_equal(values, -made[200].influence[5:9, 2:12])
    np.testing.assert_array_equal(errors, made[200].losses.influence_standard_error[5:9, 2:12])
    assert answer.headers["X-Pooled"] == "0"


def test_a_window_in_order_is_pooled_without_nan(run):
    _, files, made = run
    ordering = {"train_by": "cluster", "query_by": "label", "at": 100}
    answer = ask(files, "view", step=300, matrix="correlation", height=7, width=5, **ordering)
    (values,) = window(answer)
    rows, columns = order(files, "train", by="cluster", at=100), order(files, "query", by="label", at=100)
    ordered = made[300].correlation[rows][:, columns]
    edges = [np.linspace(0, size, parts + 1).astype(int) for size, parts in ((N, 7), (Q, 5))]
    for i in range(7):
        for j in range(5):
            block = ordered[edges[0][i] : edges[0][i + 1], edges[1][j] : edges[1][j + 1]]
            np.testing.assert_allclose(values[i, j], np.nanmean(block), rtol=1e-5)
    assert np.isnan(ordered).sum() == 1
    shown = float(answer.headers["X-Scale"])
    np.testing.assert_allclose(shown, np.nanquantile(np.abs(made[300].correlation), 0.99), rtol=1e-5)


def test_pooling_agrees_with_that_of_the_overview(run):
    _, files, made = run
    (values,) = window(ask(files, "view", step=100, matrix="correlation", height=Q, width=Q))
    expected, _, _ = mean_pooled(made[100].correlation, Q)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-7)


def test_orders_are_permutations_that_mean_what_they_say(run):
    _, files, made = run
    train = samples_of("train", N)
    for by in ("dataset", "label", "cluster", "strength"):
        for side, size in (("train", N), ("query", Q)):
            assert sorted(order(files, side, by=by)) == list(range(size))
    labels = train.labels[order(files, "train", by="label")]
    assert labels.tolist() == sorted(labels[labels >= 0].tolist()) + [-1] * (labels < 0).sum()
    power = np.square(np.nan_to_num(made[400].correlation)).sum(axis=1)
    assert (np.diff(power[order(files, "train", by="strength")]) <= 0).all()
    helpful = made[100].influence[order(files, "train", by="column", column=3, at=100, matrix="influence"), 3]
    assert (np.diff(helpful) >= 0).all()
    helpful = made[100].correlation[2, order(files, "query", by="column", column=2, at=100)]
    assert (np.diff(helpful) <= 0).all()
    hardness = train.columns["hardness"][order(files, "train", by="user", column="hardness")]
    assert hardness.tolist()[:26] == sorted(hardness.tolist()[:26])
    assert np.isnan(hardness[26:]).all()
    source = train.columns["source"][order(files, "train", by="user", column="source")].tolist()
    assert source == sorted(source)


def test_each_column_can_have_a_scale_of_its_own(run):
    _, files, made = run
    stored = made[100].influence
    asked = {"step": 100, "matrix": "influence", "scaling": "column"}
    values, errors = window(ask(files, "view", **asked))
    sizes = np.sqrt(np.nanmean(np.square(stored), axis=0))
    np.testing.assert_allclose(values, -stored / sizes, rtol=1e-5)
    np.testing.assert_allclose(errors, made[100].losses.influence_standard_error / sizes, rtol=1e-5)
    plain = ask(files, "view", step=100, matrix="influence").headers
    assert float(plain["X-Largest"]) == pytest.approx(float(np.nanmax(np.abs(stored))))
    assert float(ask(files, "view", **asked).headers["X-Largest"]) == pytest.approx(
        float(np.abs(values).max()), rel=1e-5
    )
    assert refused(files, "view", **asked | {"scaling": "row"})[0] == 400


def test_an_order_does_not_change_with_the_step_that_is_shown(run):

    _, files, made = run
    rows = order(files, "train", by="cluster", at=400)
    for step in STEPS:
        values, _ = window(ask(files, "view", step=step, matrix="correlation", train_by="cluster", at=400))
        np.testing.assert_array_equal(values, made[step].correlation[rows])


def test_observables_have_columns_of_their_own(run):
    _, files, made = run
    values, _ = window(ask(files, "view", step=100, matrix="margin:influence"))
    np.testing.assert_array_equal(values, -made[100].observables["margin"].influence)
    assert "not query examples" in refused(files, "order", side="query", matrix="margin:influence", by="label")[1]
    lists = told(files, "top", step=100, matrix="margin:influence", query=1, k=3)
    assert (lists["kind"], len(lists["lowers"]), len(lists["raises"])) == ("observable", 3, 3)
    assert lists["stability"] is None
    of = told(files, "samples", side="query", matrix="margin:influence", step=100)
    assert (of["id"], of["own_columns"], of["label"]) == (["one", "two"], True, None)
    assert told(files, "samples", side="query", matrix="influence", step=100)["id"][0] == "query-0"


def test_a_cell_tells_all_quantities(run):
    _, files, made = run
    of = told(files, "cell", step=300, matrix="influence", train=7, query=4)
    assert of["values"]["conditioned"]["value"] == pytest.approx(-float(made[300].conditioned[7, 4]))
    assert of["values"]["correlation"]["value"] == pytest.approx(float(made[300].correlation[7, 4]))
    error = made[300].losses.correlation_standard_error[7, 4]
    assert of["values"]["correlation"]["standard_error"] == pytest.approx(float(error))
    assert (of["train_loss"], of["query_std"]) == (made[300].train_loss[7], made[300].losses.std[4])
    undefined = told(files, "cell", step=300, matrix="correlation", train=N - 1, query=Q - 1)
    assert undefined["values"]["correlation"]["value"] is None


def test_classes(run):
    _, files, made = run
    of, means = told(files, "classes", step=100, matrix="correlation"), made[100].label_means
    np.testing.assert_array_equal(of["value"], means.correlation)
    np.testing.assert_array_equal(of["standard_error"], means.correlation_standard_error)
    np.testing.assert_array_equal(told(files, "classes", step=100, matrix="influence")["value"], -means.influence)
    train, query = samples_of("train", N).labels, samples_of("query", Q, seed=1).labels
    assert of["count"][1][2] == (train == of["train_label"][1]).sum() * (query == of["query_label"][2]).sum()
    assert of["train_name"][-3:] == ["cat", "dog", "ünit"]
    status, why = refused(files, "classes", step=100, matrix="conditioned")
    assert status == 404
    assert "only the influence and the correlation" in why


@pytest.mark.parametrize(
    ("name", "parameters", "status"),
    [
        ("view", {"step": 999, "matrix": "correlation"}, 404),
        ("view", {"step": 100, "matrix": "nothing"}, 400),
        ("view", {"step": 100, "matrix": "../x:correlation"}, 400),
        ("view", {"step": 100, "matrix": "other:correlation"}, 404),
        ("view", {"step": 100}, 400),
        ("view", {"step": "1e2", "matrix": "correlation"}, 400),
        ("view", {"step": 100, "matrix": "correlation", "height": 10**6}, 400),
        ("view", {"step": 100, "matrix": "correlation", "r0": 5, "r1": 5}, 400),
        ("view", {"step": 100, "matrix": "correlation", "train_by": "column", "train_column": Q}, 400),
        ("view", {"step": 100, "matrix": "correlation", "train_by": "user", "train_column": "no"}, 400),
        ("cell", {"step": 100, "matrix": "correlation", "train": N, "query": 0}, 400),
        ("cell", {"step": 100, "matrix": "correlation", "train": "٣", "query": 0}, 400),
        ("trajectory_points", {"matrix": "correlation", "train": N, "query": 0}, 400),
        ("trajectory_points", {"matrix": "correlation", "train": ",".join("1" * 5000), "query": 0}, 400),
        ("top", {"step": 100, "matrix": "correlation"}, 400),
        ("tokens", {"step": 100, "matrix": "correlation", "train": 0, "query": 0}, 404),
    ],
)  # fmt: skip
def test_wrong_questions_are_refused_in_words(run, name, parameters, status):
    found, sentence = refused(run[1], name, **parameters)
    assert found == status, sentence
    assert sentence[-1] == "."


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_dumps_of_every_version_are_answered_for(folder):
    files, one = files_of(folder), {"step": 300, "matrix": "correlation"}
    line, *_ = told(files, "dump_lines")["lines"]
    assert line["step"] == 300
    assert (line["verdict"] is None) == (folder.name == "1.0")
    assert told(files, "description", step=300)["num_train"] == 7
    for name, parameters in {
        "samples": {"side": "train"}, "text": {"side": "query", "row": 1}, "view": {"train_by": "cluster"},
        "cell": {"train": 1, "query": 1}, "top": {"query": 1}, "trajectory_points": {"train": 1, "query": 1},
        "classes": {}, "chains": {}, "trust_points": {}, "export_window": {}, "ranking": {}, "ranking_at": {}
    }.items():  # fmt: skip
        answer = ask(files, name, **one | parameters)
        assert answer.status == 200, (name, answer.body)
