"""Every logger gets the same numbers, and pictures and tables by the methods that it has."""

import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import bif_lightning as bl
from media_loggers import Keeping, LikeComet, LikeMlflow, LikeWandb
from tiny_run import bif, fit

pytestmark = pytest.mark.trainer

CARDS = [f"bif/top_cards/{query}" for query in ("0", "1", "2")]
PICTURES = {"bif/heatmap", "bif/labels", "bif/chains", *CARDS}
TABLES = ["bif/verdict", "bif/top", "bif/ranking"]


def as_written(tag: str, kind: type[Keeping], step: int) -> str:
    ending = {LikeMlflow: f"/step={step:09d}.json", LikeComet: f"/step={step:09d}.csv"}
    return tag + ending.get(kind, "")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LikeWandb, LikeMlflow, LikeComet])
def test_pictures_and_tables_arrive(tmp_path: Path, kind: type[Keeping]) -> None:
    logger = kind()
    fit(tmp_path, [bif(tmp_path)], logger=logger)
    for step in (3, 6):
        found = {tag: picture for tag, picture, at in logger.pictures if at == step}
        assert set(found) == PICTURES | ({"bif/trajectories"} if step == 6 else set()), "of one step there is no curve"
        assert all(isinstance(each, Image.Image) and min(each.size) > 200 for each in found.values())
    names = [as_written(tag, kind, step) for step in (3, 6) for tag in TABLES]
    assert [tag for tag, _, _ in logger.tables] == names
    assert [set(table["step"]) for _, table, _ in logger.tables] == [{3}] * 3 + [{6}] * 3
    if kind is LikeWandb:
        assert [step for _, _, step in logger.tables] == [3] * 3 + [6] * 3


def test_all_loggers_get_the_same_numbers(tmp_path: Path) -> None:
    board, numbers, wandb = TensorBoardLogger(tmp_path, "", "tb"), CSVLogger(tmp_path, "csv"), LikeWandb()
    fit(tmp_path, [bif(tmp_path, pairs=[("3", "1")])], logger=[board, numbers, wandb])
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    written = {
        (tag, event.step): event.value
        for tag in events.Tags()["scalars"] if tag.startswith("bif/")
        for event in events.Scalars(tag)
    }  # fmt: skip
    kept = {(tag, step): value for tag, value, step in wandb.numbers if tag.startswith("bif/")}
    assert kept == pytest.approx(written, rel=1e-6)
    assert ("bif/pair/3 on 1/low", 6) in kept
    head = (Path(numbers.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {tag for tag, _ in kept} <= set(head)
    assert set(events.Tags()["images"]) == PICTURES | {"bif/trajectories"}


@pytest.mark.slow
def test_pictures_are_drawn_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bif_lightning.trainer import outputs

    drawn: list[int] = []
    draw = outputs.pictures
    monkeypatch.setattr(outputs, "pictures", lambda *args, **kwargs: drawn.append(1) or draw(*args, **kwargs))
    both = [TensorBoardLogger(tmp_path, "", "tb"), LikeWandb(), CSVLogger(tmp_path, "csv")]
    for loggers, times in ((both, 2), ([CSVLogger(tmp_path, "alone")], 0)):
        drawn.clear()
        fit(tmp_path, [bif(tmp_path, dirpath=tmp_path / str(times))], logger=loggers)
        assert len(drawn) == times, "two snapshots"


@pytest.mark.parametrize(
    ("views", "numbers", "pictures", "tables"),
    [
        (["scalars"], True, set(), []),
        (["heatmap"], False, {"bif/heatmap"}, []),
        (["bands", "tables"], True, set(), TABLES),
    ],
)
def test_views_say_what_arrives(
    tmp_path: Path, views: list[str], numbers: bool, pictures: set[str], tables: list[str]
) -> None:
    logger = LikeWandb()
    fit(tmp_path, [bif(tmp_path, views=views, at_end=False, every_n_epochs=2)], logger=logger)
    assert bool([tag for tag, _, _ in logger.numbers if tag.startswith("bif/")]) == numbers
    assert {tag for tag, _, _ in logger.pictures} == pictures
    assert [tag for tag, _, _ in logger.tables] == tables


@pytest.mark.slow
def test_a_logger_that_fails_is_named_and_costs_no_snapshot(tmp_path: Path, dumps: Any) -> None:
    class Full(LikeWandb):
        def log_image(self, *args: Any, **kwargs: Any) -> None:
            raise ConnectionError("no route to host")

    full, other = Full(), LikeWandb()
    with pytest.warns(UserWarning, match=r"Full did not take all pictures.*no route to host.*logs numbers alone"):
        fit(tmp_path, [bif(tmp_path)], logger=[full, other])
    assert dumps() == [3, 6]
    assert {step for _, _, step in full.numbers} >= {3, 6}
    assert {tag for tag, _, _ in other.pictures} == PICTURES | {"bif/trajectories"}


def test_the_remedy_of_the_warning_works(tmp_path: Path) -> None:
    class Full(LikeWandb):
        def log_image(self, *args: Any, **kwargs: Any) -> None:
            raise ConnectionError("no route to host")

    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*did not take all pictures")
        fit(tmp_path, [bif(tmp_path, views=["scalars", "bands"])], logger=Full())


@pytest.mark.parametrize("method", ["log_image", "log_table", "log_metrics"])
def test_the_stand_in_of_wandb_has_its_signatures(method: str) -> None:
    own, real = (inspect.signature(getattr(each, method)).parameters for each in (LikeWandb, WandbLogger))
    assert list(own) == list(real)
    assert [each.kind for each in own.values()] == [each.kind for each in real.values()]


@pytest.mark.slow
def test_curves_are_those_of_the_dumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bif_lightning.trainer import outputs

    seen: list[Any] = []
    made = outputs.history_of

    def history_of(*args: Any, **kwargs: Any) -> Any:
        seen.append(made(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(outputs, "history_of", history_of)
    pairs = [("3", "1"), ("0", "4"), ("3", "4")]
    fit(tmp_path, [bif(tmp_path, pairs=pairs, at_steps=[1, 4])], logger=LikeWandb())
    run = bl.open_run(tmp_path / "bif")
    assert seen[0] is None
    assert [each.steps for each in seen[1:]] == [(1, 4), (1, 4, 6)]
    last = seen[-1]
    assert last.names == ("3 on 1", "0 on 4", "3 on 4")
    for which, (one, other) in enumerate(pairs):
        pair = {"train": int(one), "query": int(other)}
        np.testing.assert_array_equal(last.values[which], run.correlation.isel(pair).astype(float))
        np.testing.assert_array_equal(last.errors[which], run.correlation_standard_error.isel(pair).astype(float))


@pytest.mark.slow
def test_without_pairs_a_query_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bif_lightning.trainer import outputs

    seen: list[Any] = []
    made = outputs.history_of
    monkeypatch.setattr(outputs, "history_of", lambda *a, **k: seen.append(made(*a, **k)) or seen[-1])
    fit(tmp_path, [bif(tmp_path, query=None, train=[2, 5, 7, 8], at_steps=[1, 6])], logger=LikeWandb())
    assert "hurts 7 most" in seen[-1].title, "the first query of the first label"
    assert set(seen[-1].names) <= {"2", "5", "8"}, "not the example itself"
    assert seen[-1].values.shape == (len(seen[-1].names), 2)
