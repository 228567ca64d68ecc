"""The matrix view in a real browser: runs, steps, orders, zoom, classes, curves."""

import numpy as np
import pytest

import bif_lightning as bl
import tab_runs
from tab_page import number

pytestmark = pytest.mark.browser
TIMES = "\N{MULTIPLICATION SIGN}"


@pytest.fixture(scope="module")
def run(logs):
    return bl.open_run(logs / "digits/bif")


@pytest.mark.slow
def test_the_newest_matrix_is_shown_with_its_sign_in_words(tab):
    assert tab.frame.locator(".matrix-panel h2").inner_text() == "Correlation at step 320"
    words = tab.frame.locator(".matrix-panel .meaning").inner_text()
    assert "Blue, above 0: more weight on this train example lowers this query's loss: it helps" in words
    assert tab.frame.locator(".matrix-panel .banner").count() == 0
    assert tab.named("slider").get_attribute("aria-valuetext") == "step 320, good"


@pytest.mark.slow
def test_runs_and_matrices_are_chosen_and_blue_helps_in_all_of_them(tab):
    tab.named("order-train").select_option("dataset")
    tab.named("order-query").select_option("dataset")
    tab.shows(matrix="correlation")
    tab.until(lambda: "train-5" in tab.point(*tab_runs.FLIPS))
    helps = tab.colour(*tab_runs.FLIPS)
    assert helps[2] > helps[0], "blue where the correlation is positive"
    tab.named("matrix").select_option("influence")
    tab.shows(matrix="influence")
    assert tab.frame.locator(".matrix-panel h2").inner_text() == "Effect at step 320"
    helps = tab.colour(*tab_runs.FLIPS)
    assert helps[2] > helps[0], "blue where the influence is negative"
    assert number(tab.point(*tab_runs.FLIPS).split("±")[0].splitlines()[-1]) > 0, "the effect is above 0"
    assert "≥ +" in tab.frame.locator(".matrix-panel .legend").inner_text(), "a few values lie beyond the colours"
    tab.named("run").select_option("words/bif")
    tab.shows(run="words/bif", step="5")


@pytest.mark.slow
def test_an_observable_has_columns_and_words_of_its_own(tab, run):
    tab.named("order-train").select_option("dataset")
    tab.named("matrix").select_option("accuracy:correlation")
    tab.shows(matrix="accuracy:correlation", window="0,120,0,2")
    values = run.accuracy_correlation[-1].values
    red, green, blue = tab.colour(*map(int, np.unravel_index(values.argmax(), values.shape)))
    assert min(red, blue) > green + 20, "purple, not blue: nobody knows which is better"

    assert "lowers accuracy" in tab.frame.locator(".matrix-panel .meaning").inner_text()
    assert "first half" in tab.point(3, 0)
    tab.until(lambda: "Lower it most" in tab.named("cards").inner_text())
    tab.click(3, 1)
    tab.until(lambda: any("second half" in name for name in tab.curves()))


@pytest.mark.slow
def test_the_slider_moves_through_training_and_plays(tab):
    tab.named("slider").fill("0")
    tab.shows(step="10")
    assert tab.frame.locator(".step-label").inner_text() == "step 10"
    tab.named("play").click()
    tab.shows(step="20")
    tab.named("play").click()
    tab.until(lambda: tab.named("play").get_attribute("aria-pressed") == "false")
    tab.page.wait_for_timeout(300)  # for a step that was under way
    shown = tab.frame.locator(".matrix-panel").get_attribute("data-step")
    tab.page.wait_for_timeout(900)
    assert tab.frame.locator(".matrix-panel").get_attribute("data-step") == shown != "320", "it stopped"
    tab.named("play").click()
    tab.shows(step="320")
    tab.until(lambda: tab.named("play").get_attribute("aria-pressed") == "false")
    tab.named("slider").fill("0")
    tab.shows(step="10")
    tab.named("slider").fill("5")
    tab.shows(step="320")
    assert "newest" in tab.frame.locator(".step-about").inner_text(), "who goes to the end follows what is to come"


@pytest.mark.slow
def test_the_snapshot_that_fails_says_so_on_the_heatmap(tab):
    tab.named("slider").fill("2")
    tab.shows(step=str(tab_runs.DIVERGED))
    banner = tab.frame.locator(".matrix-panel .banner").inner_text()
    assert banner.startswith("Read with care: diverged. 1 of 4 chains left the posterior")
    assert tab.named("slider").get_attribute("aria-valuetext") == "step 40, diverged"


