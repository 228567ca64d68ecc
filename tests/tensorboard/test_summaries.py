"""Summaries: real event files, read back; what every view holds, and that no input breaks one."""

import io
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch.utils.tensorboard import SummaryWriter

from bif_lightning import SGLD, Pairs, Subspace
from bif_lightning.tensorboard.numbers import describe
from bif_lightning.tensorboard.pictures import History, pictures
from bif_lightning.tensorboard.summaries import (
    MAX_TAGS,
    VIEWS,
    check_summaries,
    choose_queries,
    layout,
    scalars,
    write_summaries,
)
from bif_lightning.tensorboard.texts import escape, read_me, top_table, verdict_text
from estimates import bare, digits_estimate, estimate_from, influence_of, texts
from judged import judged

EVERYTHING = {"images": 0, "scalars": 0, "histograms": 0, "tensors": 0}


@pytest.fixture(scope="module")
def digits():
    return digits_estimate(60, 20)


def written(folder: Path, *calls: dict) -> EventAccumulator:
    with SummaryWriter(str(folder)) as writer:
        for call in calls:
            write_summaries(writer, **call)
    return EventAccumulator(str(folder), size_guidance=EVERYTHING).Reload()


def all_tags(events: EventAccumulator) -> set[str]:
    kinds = events.Tags()
    return {tag for kind in EVERYTHING for tag in kinds[kind]}


def text_of(events: EventAccumulator, tag: str) -> str:
    return events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()


def test_every_view_lands_at_the_global_step_with_its_values(digits, tmp_path):
    estimate, train, query = digits
    given = {"estimate": estimate, "train": train, "query": query, "queries": 2, "k": 2}
    pairs = [(train.ids[3], query.ids[1])]
    events = written(
        tmp_path,
        {**given, "step": 200, "pairs": pairs},
        {**given, "step": 1_000_000_007, "pairs": pairs, "introduce": False},
    )
    tags = events.Tags()
    stem = f"bif/pair/{train.ids[3]} on {query.ids[1]}"
    cards = {f"bif/top_cards/{query.ids[column]}" for column in choose_queries(query, 2)}
    assert set(tags["images"]) == cards | {"bif/heatmap", "bif/labels", "bif/chains"}
    assert tags["histograms"] == ["bif/correlations"]
    expected = set(scalars(estimate, train, query)) | {stem, f"{stem}/low", f"{stem}/high"}
    assert set(tags["scalars"]) == expected
    for tag in all_tags(events) - {"bif/read_me", "custom_scalars__config__"}:
        kind = next(kind for kind in EVERYTHING if tag in tags[kind])
        entries = getattr(events, kind.capitalize())(tag)
        assert [entry.step for entry in entries] == [200, 1_000_000_007], tag
    for tag, value in scalars(estimate, train, query).items():
        assert events.Scalars(tag)[0].value == pytest.approx(value, rel=1e-6)
        assert events.SummaryMetadata(tag).summary_description == describe(tag, estimate)
    value, low, high = (events.Scalars(tag)[0].value for tag in (stem, f"{stem}/low", f"{stem}/high"))
    assert value == pytest.approx(float(estimate.correlation[3, 1]))
    assert (value - low, high - value) == (pytest.approx(0.0784, rel=1e-3), pytest.approx(0.0784, rel=1e-3))
    picture = events.Images("bif/heatmap")[0]
    assert Image.open(io.BytesIO(picture.encoded_image_string)).size == (picture.width, picture.height)


def test_the_introduction_comes_once_and_names_the_option_for_images(digits, tmp_path):
    estimate, train, query = digits
    given = {"estimate": estimate, "train": train, "query": query, "views": ("bands",)}
    events = written(tmp_path, {**given, "step": 1}, {**given, "step": 2, "introduce": False})
    assert len(events.Tensors("bif/read_me")) == 1
    assert "--samples_per_plugin images=1000" in text_of(events, "bif/read_me")
    assert len(events.Tensors("custom_scalars__config__")) == 1
    config = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    band = config.category[0].chart[0].margin.series[0]
    for tag in (band.value, band.lower, band.upper, *config.category[0].chart[1].multiline.tag):
        assert len(events.Scalars(tag)) == 2


