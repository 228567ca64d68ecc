"""The ranking of train examples as the tab gets it: that of `bif_lightning.ranking`, in pages, and computed once."""

import json

import numpy as np
import pytest

from bif_lightning import open_run, ranking, write_integrated
from bif_lightning.tensorboard.plugin import over_training, rankings
from bif_lightning.tensorboard.plugin import ranking as answers
from bif_lightning.tensorboard.plugin.dispatch import read
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.protocol import Question
from bif_lightning.tensorboard.plugin.rankings import Rankings
from bif_lightning.tensorboard.plugin.scan import Scan
from plugin_runs import ask, files_of, write_run

pytestmark = pytest.mark.exact

STEPS = 100, 200, 300, 400, 500
N, Q = 40, 12
SOME = [0, 3, 11]
MASK = "901"  # bits 0, 3 and 11


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path / "bif", N, Q, steps=STEPS)
    return tmp_path / "bif", files_of(tmp_path)


def columns(answer):
    assert answer.status == 200, answer.body
    return dict(
        zip(answers.COLUMNS, np.frombuffer(answer.body, np.float32).reshape(len(answers.COLUMNS), -1), strict=True)
    )


def expected(folder, **arguments):
    table = ranking(open_run(folder), **arguments).set_index("train").sort_index()
    return {name: table[name].to_numpy() for name in answers.COLUMNS}, table


@pytest.mark.parametrize("by", ["influence", "correlation", "conditioned"])
@pytest.mark.parametrize(("mask", "queries"), [(None, None), (MASK, SOME)])
def test_a_step_is_that_of_python(run, by, mask, queries):
    folder, files = run
    asked = {"step": 300, "matrix": by} | ({} if mask is None else {"queries": mask})
    answer = ask(files, "ranking", **asked)
    of, _ = expected(folder, queries=queries, step=300, by=by)
    for name, values in columns(answer).items():
        np.testing.assert_allclose(values, of[name], rtol=1e-5, atol=1e-6, err_msg=name)
    about = json.loads(answer.headers["X-About"])
    assert about["steps"] == [300]
    assert (about["queries"], about["of_queries"]) == (Q if mask is None else 3, Q)


@pytest.mark.parametrize("file", [False, True])
@pytest.mark.parametrize(("mask", "queries"), [(None, None), (MASK, SOME)])
def test_the_whole_training_is_that_of_python(run, file, mask, queries, monkeypatch):
    folder, files = run
    if file:
        write_integrated(folder)
    monkeypatch.setattr(answers, "_BAND_CELLS", 2 * N)  # two queries at a time
    asked = {"step": 200, "matrix": "correlation", "over": "training"} | ({} if mask is None else {"queries": mask})
    answer = ask(files, "ranking", **asked)
    of, table = expected(folder, queries=queries)
    of["loss"] = open_run(folder).train_loss.sel(step=200).values
    for name, values in columns(answer).items():
        np.testing.assert_allclose(values, of[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert json.loads(answer.headers["X-About"])["steps"] == list(STEPS)
    for at, step in enumerate(STEPS):
        there = np.frombuffer(ask(files, "ranking_at", **(asked | {"step": step})).body, np.float32)
        np.testing.assert_allclose(there, [row[at] for row in table.over_steps], rtol=1e-4, atol=1e-6)


def test_sums_that_take_too_long_leave_the_step_alone_and_say_why(run, monkeypatch):
    folder, files = run
    monkeypatch.setattr(over_training, "MOST_CELLS", len(STEPS) * N * Q - 1)
    monkeypatch.setattr(answers, "_BAND_CELLS", N)  # one query at a time, which would be few cells each
    answer = ask(files, "ranking", step=200, matrix="influence", over="training")
    of, _ = expected(folder, step=200)
    np.testing.assert_allclose(columns(answer)["effect"], of["effect"], rtol=1e-5, atol=1e-6)
    about = json.loads(answer.headers["X-About"])
    assert about["over"] == "step"
    assert "call bif_lightning.write_integrated" in about["why"]
    write_integrated(folder)
    whole = json.loads(ask(files, "ranking", step=200, matrix="influence", over="training").headers["X-About"])
    assert whole["over"] == "training"


def test_an_observable(run):
    folder, files = run
    of, _ = expected(folder, queries="two", step=100, observable="margin", by="correlation")
    found = columns(ask(files, "ranking", step=100, matrix="margin:correlation", queries="4"))
    np.testing.assert_allclose(found["effect"], of["effect"], rtol=1e-5)


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"queries": "000"}, 400, "No example is chosen by queries"),
        ({"queries": "ffff"}, 400, "a mask of 3 hexadecimal digits"),
        ({"queries": "zz0"}, 400, "a mask of 3 hexadecimal digits"),
        ({"queries": " f0"}, 400, "a mask of 3 hexadecimal digits"),
        ({"over": "training", "matrix": "margin:influence"}, 404, "of the losses of queries"),
        ({"over": "nothing"}, 400, "over is 'nothing'"),
        ({"step": 5}, 404, "no dump of step 5"),
    ],
)
def test_what_is_refused(run, asked, status, words):
    _, files = run
    answer = ask(files, "ranking", **({"step": 100, "matrix": "influence"} | asked))
    assert answer.status == status
    assert words in json.loads(answer.body)["error"]


