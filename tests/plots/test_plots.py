"""Figures: what stands in them, that they hold for every kind of input, and that nothing global is touched."""

import io
import random
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import pairwise

import matplotlib
import matplotlib.style
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from bif_lightning import Subspace, plots
from bif_lightning.plots.lines import spread
from bif_lightning.plots.pooling import axis_of, pool
from bif_lightning.plots.style import quantity_of, scale_of
from estimates import bare, digits_estimate, estimate_from, means_of, texts, with_divergence


def words(figure: Figure) -> str:
    found = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    return "\n".join(text for text in found if text)


def image(figure: Figure) -> AxesImage:
    return figure.axes[0].images[0]


@pytest.fixture(scope="module")
def digits():
    return digits_estimate(60, 20)


def all_figures(estimate, train, query):
    yield plots.heatmap(estimate.correlation, train, query)
    yield plots.heatmap(estimate.influence, train, query, quantity="influence")
    yield plots.chain_losses(estimate)
    yield plots.extremes(estimate, 0, train, query)
    yield plots.extremes(estimate, 0, train, query, quantity="influence", k=2)
    if estimate.label_means is not None:
        yield plots.label_means(estimate.label_means, train.label_names)
        yield plots.influence_evolution([0, 10], [estimate.label_means] * 2, train.label_names)
    values = np.stack([estimate.correlation[:3, 0]] * 3, 1)
    names = [f"pair {place}" for place in range(len(values))]
    yield plots.trajectories([0, 10, 1000], values, np.full(values.shape, 0.1), names)


def test_every_figure_has_a_title_and_says_what_its_sign_means(digits):
    estimate, train, query = digits
    for figure in all_figures(estimate, train, query):
        if len(figure.axes) == 1 and "chain" in words(figure):
            continue
        text = " ".join(words(figure).split())
        assert "lowers the query's loss (helps)" in text
        assert "raises it (hurts)" in text
        assert "Corr(" in text or "Cov(" in text


@pytest.mark.parametrize(("quantity", "helpful"), [("correlation", 0.4), ("influence", -0.4), ("conditioned", -0.4)])
def test_blue_helps_and_orange_hurts_for_every_quantity(quantity, helpful):
    train, query = bare(2, "t"), bare(1, "q")
    figure = plots.heatmap(np.array([[helpful], [-helpful]]), train, query, quantity=quantity)
    drawn = image(figure)
    (blue, orange) = (drawn.cmap(drawn.norm(drawn.get_array()))[row, 0] for row in (0, 1))
    assert blue[2] > blue[0] + 0.3
    assert orange[0] > orange[2] + 0.3
    white = drawn.cmap(drawn.norm(0.0))
    assert min(white[:3]) > 0.98
    assert drawn.norm.vmin == -drawn.norm.vmax


def test_the_conditioned_influence_is_ranked_and_named_as_such(digits):
    """It says the opposite of the influence here, so that the order of the cards tells which one was ranked."""
    estimate, train, query = digits
    losses = replace(
        estimate.losses,
        conditioned=-estimate.influence,
        conditioned_standard_error=np.full_like(estimate.influence, 1e-6),
    )
    conditioned = replace(estimate, losses=losses)
    text = words(plots.extremes(conditioned, 0, train, query, quantity="conditioned", k=1))
    best, worst = estimate.influence[:, 0].argmax(), estimate.influence[:, 0].argmin()
    assert text.index(train.ids[best]) < text.index(train.ids[worst])
    assert "conditioned effect, nat² ± standard error" in text
    assert "query loss | train losses), \N{MINUS SIGN}conditioned influence. Blue, > 0" in " ".join(text.split())
    drawn = words(plots.heatmap(losses.conditioned, train, query, quantity="conditioned"))
    assert "Conditioned effect of every train example on every query" in drawn
    with pytest.raises(ValueError, match=r"no conditioned influence.*show influence"):
        plots.extremes(estimate, 0, train, query, quantity="conditioned")
    with pytest.raises(ValueError, match="no means over labels"):
        plots.label_means(estimate.label_means, quantity="conditioned")
    with pytest.raises(ValueError, match="no means over labels"):
        plots.influence_evolution([0], [estimate.label_means], quantity="conditioned")


def test_the_heatmap_s_title_says_whether_it_can_be_trusted(digits):
    estimate, train, query = digits
    title = "every train example with every query"
    assert f"{title} (noisy)" in words(plots.heatmap(estimate.correlation, train, query, verdict="noisy"))
    assert f"{title} (" not in words(plots.heatmap(estimate.correlation, train, query))


def test_heatmap_is_ordered_by_label_and_loses_no_example(digits):
    estimate, train, query = digits
    drawn = np.asarray(image(plots.heatmap(estimate.correlation, train, query)).get_array())
    rows, columns = np.argsort(train.labels, kind="stable"), np.argsort(query.labels, kind="stable")
    np.testing.assert_allclose(drawn, estimate.correlation[rows][:, columns], rtol=1e-6)