def test_the_layout_names_only_tags_that_are_written(digits, tmp_path):
    estimate, train, query = digits
    pairs = ((train.ids[0], query.ids[0]), (train.ids[1], query.ids[0]))
    events = written(
        tmp_path, {"estimate": estimate, "train": train, "query": query, "step": 1, "pairs": pairs, "views": ("bands",)}
    )
    named = {tag for charts in layout(pairs, by_label=True).values() for _, tags in charts.values() for tag in tags}
    assert named <= set(events.Tags()["scalars"])
    assert "bif/llc" not in events.Tags()["scalars"]


@pytest.mark.parametrize("view", [view for view in VIEWS if view != "trajectories"])
def test_each_view_can_be_asked_for_alone(digits, tmp_path, view):
    estimate, train, query = digits
    events = written(
        tmp_path,
        {
            "estimate": estimate,
            "train": train,
            "query": query,
            "step": 1,
            "views": (view,),
            "introduce": False,
            "queries": 1,
            "k": 1,
        },
    )
    starts = {
        "scalars": "bif/", "bands": ("bif/correlation_", "bif/same_", "bif/other_"), "heatmap": "bif/heatmap",
        "labels": "bif/labels", "chains": "bif/chains", "tables": ("bif/top_table/", "bif/verdict"),
        "histograms": "bif/correlations", "cards": "bif/top_cards/",
    }  # fmt: skip
    tags = all_tags(events) - {"custom_scalars__config__"}
    assert tags
    assert all(tag.startswith(starts[view]) for tag in tags)


def test_pairs_over_training_need_their_history(digits, tmp_path):
    estimate, train, query = digits
    given = {"estimate": estimate, "train": train, "query": query, "step": 1, "views": ("trajectories",)}
    assert not all_tags(written(tmp_path / "none", {**given, "introduce": False}))
    history = History("Two pairs", ("a", "b"), (1, 2), np.array([[0.1, 0.2], [0.3, np.nan]]), np.full((2, 2), 0.05))
    drawn = list(pictures(estimate, train, query, views=VIEWS, columns=(), history=history))
    assert [each.tag for each in drawn] == ["bif/heatmap", "bif/labels", "bif/chains", "bif/trajectories"]
    events = written(tmp_path / "drawn", {**given, "drawn": drawn[-1:]})
    assert events.Tags()["images"] == ["bif/trajectories"]
    assert events.SummaryMetadata("bif/trajectories").summary_description.startswith("Two pairs. correlation = ")


def test_numbers_over_pairs_leave_out_an_example_with_itself():
    train = replace(bare(3, "t"), labels=np.array([0, 0, 1]))
    correlation = np.array([[1.0, 0.2, -0.1], [0.2, 1.0, -0.3], [-0.1, -0.3, 1.0]])
    numbers = scalars(estimate_from(correlation, train, train), train, train)
    assert numbers["bif/same_label_mean"] == pytest.approx(0.2)
    assert numbers["bif/other_label_mean"] == pytest.approx(-0.2)
    assert numbers["bif/mean_abs_correlation"] == pytest.approx(0.2)
    assert numbers["bif/correlation_median"] == pytest.approx(-0.1)
    others = replace(train, ids=("a", "b", "c"))
    assert scalars(estimate_from(correlation, train, others), train, others)["bif/same_label_mean"] > 0.6


def test_numbers_ignore_undefined_correlations_and_missing_labels():
    train, query = replace(bare(2, "t"), labels=np.array([0, -1])), replace(bare(2, "q"), labels=np.array([0, -1]))
    estimate = estimate_from(np.array([[0.3, np.nan], [0.1, 0.9]]), train, query)
    numbers = scalars(estimate, train, query)
    assert numbers["bif/same_label_mean"] == pytest.approx(0.3)
    assert "bif/other_label_mean" not in numbers
    assert numbers["bif/mean_abs_correlation"] == pytest.approx(1.3 / 3)
    assert numbers["bif/resolved_fraction"] == 1.0
    assert all(math.isfinite(number) for number in numbers.values())


def test_resolved_fraction_counts_pairs_outside_their_95_percent_interval():
    train, query = bare(4, "t"), bare(1, "q")
    estimate = estimate_from(np.array([[0.078], [-0.079], [0.5], [0.0]]), train, query)
    assert scalars(estimate, train, query)["bif/resolved_fraction"] == 0.5