@pytest.mark.slow
def test_hovering_gives_ids_labels_and_the_value_with_its_error(tab, run):
    tab.named("order-train").select_option("dataset")
    tab.named("order-query").select_option("dataset")
    for train, query in ((0, 0), (77, 21), (119, 39)):
        text = tab.until(lambda at=(train, query): f"train-{at[0]}\n" in (said := tab.point(*at)) and said)
        assert f"train-{train}\n" in text
        assert f"query-{1000 + query}\n" in text
        assert f"{tab_runs.ERROR:.3f}" in text
        value = text.split("±")[0].splitlines()[-1]
        assert number(value) == pytest.approx(float(run.correlation[-1, train, query]), abs=6e-4)
    assert tab.frame.locator(".hover img").count() == 2


@pytest.mark.slow
def test_what_the_pointer_is_on_is_told_anew_at_another_step(tab, run):
    tab.named("order-train").select_option("dataset")
    tab.named("order-query").select_option("dataset")
    tab.until(lambda: "train-5\n" in tab.point(*tab_runs.FLIPS))
    for step in (160, 80):  # at step 40 a banner comes, which moves another cell under the pointer
        tab.page.keyboard.press("ArrowLeft")
        tab.shows(step=str(step))
        value = float(run.correlation.sel(step=step)[tab_runs.FLIPS])
        tab.until(lambda value=value: hovered(tab) == pytest.approx(value, abs=6e-4), 5)
    tab.named("matrix").select_option("influence")
    tab.shows(matrix="influence")
    value = -float(run.influence.sel(step=80)[tab_runs.FLIPS])
    tab.until(lambda: hovered(tab) == pytest.approx(value, abs=6e-4), 5)
    tab.page.keyboard.press("3")
    assert not tab.named("hover").is_visible()


def hovered(tab) -> float:
    text = tab.named("hover").inner_text()
    return number(text.split("±")[0].splitlines()[-1]) if "±" in text else float("nan")


@pytest.mark.slow
def test_every_verdict_has_a_mark_with_a_shape(tab):
    marks = tab.frame.locator(".ticks .verdict-mark")
    assert marks.count() == len(tab_runs.STEPS)
    shapes = marks.evaluate_all("all => all.map(one => getComputedStyle(one).clipPath)")
    bad = tab_runs.STEPS.index(tab_runs.DIVERGED)
    assert [shape != "none" for shape in shapes] == [place == bad for place in range(len(shapes))]
    sizes = marks.evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
    assert min(sizes) >= 3
    assert tab.frame.locator(".step-about").inner_text() == "epoch 5 · all checks passed · newest"


@pytest.mark.slow
def test_means_of_several_pairs_cannot_be_told_from_zero(opened, tensorboard):
    tab = opened(tensorboard, viewport={"width": 420, "height": 300})
    tab.shows(step="320")
    tab.frame.evaluate("document.querySelector('.heatmap').style.height = '90px'")
    tab.named("slider").fill("1")
    tab.shows(step="20")
    tab.until(lambda: tab.named("clear").get_attribute("aria-disabled") == "true")
    assert "zoom in until single pairs" in (tab.named("clear").get_attribute("title") or "")


@pytest.mark.slow
def test_each_query_can_have_a_scale_of_its_own(tab, run):
    tab.named("order-train").select_option("dataset")
    tab.named("order-query").select_option("dataset")
    tab.named("matrix").select_option("influence")
    tab.shows(matrix="influence")
    tab.named("scaling").click()
    tab.until(lambda: "the query's own size" in tab.frame.locator(".matrix-panel .legend").inner_text())
    value = tab.until(lambda: "±" in (said := tab.point(9, 30)) and said).split("±")[0].splitlines()[-1]
    assert number(value) == pytest.approx(-float(run.influence[-1, 9, 30]), abs=6e-4), "what is told is the value"


def order(tab, side: str, by: str) -> list[str]:
    """Ids at the first positions, in the order that the page shows, once it is painted and no longer changes."""
    tab.named(f"order-{side}").select_option(by)
    axis = "rows" if side == "train" else "columns"
    tab.shows(**{axis: by.partition(":")[0]})  # the first clustering of a reader waits for SciPy
    found: list[list[str]] = [[], []]

    def settled() -> bool:
        tab.page.wait_for_timeout(250)
        found[:] = [found[1], first_ids(tab, side)]
        return found[0] == found[1]

    tab.until(settled)
    return found[1]


def first_ids(tab, side: str) -> list[str]:
    texts = []
    for place in range(3):
        tab.page.mouse.move(5, 5)
        texts.append(tab.point(place, 0) if side == "train" else tab.point(0, place))
    return [next(line for line in text.splitlines() if line.startswith(f"{side}-")) for text in texts]


