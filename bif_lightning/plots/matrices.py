"""Heatmaps of all pairs, of label means, and of label means over training."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from bif_lightning.plots.pooling import Axis, axis_of, pool, spaced
from bif_lightning.plots.style import (
    INK,
    MINUS,
    MUTED,
    PAPER,
    TIMES,
    MeanName,
    QuantityName,
    axes_at,
    colour_bar,
    headings,
    label_name,
    mean_quantity_of,
    new_figure,
    quantity_of,
    scale_of,
    shorten,
    type_of,
)
from bif_lightning.results.bands import is_clear
from bif_lightning.results.estimate import LabelMeans
from bif_lightning.results.examples import Samples

_INCH_PER_CHAR = 0.078
_MOST_DECIMALS = 4  # more do not fit into a cell


def heatmap(
    matrix: Float[np.ndarray, "train query"],
    train: Samples,
    query: Samples,
    *,
    quantity: QuantityName = "correlation",
    title: str | None = None,
    verdict: str = "",
    scale: float | None = None,
    pixels: int = 256,
) -> Figure:
    """Every pair of a train and a query example, ordered by label.

    Args:
        matrix: correlation, or (conditioned) influence in nat², of each train example (row) and query (column).
        train, query: descriptions of rows and columns; their labels order and name the axes.
        quantity: of the matrix.
        title: replaces the default.
        verdict: on the snapshot, in a word or two; appended to the title.
        scale: half-width of the colour scale; None takes it from the matrix (`scale_of`).
        pixels: largest number of cells on an axis (or one a label, where there are more labels); with more
            examples, each cell is the mean of a block within one pair of labels.

    Raises:
        ValueError: the matrix does not fit the samples, or the quantity is unknown.

    >>> from bif_lightning.plots import heatmap
    >>> figure = heatmap(snapshot.correlation, train, query, verdict="good")
    >>> figure.axes[0].get_xlabel()
    'query examples'
    """
    _check_shape(matrix, train, query)
    kind = quantity_of(quantity)
    matrix = kind.shown(matrix)
    rows = axis_of(train.labels, len(train), pixels)
    columns = axis_of(query.labels, len(query), pixels)
    cells = pool(matrix, rows, columns)
    row_names, column_names = _run_names(rows, train), _run_names(columns, query)
    left = 0.55 + _INCH_PER_CHAR * max(map(len, row_names), default=0)
    below = 0.8 + _INCH_PER_CHAR * max(map(len, column_names), default=0)
    figure = new_figure(left + 5.0 + 1.05, below + 4.7 + 0.72)
    axes = axes_at(figure, left, below, 5.0, 4.7)
    used = scale or scale_of(cells)
    axes.imshow(cells, cmap=kind.colours, vmin=-used, vmax=used, aspect="auto", interpolation="nearest")
    _mark_runs(axes, rows, columns, row_names, column_names)
    colour_bar(figure, kind, used, (left + 5.14, below + 0.7, 0.16, 3.3))
    block = rows.largest_block * columns.largest_block
    pooled = f"; each cell is the mean of up to {block} pairs" if block > 1 else ""
    ordered = ", ordered by label" if rows.labels or columns.labels else ""
    headings(
        figure,
        (title or f"{kind.words.capitalize()} of every train example {kind.preposition} every query")
        + (f" ({verdict})" if verdict else ""),
        f"{len(train)} train {TIMES} {len(query)} query examples{ordered}{pooled}",
        kind.sentence + (" Grey: undefined, a loss that never varied." if np.isnan(cells).any() else ""),
    )
    return figure


def _check_shape(matrix: np.ndarray, train: Samples, query: Samples) -> None:
    if matrix.shape != (len(train), len(query)):
        raise ValueError(
            f"the matrix has shape {matrix.shape}, the samples are {len(train)} train and {len(query)} query "
            "examples; pass the samples that the matrix was estimated on, train first"
        )


def _run_names(axis: Axis, samples: Samples) -> list[str]:
    return [shorten(label_name(label, samples.label_names), 16) for label in axis.labels]


def _mark_runs(axes: Axes, rows: Axis, columns: Axis, row_names: list[str], column_names: list[str]) -> None:
    """Name each run of one label at its middle, and separate runs by hairlines."""
    axes.set_ylabel("train examples", **type_of(9))
    axes.set_xlabel("query examples", **type_of(9))
    middles = [(axis.starts[:-1] + axis.starts[1:] - 1) / 2 for axis in (rows, columns)]
    kept_rows = spaced(list(middles[0]), 0.15 / 4.7 * rows.starts[-1])
    kept_columns = spaced(list(middles[1]), 0.15 / 5.0 * columns.starts[-1])
    axes.set_yticks([])
    axes.set_xticks([])
    if row_names:
        axes.set_yticks(middles[0][kept_rows], [row_names[run] for run in kept_rows], **type_of(8))
    if column_names:
        turn = 90 if any(len(name) > 2 for name in column_names) else 0
        names = [column_names[run] for run in kept_columns]
        axes.set_xticks(middles[1][kept_columns], names, **type_of(8, rotation=turn))
    axes.tick_params(length=0)
    seams = [axis.starts[1:-1].tolist() if len(axis.labels) <= 60 else [] for axis in (rows, columns)]
    _seams(axes, seams[0], seams[1], MUTED, 0.35)


def _seams(axes: Axes, rows: Sequence[int], columns: Sequence[int], colour: str, width: float) -> None:
    """Draw lines before these rows and columns of an image, with one artist a direction: each takes a millisecond."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    axes.hlines([row - 0.5 for row in rows], left, right, colors=colour, linewidth=width)
    axes.vlines([column - 0.5 for column in columns], bottom, top, colors=colour, linewidth=width)
    axes.set(xlim=(left, right), ylim=(bottom, top))