def test_observables_get_one_number_each_with_their_unit(digits):
    estimate, train, query = digits
    accuracy = influence_of(estimate.correlation[:, :2], 0.1, ("a", "b"), name="accuracy", unit="1")
    estimate = replace(estimate, observables={"accuracy": accuracy})
    assert scalars(estimate, train, query)["bif/observable/accuracy"] == pytest.approx(accuracy.mean.mean())
    assert describe("bif/observable/accuracy", estimate) == "accuracy, in 1: mean over the draws and over its columns."


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1)])
@pytest.mark.parametrize("value", [0.1, 0.0, np.nan])
def test_smallest_and_undefined_inputs_are_written(tmp_path, size, value):
    train, query = bare(size[0], "t"), bare(size[1], "q")
    estimate = estimate_from(np.full(size, value), train, query, chains=1, draws=2)
    pairs = [(train.ids[0], query.ids[0])]
    events = written(
        tmp_path, {"estimate": estimate, "train": train, "query": query, "step": 0, "pairs": pairs, "queries": 1}
    )
    assert "bif/heatmap" in events.Tags()["images"]
    assert "bif/labels" not in events.Tags()["images"]
    assert ("bif/correlations" in events.Tags()["histograms"]) == np.isfinite(value)


def test_a_histogram_counts_every_pair_once_in_fixed_bins(digits, tmp_path):
    estimate, train, query = digits
    odd = estimate.correlation.copy()
    odd[0, :3] = (1.0, -1.0, np.nan)
    losses = replace(estimate.losses, correlation=odd)
    events = written(
        tmp_path,
        {
            "estimate": replace(estimate, losses=losses),
            "train": train,
            "query": query,
            "step": 3,
            "views": ("histograms",),
        },
    )
    counted = events.Histograms("bif/correlations")[0].histogram_value
    assert counted.num == sum(counted.bucket) == odd.size - 1
    assert (counted.min, counted.max) == (-1.0, 1.0)
    limits = np.array(counted.bucket_limit)
    direct = [np.sum((odd >= low - 1e-9) & (odd < high - 1e-9)) for low, high in pairwise(limits)]
    np.testing.assert_array_equal(counted.bucket[1:-1], direct[:-1])


def test_a_table_lists_the_strongest_with_errors_and_says_which_are_unsure():
    train, query = texts(5, "doc"), texts(1, "prompt")
    estimate = estimate_from(np.array([[0.5], [-0.3], [0.05], [np.nan], [-0.02]]), train, query)
    table = top_table(estimate, 0, train, query, 5)
    rows = [line for line in table.splitlines() if line.startswith("| doc")]
    assert [row.split(" | ")[0].split("&#47;")[1] for row in rows] == ["0", "2", "1", "4"]
    assert "| +0.250 ± 0.020 | +0.500 ± 0.040 |" in rows[0], "minus the influence, and the correlation"
    assert "+0.050 ± 0.040, unsure" in rows[1]
    assert "Ranked by the effect at this step. effect = Cov(train loss, query loss)" in " ".join(table.split())


def test_tables_and_cards_rank_as_top_ranks_a_snapshot():
    """By the influence, which weighs loud train examples more than the correlation does."""
    train, query = texts(3, "doc"), texts(1, "prompt")
    estimate = estimate_from(np.array([[0.5], [0.3], [-0.1]]), train, query)
    loud = replace(estimate.losses, influence=np.array([[-0.1], [-0.9], [0.2]], np.float32))
    rows = [
        line for line in top_table(replace(estimate, losses=loud), 0, train, query, 2).splitlines() if "doc" in line
    ]
    assert [row.split(" | ")[0][-1] for row in rows] == ["1", "0", "2"]


@pytest.mark.parametrize(
    ("sampler", "says", "not_said"),
    [
        (SGLD(step_size=1e-3, inverse_temperature=1.0, localization=1.0), "`rhat`, `ess`, `drift`", "independent"),
        (Subspace(), "in closed form", "rhat"),
        (Pairs(), "independently and in pairs", "level off"),
    ],
)
def test_the_introduction_is_of_the_sampler_that_ran(sampler, says, not_said):
    text = " ".join(read_me(sampler).split())
    assert says in text
    assert not_said not in text
    assert "{" not in text