def test_pooling_takes_means_within_labels_only():
    labels = np.array([1, 0, 1, 1, 0, -1, 1])
    matrix = np.arange(14.0).reshape(7, 2)
    matrix[3, 1] = np.nan
    rows, columns = axis_of(labels, 7, 4), axis_of(None, 2, 4)
    assert rows.labels == (0, 1, -1)
    np.testing.assert_array_equal(rows.order, [1, 4, 0, 2, 3, 6, 5])
    np.testing.assert_array_equal(rows.edges, [0, 2, 4, 6, 7])
    expected = [[5, 6], [2, 3], [9, 13], [10, 11]]
    np.testing.assert_array_equal(pool(matrix, rows, columns), expected)


@pytest.mark.parametrize("counts", [[1], [3, 500, 2], [100] * 10, [1] * 400, [7, 1, 7]])
def test_pooling_keeps_the_mean_and_the_number_of_pixels(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    axis = axis_of(labels, labels.size, 64)
    assert axis.edges.size - 1 <= max(64, len(counts))
    assert np.all(np.diff(axis.edges) > 0)
    assert np.isin(np.concatenate([[0], np.cumsum(counts)]), axis.edges).all()
    values = np.random.default_rng(0).normal(size=(labels.size, 1))
    pooled = pool(values, axis, axis_of(None, 1, 1))
    np.testing.assert_allclose(np.average(pooled[:, 0], weights=np.diff(axis.edges)), values.mean())


def test_a_cell_within_two_standard_errors_is_grey_and_its_value_is_still_written(digits):
    estimate, train, _ = digits
    means = replace(
        estimate.label_means,
        correlation=np.where(np.eye(10, dtype=bool), 0.29, 0.021),
        correlation_standard_error=np.full((10, 10), 0.011),
    )
    figure = plots.label_means(means, train.label_names)
    shown = np.ma.getmaskarray(np.ma.masked_invalid(image(figure).get_array()))
    np.testing.assert_array_equal(shown, ~np.eye(10, dtype=bool))
    text = words(figure)
    assert text.count("+0.02\n± 0.011") + text.count("+0.02") >= 90
    assert "seven" in text
    sharper = replace(means, correlation_standard_error=np.full((10, 10), 0.01))
    assert np.isfinite(np.asarray(image(plots.label_means(sharper)).get_array(), float)).all()


def test_influence_scales_of_any_size_stay_readable(digits):
    estimate, train, query = digits
    for size in (1e-7, 1e5):
        means = means_of(-size * estimate.correlation, train, query, error=0.01 * size)
        figure = plots.label_means(means, quantity="influence")
        assert "1e" in words(figure)
        cells = [text.get_text() for text in figure.axes[0].texts]
        assert max(map(len, cells)) <= 9
        assert any(text.startswith("±") and float(text[1:]) > 0 for text in cells)


def test_no_mean_by_label_is_rounded_to_nothing(digits):
    """One number of decimals for all cells, such that each established value and its error have a digit."""
    estimate, train, query = digits
    means = means_of(estimate.correlation, train, query)
    small = np.full((10, 10), 0.0031)
    small[0, 0] = 0.2
    means = replace(means, correlation=small, correlation_standard_error=np.full((10, 10), 0.0004))
    cells = [text.get_text() for text in plots.label_means(means).axes[0].texts]
    assert set(cells) == {"+0.2000", "+0.0031", "± 0.0004"}
    means = replace(means, correlation=np.full((10, 10), -1e-5), correlation_standard_error=np.full((10, 10), 0.02))
    cells = [text.get_text() for text in plots.label_means(means, scale=0.1).axes[0].texts]
    assert set(cells) == {"0.000", "± 0.020"}, "no sign of what is rounded to zero"


def test_independent_draws_are_not_shown_as_chains(digits):
    estimate = replace(digits[0], sampler=Subspace())
    text = words(plots.chain_losses(estimate))
    for part in ("R-hat", "ESS", "chain ", "levels off", "along the chains"):
        assert part not in text
    assert "Draws are independent" in text
    assert "LLC 12.3" in text


def test_chains_show_the_snapshot_and_name_the_diverged(digits):

    estimate = with_divergence(digits[0])
    figure = plots.chain_losses(estimate)
    text = words(figure)
    for part in ("R-hat 1.012", "ESS 231", "LLC 12.3", "chain 2 diverged at step 72", "chain 3", "at the snapshot"):
        assert part in text
    lines = figure.axes[0].lines
    assert len(lines) == 4
    assert list(lines[-1].get_ydata()) == [0.31, 0.31]
    assert lines[-1].get_linestyle() != "-"


def test_chains_without_diagnostics_say_nothing_about_them(digits):
    nothing = replace(digits[0].diagnostics, rhat=np.nan, score_agreement=np.nan, llc_standard_error=np.nan)
    text = words(plots.chain_losses(replace(digits[0], diagnostics=nothing)))
    assert "R-hat" not in text
    assert "agreement" not in text
    assert "LLC 12.3" in text


def test_extremes_show_the_strongest_of_each_side_with_their_errors():
    train, query = texts(6, "doc"), texts(1, "prompt")
    estimate = estimate_from(np.array([[0.5], [-0.3], [0.05], [np.nan], [0.2], [-0.02]]), train, query)
    text = words(plots.extremes(estimate, 0, train, query, k=2))
    assert text.index("doc/0") < text.index("doc/4") < text.index("doc/1") < text.index("doc/5")
    assert "effect, nat² ± standard error" in text
    assert "+0.250 ± 0.020" in text, "minus the influence, of which half the correlation is made here"
    assert "+0.500 ± 0.040" in words(plots.extremes(estimate, 0, train, query, k=2, quantity="correlation"))
    assert "doc/2" not in text
    assert "doc/3" not in text


@pytest.mark.parametrize(("factor", "unit"), [(1e-2, "10⁻³ nat²"), (1e6, "10³ nat²")])
def test_values_of_any_size_are_shown_whole(factor: float, unit: str):
    train, query = texts(3, "doc"), texts(1, "prompt")
    estimate = estimate_from(np.array([[0.5], [-0.3], [0.05]]), train, query)
    of = estimate.losses
    scaled = replace(of, influence=of.influence * factor, influence_standard_error=of.influence_standard_error * factor)
    text = words(plots.extremes(replace(estimate, losses=scaled), 0, train, query, k=2))
    assert f"effect, {unit} ± standard error" in text
    assert len(re.findall(r"[\d.]+ ± [\d.]+", text)) >= 3
    assert "…" not in "".join(line for line in text.splitlines() if "±" in line)


def test_extremes_never_list_a_helpful_example_as_harmful():
    train, query = bare(3, "t"), bare(1, "q")
    estimate = estimate_from(np.array([[0.5], [0.3], [0.05]]), train, query)
    text = words(plots.extremes(estimate, 0, train, query))
    assert "no train example hurts this query" in text
    assert text.count("t2") == 1


def test_extremes_draw_thumbnails_with_their_proportions():
    buffer = io.BytesIO()
    Image.new("RGBA", (40, 20), (255, 0, 0, 255)).save(buffer, "PNG")
    train = replace(bare(2, "t"), thumbnails=(buffer.getvalue(), b""))
    estimate = estimate_from(np.array([[0.5], [-0.5]]), train, bare(1, "q"))
    figure = plots.extremes(estimate, 0, train, bare(1, "q"))
    (drawn,) = figure.axes[0].images
    left, right, bottom, top = drawn.get_extent()
    assert (right - left) / (top - bottom) == pytest.approx(2)
    assert words(figure).count("no picture") == 2


def test_trajectories_name_their_lines_without_overlap():
    values = np.full((6, 4), 0.1)
    names = [f"line {place}" for place in range(6)]
    figure = plots.trajectories([1, 10, 100, 1000], values, np.full((6, 4), 0.01), names)
    plots.to_png(figure)
    renderer = figure.canvas.get_renderer()
    labels = [text for text in figure.axes[0].texts if text.get_text() in names]
    assert len(labels) == 6
    boxes = sorted((matplotlib.text.Text.get_window_extent(text, renderer) for text in labels), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))
    assert all(box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)
    assert figure.axes[0].get_xscale() == "log"
    assert plots.trajectories([1, 2, 3, 4], values, values, names).axes[0].get_xscale() == "linear"
    assert plots.trajectories([0, 2, 30, 400], values, values, names).axes[0].get_xscale() == "symlog"