def label_means(
    means: LabelMeans,
    names: Sequence[str] | None = None,
    *,
    quantity: MeanName = "correlation",
    title: str | None = None,
    scale: float | None = None,
) -> Figure:
    """Mean influence of each label on each label, with its standard error, label by label.

    For up to 12 labels the cells contain values. A cell within 1.96 standard errors of zero, or without a standard
    error, is grey: its sign is not established.

    Args:
        means: block means and their standard errors.
        names: name of each class, by class index.
        quantity: to show.
        title: replaces the default.
        scale: half-width of the colour scale; None takes the largest cell.

    >>> from bif_lightning.plots import label_means
    >>> figure = label_means(snapshot.label_means, names=["cat", "dog"])
    >>> figure.axes[0].get_ylabel()
    'label of the train examples'
    """
    kind = mean_quantity_of(quantity)
    values = kind.shown(np.asarray(getattr(means, quantity), np.float64))
    errors = np.asarray(getattr(means, f"{quantity}_standard_error"), np.float64)
    row_names = [shorten(label_name(int(label), names), 16) for label in means.train_labels]
    column_names = [shorten(label_name(int(label), names), 16) for label in means.query_labels]
    many = max(values.shape) > 12
    width, height = (5.0, 4.7) if many else (max(0.62 * values.shape[1], 2.6), max(0.47 * values.shape[0], 1.8))
    left = 0.55 + _INCH_PER_CHAR * max(map(len, row_names))
    long = any(len(name) > 8 for name in column_names) or many
    below = 0.85 + (_INCH_PER_CHAR * max(map(len, column_names)) if long else 0.12)
    figure = new_figure(max(left + width + 1.05, 5.2), below + height + 0.72)
    axes = axes_at(figure, left, below, width, height)
    used = scale or scale_of(values, 1.0)
    sure = is_clear(values, errors)
    _cells(axes, values, sure, kind.colours, used)
    if not many:
        _write_cells(axes, values, errors, sure, used)
    _name_cells(axes, row_names, column_names, 90 if long else 0)
    bar = min(height - 0.5, 3.3)
    colour_bar(figure, kind, used, (left + width + 0.14, below + (height - bar) / 2, 0.16, bar))
    shown = "" if many else "Each cell: mean, ± standard error. "
    headings(
        figure,
        title or f"Mean {kind.words} by label",
        "mean over all train examples of one label and all queries of another",
        shown + "Grey: within 1.96 standard errors of zero, sign not established. " + kind.sentence,
    )
    return figure


def _cells(axes: Axes, values: np.ndarray, sure: np.ndarray, colours: Colormap, scale: float) -> None:
    """Draw a matrix of large cells with white seams; cells without an established sign are grey."""
    shown = np.where(sure, values, np.nan)
    axes.imshow(shown, cmap=colours, vmin=-scale, vmax=scale, aspect="auto", interpolation="nearest")
    if max(values.shape) <= 40:
        _seams(axes, range(1, values.shape[0]), range(1, values.shape[1]), PAPER, 0.8)
    for side in axes.spines.values():
        side.set_visible(False)


def _write_cells(axes: Axes, values: np.ndarray, errors: np.ndarray, sure: np.ndarray, scale: float) -> None:
    """Write each value over its standard error, all with one power of ten and one number of decimals."""
    power = 0 if 0.01 <= scale < 1000 else int(np.floor(np.log10(scale)))
    digits = _decimals(errors / 10.0**power, sure)
    if power:
        axes.set_title(f"values {TIMES} 1e{power}", loc="right", pad=3, **type_of(7.5, MUTED))
    for (row, column), value in np.ndenumerate(values / 10.0**power):
        error = errors[row, column] / 10.0**power
        strong = sure[row, column] and abs(value) > 0.6 * scale / 10.0**power
        colour = PAPER if strong else INK if sure[row, column] else MUTED
        text = f"{value:+.{digits}f}".replace("-", MINUS) if np.isfinite(value) else "undefined"
        text = text[1:] if text.strip(f"+{MINUS}0.") == "" else text
        spread = f"± {error:.{digits}f}" if np.isfinite(error) else "± ?"
        axes.text(column, row - 0.03, text, ha="center", va="bottom", **type_of(7.6, colour))
        axes.text(column, row + 0.06, spread, ha="center", va="top", **type_of(6, colour))