def test_rows_and_columns_are_ordered(tab, run):
    tab.named("order-query").select_option("dataset")
    assert order(tab, "train", "dataset") == ["train-0", "train-1", "train-2"]
    assert order(tab, "train", "user:hardness") == ["train-119", "train-118", "train-117"]
    strongest = np.argsort(-np.square(run.correlation[-1].values).sum(1))[:3]
    assert order(tab, "train", "strength") == [f"train-{row}" for row in strongest]
    best = np.argsort(-run.correlation[-1, :, 0].values)[:3]
    assert order(tab, "train", "column") == [f"train-{row}" for row in best]
    labels = run.train_label.values
    names = order(tab, "train", "label")
    assert {labels[int(name.removeprefix("train-"))] for name in names} == {0}
    clustered = order(tab, "train", "cluster")
    tab.named("slider").fill("1")
    tab.shows(step="20")
    assert order(tab, "train", "cluster") == clustered, "clustering is the same at every step"


@pytest.mark.slow
def test_zoom_by_drag_wheel_and_buttons_and_back(tab):
    tab.named("order-train").select_option("dataset")
    tab.named("order-query").select_option("dataset")
    tab.shows(window="0,120,0,40")
    tab.page.wait_for_timeout(400)
    tab.drag((10.5, 4.5), (29.5, 11.5))
    tab.shows(window="10,30,4,12")
    assert "train-12" in tab.point(12, 5)
    tab.named("zoom-in").click()
    tab.shows(window="14,26,6,11")
    tab.named("zoom-back").click()
    tab.shows(window="10,30,4,12")
    asked: list[str] = []
    tab.page.on("request", lambda request: "/view?" in request.url and asked.append(request.url))
    tab.page.mouse.move(*tab.place(20, 8))
    for _ in range(5):
        tab.page.mouse.wheel(0, 80)
    tab.until(lambda: tab.frame.locator(".matrix-panel").get_attribute("data-window") != "10,30,4,12")
    assert 1 <= len(asked) <= 2, "the wheel is asked for once, when it rests"
    tab.named("zoom-all").click()
    tab.shows(window="0,120,0,40")
    tab.named("slider").fill("3")
    tab.shows(step="80", window="0,120,0,40")


@pytest.mark.slow
def test_entries_within_their_error_are_greyed_where_asked(tab):
    tab.named("order-train").select_option("dataset")
    tab.named("order-query").select_option("dataset")
    tab.until(lambda: "train-6\n" in tab.point(*tab_runs.NOISE))
    tab.named("clear").click()
    tab.until(lambda: tab.colour(*tab_runs.NOISE) == (222, 222, 222))
    assert tab.colour(*tab_runs.FLIPS) != (222, 222, 222)


@pytest.mark.slow
def test_classes_by_classes_and_their_curves(tab, run):
    tab.named("grouped").click()
    tab.shows(window="0,10,0,10")
    means = bl.by_label(run)
    text = tab.until(lambda: "train class" in (said := tab.point(2, 2)) and said)
    assert number(text.split("±")[0].splitlines()[-1]) == pytest.approx(float(means["mean"][-1, 2, 2]), abs=6e-4)
    tab.click(2, 2)
    tab.until(lambda: "class two → class two" in tab.curves())
    assert not tab.frame.locator("section[aria-label='Helps and hurts']").is_visible(), "cards are of single examples"


@pytest.mark.slow
def test_a_pair_has_a_curve_with_marks_where_it_changes_for_certain(tab):
    tab.named("order-train").select_option("dataset")
    tab.named("order-query").select_option("dataset")
    tab.until(lambda: "train-5\n" in tab.point(*tab_runs.FLIPS))
    tab.click(*tab_runs.FLIPS)
    tab.until(lambda: "train-5 → query-1003" in tab.curves())
    tab.until(lambda: len(tab.frame.locator("[data-name=changes] .change").all()) == 2)
    marks = tab.frame.locator("[data-name=changes] .change").all_inner_texts()
    assert set(marks) == {"○", "▲"}, "a flip and a peak"
    tab.named("pin").click()
    tab.click(*tab_runs.NOISE)
    tab.until(lambda: tab.curves() == ["train-5 → query-1003", "train-6 → query-1004"])
    assert len(tab.frame.locator("[data-name=changes] .change").all()) == 2, "nothing within the band is marked"
    assert "95 %" in tab.frame.locator("section[aria-label=Trajectory] .meaning").inner_text()
    tab.frame.locator("[data-name=changes] button").last.click()
    tab.shows(step="80")
    tab.named("unpin").click()
    tab.until(lambda: tab.curves() == ["train-6 → query-1004"])


@pytest.mark.slow
def test_a_block_has_the_curve_of_its_mean(tab):
    tab.named("order-train").select_option("dataset")
    tab.named("order-query").select_option("dataset")
    tab.shows(window="0,120,0,40")
    tab.page.wait_for_timeout(400)
    tab.drag((10.5, 4.5), (19.5, 7.5), shift=True)
    tab.until(lambda: tab.curves() == [f"mean of 10 train {TIMES} 4 queries"])
    assert "upper bound" in tab.frame.locator("section[aria-label=Trajectory] .meaning").inner_text()
    assert tab.frame.locator(".matrix-panel").get_attribute("data-window") == "0,120,0,40", "no zoom"