def test_a_matrix_of_chosen_rows_and_columns(run):
    folder, files = run
    values = open_run(folder).correlation.sel(step=100).values
    size = {"step": 100, "matrix": "correlation", "height": 64, "width": 64}
    answer = ask(files, "view", train_only="c" + "0" * 9, query_only=MASK, **size)
    assert answer.headers["X-Shape"] == "2,3"
    shown = np.frombuffer(answer.body, np.float32)[:6].reshape(2, 3)
    np.testing.assert_array_equal(shown, values[:2, SOME])
    by_label = ask(files, "view", train_only="c" + "0" * 9, train_by="label", **size)
    labels = open_run(folder).train_label.values[:2]
    order = np.lexsort((labels, labels < 0))
    np.testing.assert_array_equal(np.frombuffer(by_label.body, np.float32)[: 2 * Q].reshape(2, Q), values[:2][order])
    text = ask(files, "export_window", train_only="c" + "0" * 9, query_only=MASK, **size).body.decode()
    assert len(text.splitlines()) == 1 + 2 * 3


def test_words_are_found_in_whole_texts(run):
    _, files = run
    found = np.frombuffer(ask(files, "found", side="train", word="OF TRAIN 1").body, np.int32)
    assert found.tolist() == [1, *range(10, 20)]
    assert np.frombuffer(ask(files, "found", side="train", word="no such").body, np.int32).tolist() == []


class Counting:
    """A reader in this process, which counts the questions."""

    def __init__(self):
        self.asked = []

    def ask(self, question: Question):
        self.asked.append((question.name, question.parameters.values.get("step")))
        return read(question.name, question.here, question.there, question.parameters)


@pytest.fixture
def kept(run, tmp_path):
    readers = Counting()
    (found,) = Scan(tmp_path).runs().values()
    return Rankings(readers), readers, found


def asked(**more):
    return Parameters({"matrix": "influence", "step": "300", **{name: str(value) for name, value in more.items()}})


def test_pages_are_parts_of_one_computation(kept):
    of, readers, run = kept
    whole = columns(of.rows(run, asked()))
    assert of.rows(run, asked()).headers["X-Rows"] == str(N)
    parts = [columns(of.rows(run, asked(r0=first, r1=min(first + 16, N)))) for first in range(0, N, 16)]
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)
    assert readers.asked == [("ranking", "300")]


def test_other_queries_and_a_new_dump_are_computed_anew(kept, tmp_path):
    of, readers, run = kept
    for parameters in (asked(), asked(queries=MASK), asked(), asked(over="training"), asked(over="training")):
        of.rows(run, parameters)
    assert len(readers.asked) == 3
    write_run(tmp_path / "bif", N, Q, steps=(600,))
    (later,) = Scan(tmp_path).runs().values()
    of.rows(later, asked(over="training"))
    of.rows(later, asked())
    assert len(readers.asked) == 4, "a sum over the training has changed, a step of it has not"


def test_effects_over_steps_are_of_the_rows_that_were_asked_for(kept, run):
    of, readers, found = kept
    folder, _ = run
    answer = json.loads(of.over_steps(found, STEPS, asked(rows="7,2")).body)
    table = ranking(open_run(folder), step=100).set_index("train")
    np.testing.assert_allclose(answer["values"], [table.over_steps[7], table.over_steps[2]], rtol=1e-5)
    assert (answer["steps"], answer["missing"]) == (list(STEPS), 0)
    of.over_steps(found, STEPS, asked(rows="3"))
    assert len(readers.asked) == len(STEPS)


def test_what_takes_long_comes_later_and_the_newest_first(kept, monkeypatch):
    of, readers, run = kept
    monkeypatch.setattr(rankings, "_SECONDS", -1.0)
    answer = json.loads(of.over_steps(run, STEPS, asked(rows="0")).body)
    assert answer["missing"] == len(STEPS)
    monkeypatch.setattr(rankings, "_SECONDS", 60.0)
    assert json.loads(of.over_steps(run, STEPS, asked(rows="0")).body)["missing"] == 0
    assert [step for _, step in readers.asked] == [str(step) for step in reversed(STEPS)]