def test_every_snapshot_says_whether_it_can_be_trusted(digits, tmp_path):
    estimate, train, query = digits
    noisy = judged(replace(estimate, diagnostics=replace(estimate.diagnostics, noise_ratio=4.0)))
    given = {"train": train, "query": query, "views": ("tables", "scalars"), "introduce": False}
    events = written(tmp_path, {**given, "estimate": estimate, "step": 1}, {**given, "estimate": noisy, "step": 2})
    assert text_of(events, "bif/verdict") == verdict_text(noisy)
    assert "This snapshot is **good**" in verdict_text(estimate)
    assert "This snapshot is **noisy**: minibatches move the chains 4 times" in verdict_text(noisy)
    assert "To do: lower step&#95;size" in verdict_text(noisy)
    assert verdict_text(noisy) in top_table(noisy, 7, train, query, 1)
    assert "the rest finds 75% too" in top_table(noisy, 4, train, query, 1)
    assert "the rest finds" not in top_table(noisy, 5, train, query, 1)
    assert [each.value for each in events.Scalars("bif/noise_ratio")] == pytest.approx([0.2, 4.0])
    assert events.Scalars("bif/top_stability")[0].value == 0.75


def test_markup_in_ids_labels_and_texts_stays_literal():
    nasty = "a|b\n# **x** <img src=x onerror=alert(1)> [l](javascript:1) `c` \\ &amp; _u_"
    train = replace(bare(1, "t"), ids=(nasty,), labels=np.array([0]), label_names=(nasty,), texts=(nasty,))
    table = top_table(estimate_from(np.array([[0.5]]), train, train), 0, train, train, 1)
    body = "\n".join(line for line in table.splitlines() if "onerror" in line)
    assert len(body.splitlines()) == 2
    (row,) = (line for line in body.splitlines() if line.startswith("| "))
    assert row.count("|") == 6
    assert not set(row) & set("<>*`[]\\_")
    assert escape("x" * 500).endswith("…")
    assert len(escape("x" * 500)) == 90


def test_queries_are_taken_in_turn_from_each_label_and_stay_the_same():
    query = replace(bare(7, "q"), labels=np.array([2, 2, 2, 0, 0, -1, 1]))
    assert choose_queries(query, 5) == (5, 3, 6, 0, 4)
    assert choose_queries(query, 100) == (5, 3, 6, 0, 4, 1, 2)
    assert choose_queries(bare(3, "q"), 8) == (0, 1, 2)
    assert choose_queries(query, 0) == ()


def test_the_fullest_default_stays_within_the_budget_and_more_is_refused_before_writing(tmp_path):
    estimate, train, query = digits_estimate(60, 20)
    pairs = [(one, query.ids[0]) for one in train.ids[:50]]
    given = {"estimate": estimate, "train": train, "query": query, "step": 1, "pairs": pairs, "k": 1}
    events = written(tmp_path / "full", given)
    assert 150 < len(all_tags(events)) <= MAX_TAGS
    with pytest.raises(ValueError, match=r"make 21\d tags, more than 200.*fewer pairs"):
        written(tmp_path / "over", {**given, "queries": 20})
    assert all_tags(EventAccumulator(str(tmp_path / "over")).Reload()) == set()


def test_wrong_settings_are_refused_with_what_to_do(digits, tmp_path):
    estimate, train, query = digits
    with pytest.raises(ValueError, match=r"unknown view 'heat'.*scalars, bands, heatmap"):
        check_summaries(views=("scalars", "heat"))
    with pytest.raises(ValueError, match="51 named pairs"):
        check_summaries(pairs=[("a", "b")] * 51)
    with pytest.raises(ValueError, match="k is 0"):
        check_summaries(k=0)
    given = {"estimate": estimate, "train": train, "query": query, "step": 1}
    with pytest.raises(KeyError, match=r"no train example has the id 'train-01'.*'train-1'"):
        written(tmp_path, {**given, "pairs": [("train-01", query.ids[0])]})
    with pytest.raises(KeyError, match=r"no query example has the id 'train-1'"):
        written(tmp_path, {**given, "pairs": [("train-1", "train-1")]})
    with pytest.raises(ValueError, match="20 train and 60 query"):
        written(tmp_path, {**given, "train": query, "query": train})


def test_long_and_unprintable_ids_give_distinct_bounded_tags(tmp_path):
    long = "x" * 5000
    train, query = bare(2, "t"), replace(bare(3, "q"), ids=(f"{long}a", f"{long}b", "line\nbreak"))
    estimate = estimate_from(np.full((2, 3), 0.2), train, query)
    events = written(tmp_path, {"estimate": estimate, "train": train, "query": query, "step": 1, "views": ("tables",)})
    tags = {tag for tag in all_tags(events) if "top_table" in tag}
    assert len(tags) == 3
    assert max(map(len, tags)) < 130
    assert "bif/top_table/line%0Abreak" in tags