def test_names_near_the_top_are_moved_down_into_the_frame():
    assert spread([3.9, 3.9, 3.9], 0.5, 0.0, 4.0) == [3.0, 3.5, 4.0]
    assert spread([-1.0, 2.0], 0.5, 0.0, 4.0) == [0.0, 2.0]


def test_evolution_shares_one_scale_and_heads_each_panel(digits):
    estimate, train, _ = digits
    weak = replace(estimate.label_means, correlation=estimate.label_means.correlation / 10)
    figure = plots.influence_evolution(
        [0, 2000], [weak, estimate.label_means], train.label_names, metrics=["val accuracy 0.10", "val accuracy 0.93"]
    )
    first, second = (axes.images[0].norm for axes in figure.axes[:2])
    assert first.vmax == second.vmax
    assert "step 2,000\nval accuracy 0.93" in words(figure)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (4, 1)])
def test_smallest_inputs_without_labels_texts_or_thumbnails(size):
    train, query = bare(size[0], "t"), bare(size[1], "q")
    estimate = estimate_from(np.full(size, 0.1), train, query, chains=1, draws=2)
    for figure in all_figures(estimate, train, query):
        png, width, height = plots.to_png(figure)
        assert Image.open(io.BytesIO(png)).size == (width, height)


def test_undefined_correlations_are_grey_and_break_nothing(digits):
    _, train, query = digits
    estimate = estimate_from(np.full((60, 20), np.nan), train, replace(query, labels=None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in all_figures(estimate, train, query):
            plots.to_png(figure)
    figure = plots.heatmap(estimate.correlation, train, query)
    assert "Grey: undefined" in words(figure)


def test_hostile_text_is_drawn_as_it_is_without_warnings(digits):
    train = replace(texts(3, "$\\frac{$"), label_names=("$a_b$", "\n河\t\\x"))
    estimate = estimate_from(np.array([[0.4], [0.1], [-0.3]]), train, train_of_one(train))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in all_figures(estimate, train, train_of_one(train)):
            plots.to_png(figure)
    assert "$\\frac{$/0" in words(plots.extremes(estimate, 0, train, train_of_one(train)))


def train_of_one(samples):
    return replace(samples, ids=samples.ids[:1], index=samples.index[:1], labels=samples.labels[:1], texts=("?",))


def test_many_labels_are_thinned_and_their_values_left_out():
    train = replace(bare(400, "t"), labels=np.arange(400) % 200)
    query = replace(bare(200, "q"), labels=np.arange(200))
    estimate = estimate_from(np.random.default_rng(0).normal(0, 0.1, (400, 200)), train, query)
    figure = plots.label_means(estimate.label_means)
    assert len(figure.axes[0].get_yticks()) <= 30
    assert len(figure.axes[0].texts) == 0
    assert len(plots.heatmap(estimate.correlation, train, query).axes[0].get_yticks()) <= 40


def test_scale_is_rounded_and_ignores_what_is_undefined():
    assert scale_of(np.array([0.41, -0.2, np.nan]), 1.0) == pytest.approx(0.5)
    assert scale_of(np.array([0.0021]), 1.0) == pytest.approx(0.003)
    assert scale_of(np.array([np.nan])) == 1.0
    assert scale_of(np.zeros(3)) == 1.0


def test_wrong_shapes_and_names_say_what_to_do(digits):
    estimate, train, query = digits
    with pytest.raises(ValueError, match=r"\(20, 60\).*60 train and 20 query.*train first"):
        plots.heatmap(estimate.correlation.T, train, query)
    with pytest.raises(ValueError, match=r"'corr'.*correlation, influence"):
        quantity_of("corr")
    with pytest.raises(IndexError, match=r"query 20 of 20.*0 to 19"):
        plots.extremes(estimate, 20, train, query)
    with pytest.raises(ValueError, match="k is 0"):
        plots.extremes(estimate, 0, train, query, k=0)
    with pytest.raises(ValueError, match=r"2 names and 3 steps"):
        plots.trajectories([1, 2, 3], np.zeros((3, 3)), np.zeros((3, 3)), ["a", "b"])
    with pytest.raises(ValueError, match="at least one panel"):
        plots.influence_evolution([], [])


@pytest.mark.slow
@pytest.mark.parametrize("style", ["dark_background", {"axes.grid": True, "font.size": 30.0, "lines.linewidth": 9.0}])
def test_no_global_setting_is_read_or_written(digits, style):
    """A user's Matplotlib style neither changes a figure nor is changed; no random number is drawn."""
    estimate, train, query = digits
    draw = (
        plots.chain_losses,
        lambda of: plots.label_means(of.label_means),
        lambda of: plots.extremes(of, 0, train, query),
    )
    plain = [plots.to_png(one(estimate))[0] for one in draw]
    np.random.seed(3)
    random.seed(3)
    states = repr(np.random.get_state()), random.getstate()
    with matplotlib.style.context(style):
        before = dict(matplotlib.rcParams)
        styled = [plots.to_png(one(estimate))[0] for one in draw]
        assert dict(matplotlib.rcParams) == before
    assert styled == plain
    assert (repr(np.random.get_state()), random.getstate()) == states


def test_plots_need_neither_torch_nor_lightning_nor_pyplot():
    code = (
        "import sys, numpy as np\n"
        "from bif_lightning import plots\n"
        "from bif_lightning.results.examples import Samples\n"
        "one = Samples(ids=('a',), index=np.arange(1))\n"
        "plots.to_png(plots.heatmap(np.ones((1, 1)), one, one))\n"
        "bad = {'torch', 'lightning', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
