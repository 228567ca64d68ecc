"""The cards of a query over the whole training: as `top` ranks, from the file, from dumps, or from both."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from bif_lightning import integrated, open_run, top, write_integrated
from bif_lightning.tensorboard.plugin import over_training
from plugin_runs import ask, files_of, refused, told, write_run

pytestmark = pytest.mark.exact

STEPS = 100, 200, 300, 400, 500
N, Q = 40, 12
ASKED = {"matrix": "correlation", "step": 300, "k": N, "over": "training"}


def no_file(folder: Path) -> None:
    """All dumps are summed."""


def of_all(folder: Path) -> None:
    write_integrated(folder)


def of_the_first(folder: Path) -> None:
    """The file holds the first three dumps."""
    kept = {step: (folder / f"step={step:09d}.h5").read_bytes() for step in STEPS[3:]}
    for step in kept:
        (folder / f"step={step:09d}.h5").unlink()
    write_integrated(folder)
    for step, dump in kept.items():
        (folder / f"step={step:09d}.h5").write_bytes(dump)


@pytest.fixture(params=[no_file, of_all, of_the_first], ids=lambda make: make.__name__)
def run(request, tmp_path):
    made = write_run(tmp_path / "bif", N, Q, steps=STEPS)
    request.param(tmp_path / "bif")
    return tmp_path / "bif", files_of(tmp_path), made


@pytest.fixture
def written(tmp_path):
    made = write_run(tmp_path / "bif", N, Q, steps=STEPS)
    write_integrated(tmp_path / "bif")
    return tmp_path / "bif", files_of(tmp_path), made


def test_cards_are_those_of_top_with_the_step_beside(run):
    folder, files, made = run
    table, whole = top(open_run(folder), 5, k=N), integrated(open_run(folder)).isel(query=5)
    of = told(files, "top", query=5, **ASKED)
    assert (of["over"], of["steps"]) == ("training", list(STEPS))
    beside = made[300].correlation[:, 5]
    for effect, sign in (("helps", 1), ("hurts", -1)):
        expected = table[table.effect == effect]
        assert [card["row"] for card in of[effect]] == expected.train.tolist()
        np.testing.assert_array_equal([card["value"] for card in of[effect]], -expected.value)
        np.testing.assert_array_equal([card["standard_error"] for card in of[effect]], expected.standard_error)
        for card in of[effect]:
            value = beside[card["row"]]
            assert card["snapshot"]["value"] == pytest.approx(float(value))
            same = value * sign > 0
            assert card["snapshot"]["rank"] == (1 + (sign * beside > sign * value).sum() if same else None)
    assert of["stability"] == pytest.approx(float(whole.top_overlap))
    assert f"correlate by {float(whole.rank_agreement):.2f}" in of["stability_text"]
    assert "the sum over 5 snapshots, steps 100 to 500" in of["over_text"]
    assert "± bounds its Monte Carlo standard error" in of["over_text"]
    assert of["over_text"].startswith("Ranked by the effect over the whole training")


def test_an_export_has_both(run):
    folder, files, made = run
    answer = ask(files, "export_top", query=1, **ASKED | {"k": 3})
    rows = list(csv.DictReader(io.StringIO(answer.body.decode())))
    table = top(open_run(folder), 1, k=3)
    assert [float(row["value"]) for row in rows] == table.value.tolist()
    assert {row["quantity"] for row in rows} == {"integrated"}
    assert float(rows[0]["correlation"]) == pytest.approx(float(made[300].correlation[table.train[0], 1]))
    assert "influence_top_training" in answer.headers["Content-Disposition"]


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"query": 1, "matrix": "margin:influence"}, "is of a query's loss"),
        ({"train": 1}, "is of a query's loss"),
    ],
)
def test_what_has_no_sum_is_ranked_at_the_step(written, asked, why):
    of = told(written[1], "top", **ASKED | asked)
    assert of["over"] == "step"
    assert why in of["over_text"]
    assert "at step 300 alone. ± is its Monte Carlo standard error." in of["over_text"]
    # As `top` ranks one snapshot: by the influence, whatever matrix is shown.
    by = {"matrix": "margin:influence" if "matrix" in asked else "influence"}
    plain = told(written[1], "top", **{name: value for name, value in (ASKED | asked | by).items() if name != "over"})
    assert {**of, "over_text": None} == {**plain, "over_text": None}


def test_fewer_than_five_snapshots_are_ranked_at_the_step(tmp_path):
    write_run(tmp_path / "bif", N, Q, steps=STEPS[:4])
    of = told(files_of(tmp_path), "top", query=1, **ASKED)
    assert of["over"] == "step"
    assert of["over_text"].startswith("The run has 4 snapshots; a ranking over the training is of 5 or more. Ranked by")


def test_too_much_to_sum_says_how_to_make_the_file(run, monkeypatch):
    folder, files, _ = run
    monkeypatch.setattr(over_training, "MOST_CELLS", 1)
    of = told(files, "top", query=1, **ASKED)
    if of["over"] == "step":
        assert "call bif_lightning.write_integrated with the folder of the run" in of["over_text"]
    write_integrated(folder)
    assert told(files, "top", query=1, **ASKED)["over"] == "training"


def test_a_dump_that_was_replaced_is_seen(written):
    folder, _, _ = written
    (folder / "step=000000100.h5").unlink()
    write_run(folder, N, Q, steps=(900, 100))
    (folder / "step=000000900.h5").unlink()
    files = files_of(folder.parent)
    table = top(open_run(folder), 5, k=N)
    of = told(files, "top", query=5, **ASKED)
    assert [-card["value"] for card in of["helps"]] == table[table.effect == "helps"].value.tolist()


def test_a_file_that_is_ahead_of_the_list_of_runs_is_used(written, monkeypatch):
    folder, files, _ = written
    write_run(folder, N, Q, steps=(600,))
    write_integrated(folder)
    monkeypatch.setattr(over_training, "MOST_CELLS", 1)
    of = told(files, "top", query=5, **ASKED)
    assert of["steps"] == [*STEPS, 600]


def test_a_link_to_a_file_is_not_followed(written, tmp_path, monkeypatch):
    folder, files, _ = written
    (folder / "integrated.h5").rename(tmp_path / "elsewhere.h5")
    (folder / "integrated.h5").symlink_to(tmp_path / "elsewhere.h5")
    expected = told(files, "top", query=5, **ASKED)
    assert expected["over"] == "training"
    monkeypatch.setattr(over_training, "MOST_CELLS", 1)
    assert told(files, "top", query=5, **ASKED)["over"] == "step"


def test_a_broken_dump_is_left_out(tmp_path):
    write_run(tmp_path / "bif", N, Q, steps=(*STEPS, 600))
    (tmp_path / "bif" / "step=000000200.h5").write_bytes(b"not HDF5")
    of = told(files_of(tmp_path), "top", query=5, **ASKED)
    assert of["steps"] == [100, 300, 400, 500, 600]


def test_another_word_is_refused(written):
    assert refused(written[1], "top", query=5, **ASKED | {"over": "x"}) == (
        400, "over is 'x'; it must be one of step, training.",
    )  # fmt: skip
    assert refused(written[1], "top", query=Q, **ASKED)[0] == 400