def _decimals(errors: np.ndarray, sure: np.ndarray) -> int:
    """Decimals that show two digits of the median error, and one of the smallest error of an established value."""
    known = errors[np.isfinite(errors) & (errors > 0)]
    if not known.size:
        return 2
    wanted = [1 - math.floor(math.log10(float(np.median(known))))]
    wanted += [-math.floor(math.log10(float(error))) for error in errors[sure & (errors > 0)]]
    return min(max(*wanted, 0), _MOST_DECIMALS)


def _name_cells(axes: Axes, row_names: Sequence[str], column_names: Sequence[str], turn: int) -> None:
    rows = spaced(range(len(row_names)), len(row_names) / 28)
    columns = spaced(range(len(column_names)), len(column_names) / 28)
    axes.set_yticks(rows, [row_names[row] for row in rows], **type_of(8))
    axes.set_xticks(columns, [column_names[column] for column in columns], **type_of(8, rotation=turn))
    axes.tick_params(length=0)
    axes.set_ylabel("label of the train examples", **type_of(9))
    axes.set_xlabel("label of the queries", **type_of(9))


def influence_evolution(
    steps: Sequence[int],
    means: Sequence[LabelMeans],
    names: Sequence[str] | None = None,
    *,
    metrics: Sequence[str] | None = None,
    quantity: MeanName = "correlation",
    title: str | None = None,
) -> Figure:
    """Label-by-label influence at several training steps, side by side on one colour scale.

    Args:
        steps: global training step of each panel.
        means: block means at each of these steps.
        names: name of each class, by class index.
        metrics: a line under each step, such as "val accuracy 0.91".
        quantity: to show. Influence scales with the local curvature; correlation is comparable over steps.
        title: replaces the default.

    Raises:
        ValueError: steps, means and metrics differ in number, or there are no steps.

    >>> from bif_lightning.plots import influence_evolution
    >>> figure = influence_evolution([100, 200], [snapshot.label_means, snapshot.label_means])
    >>> figure.axes[1].get_title()
    'step 200'
    """
    if not steps or len(steps) != len(means) or len(metrics or steps) != len(steps):
        raise ValueError(
            f"{len(steps)} steps, {len(means)} label means and {len(metrics or steps)} metrics; "
            "pass one of each for every panel, and at least one panel"
        )
    kind = mean_quantity_of(quantity)
    values = [kind.shown(np.asarray(getattr(mean, quantity), np.float64)) for mean in means]
    scale = scale_of(np.concatenate([value.ravel() for value in values]), 1.0)
    row_names = [shorten(label_name(int(label), names), 12) for label in means[0].train_labels]
    column_names = [shorten(label_name(int(label), names), 12) for label in means[0].query_labels]
    turn = 90 if any(len(name) > 2 for name in column_names) else 0
    left = 0.5 + _INCH_PER_CHAR * max(map(len, row_names))
    below = 0.72 + (_INCH_PER_CHAR * max(map(len, column_names)) if turn else 0.12)
    side = 1.75
    figure = new_figure(left + len(steps) * (side + 0.16) + 0.95, below + side + 1.1)
    for place, (step, mean, value) in enumerate(zip(steps, means, values, strict=True)):
        axes = axes_at(figure, left + place * (side + 0.16), below, side, side)
        errors = np.asarray(getattr(mean, f"{quantity}_standard_error"), np.float64)
        _cells(axes, value, is_clear(value, errors), kind.colours, scale)
        heading = f"step {step:,}" + (f"\n{shorten(metrics[place], 24)}" if metrics else "")
        axes.set_title(heading, pad=4, linespacing=1.25, **type_of(9))
        _name_panel(axes, row_names if place == 0 else [], column_names, turn)
    figure.axes[0].set_ylabel("label of the train examples", **type_of(8.5))
    figure.axes[len(steps) // 2].set_xlabel("label of the queries", **type_of(8.5))
    bar = (left + len(steps) * (side + 0.16), below + 0.2, 0.14, side - 0.4)
    colour_bar(figure, kind, scale, bar)
    headings(
        figure, title or f"How the {kind.words} between labels evolves in training",
        "mean over all train examples of one label and all queries of another, on one colour scale",
        "Grey: within 1.96 standard errors of zero. " + kind.sentence,
    )  # fmt: skip
    return figure


def _name_panel(axes: Axes, row_names: Sequence[str], column_names: Sequence[str], turn: int) -> None:
    rows = spaced(range(len(row_names)), len(row_names) / 14)
    columns = spaced(range(len(column_names)), len(column_names) / 14)
    axes.set_yticks(rows, [row_names[row] for row in rows], **type_of(7))
    axes.set_xticks(columns, [column_names[column] for column in columns], **type_of(7, rotation=turn))
    axes.tick_params(length=0, pad=2)
