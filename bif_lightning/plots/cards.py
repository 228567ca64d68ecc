"""Cards of one query and the train examples that help and hurt it most."""

import io
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from bif_lightning.plots.ranking import strongest
from bif_lightning.plots.style import (
    FAINT,
    HELPS,
    HURTS,
    INK,
    MUTED,
    PAPER,
    Quantity,
    QuantityName,
    headings,
    in_power,
    label_name,
    new_figure,
    power_of_ten,
    quantity_of,
    shorten,
    type_of,
    with_error,
    wrap,
)
from bif_lightning.results.bands import is_clear
from bif_lightning.results.estimate import Estimate
from bif_lightning.results.examples import Samples

_CARD, _GAP, _PICTURE = 1.16, 0.1, 0.9
_COLUMN, _ROW = 3.9, 0.62


@dataclass(frozen=True)
class _Example:
    """Content of the card of one example."""

    id: str
    label: str
    text: str
    png: bytes
    value: str = ""
    sure: bool = True


def extremes(
    estimate: Estimate,
    column: int,
    train: Samples,
    query: Samples,
    *,
    k: int = 5,
    quantity: QuantityName = "influence",
    title: str | None = None,
) -> Figure:
    """One query beside the k train examples that help it most and the k that hurt it most.

    Cards are pictures where the train examples have thumbnails, else rows of text. A value within 1.96
    standard errors of zero is grey. Only examples of the right sign are shown, possibly fewer than k.

    Args:
        estimate: of the loss of the queries.
        column: position of the query on its axis.
        train, query: who the rows and columns are.
        k: cards a side, 1 or more.
        quantity: to rank by and to show, as an effect that helps above 0.

        title: replaces the default.

    Raises:
        IndexError: the position is outside of the query axis.
        ValueError: k below 1, an unknown quantity, or one that the estimate lacks.

    >>> from bif_lightning.plots import extremes, to_png
    >>> figure = extremes(snapshot, 0, train, query, k=3)  # an Estimate, and Samples of its axes
    >>> png, width, height = to_png(figure)
    >>> png[1:4]
    b'PNG'
    """
    if not 0 <= column < len(query):
        raise IndexError(f"query {column} of {len(query)}; pass a position from 0 to {len(query) - 1}")
    if k < 1:
        raise ValueError(f"k is {k}; it must be 1 or above")
    kind = quantity_of(quantity)
    values = _column(estimate, column, kind)
    helpful, harmful = strongest(values, k, kind.helps)
    sides = (_Side("helps", "most helpful", HELPS, helpful), _Side("hurts", "most harmful", HURTS, harmful))
    power = power_of_ten(values[[*helpful, *harmful]].tolist())
    card = partial(_scored, estimate, column, train, kind, power)
    asked = _describe(query, column)
    draw = _as_pictures if train.thumbnails is not None else _as_rows
    figure = draw(asked, [(side, [card(int(row)) for row in side.rows]) for side in sides], k)
    name = shorten(asked.id, 36) + (f" ({shorten(asked.label, 20)})" if asked.label else "")
    label = in_power(kind.label, power)
    headings(
        figure,
        title or f"What helps and what hurts {name}",
        f"{label} ± standard error of each train example; grey: within 1.96 standard errors of zero",
        kind.sentence,
    )
    return figure


def _column(estimate: Estimate, column: int, kind: Quantity) -> Float[np.ndarray, " train"]:
    matrix = getattr(estimate.losses, kind.name)
    if matrix is None:
        raise ValueError(
            "the estimate has no conditioned influence (Chains(ridge=...) makes it from kept draws); show influence"
        )
    return np.asarray(matrix)[:, column]


@dataclass(frozen=True)
class _Side:
    word: Literal["helps", "hurts"]
    heading: str
    colour: str
    rows: Int[np.ndarray, " row"]


def _describe(samples: Samples, place: int) -> _Example:
    label = "" if samples.labels is None else label_name(int(samples.labels[place]), samples.label_names)
    return _Example(
        id=samples.ids[place],
        label=label,
        text="" if samples.texts is None else samples.texts[place],
        png=b"" if samples.thumbnails is None else samples.thumbnails[place],
    )


def _scored(estimate: Estimate, column: int, train: Samples, kind: Quantity, power: int, row: int) -> _Example:
    value = float(getattr(estimate.losses, kind.name)[row, column])
    error = float(getattr(estimate.losses, f"{kind.name}_standard_error")[row, column])
    plain, clear = _describe(train, row), bool(is_clear(value, error))
    shown = with_error(kind.helps * value / 10.0**power, error / 10.0**power)
    return _Example(plain.id, plain.label, plain.text, plain.png, shown, clear)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes over all of it, in inches: one for each card would be ten times slower."""
    figure = new_figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1), facecolor=PAPER)
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_autoscale_on(False)
    return figure, axes


def _as_pictures(asked: _Example, sides: list[tuple[_Side, list[_Example]]], k: int) -> Figure:
    row = _PICTURE + 0.86
    left, bottom = 1.95, 0.58
    width = max(left + k * (_CARD + _GAP) + 0.1, 6.4)
    figure, axes = _canvas(width, bottom + 2 * row + 0.62)
    middle = bottom + row
    axes.text(0.14, middle + 1.05, "the query", va="bottom", **type_of(9, INK, fontweight="bold"))
    _picture(axes, asked.png, 0.14, middle - 0.45, 1.45, INK)
    _lines(axes, 0.14, middle - 0.53, asked, 20)
    for place, (side, cards) in enumerate(sides):
        top = bottom + (2 - place) * row
        _heading(axes, left, top, side, bool(cards))
        for index, card in enumerate(cards):
            at = left + index * (_CARD + _GAP)
            _picture(axes, card.png, at, top - 0.22 - _PICTURE, _PICTURE, side.colour)
            _lines(axes, at, top - 0.27 - _PICTURE, card, 17, side.colour)
    return figure


def _heading(axes: Axes, left: float, top: float, side: _Side, some: bool) -> None:
    text = side.heading if some else f"no train example {side.word} this query"
    axes.text(left, top - 0.16, text, va="bottom", **type_of(9, side.colour, fontweight="bold"))


def _picture(axes: Axes, png: bytes, left: float, bottom: float, side: float, colour: str) -> None:
    """Draw a thumbnail into a square frame with its proportions; the frame stays empty without one."""
    if png:
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        height, width = pixels.shape[:2]
        wide, high = (side * length / max(height, width) for length in (width, height))
        x, y = left + (side - wide) / 2, bottom + (side - high) / 2
        # Small pictures stay sharp squares; large ones are scaled down without aliasing.
        how = "nearest" if max(height, width) <= 64 else "antialiased"
        axes.imshow(pixels, extent=(x, x + wide, y, y + high), interpolation=how, aspect="auto")
    else:
        axes.text(left + side / 2, bottom + side / 2, "no picture", ha="center", va="center", **type_of(7, MUTED))
    axes.add_patch(Rectangle((left, bottom), side, side, fill=False, edgecolor=colour, linewidth=1.2))


def _lines(axes: Axes, left: float, top: float, card: _Example, length: int, colour: str = INK) -> None:
    """Value, label, id and first words under a picture."""
    rows = [
        (card.value, type_of(8, colour if card.sure else MUTED, fontweight="bold" if card.sure else "normal")),
        (card.label, type_of(7.8)),
        (card.id, type_of(7, MUTED)),
        (card.text, type_of(7, MUTED, fontstyle="italic")),
    ]
    shown = [(text, style) for text, style in rows if text]
    for place, (text, style) in enumerate(shown):
        axes.text(left, top - 0.145 * place, shorten(text, length), va="top", **style)


def _as_rows(asked: _Example, sides: list[tuple[_Side, list[_Example]]], k: int) -> Figure:
    width, bottom = 2 * _COLUMN + 0.3, 0.55
    figure, axes = _canvas(width, bottom + k * _ROW + 0.3 + 0.62 + 0.62)
    top = bottom + k * _ROW + 0.3
    axes.add_patch(Rectangle((0.14, top + 0.06), width - 0.28, 0.52, facecolor="#f4f4f4", edgecolor="none"))
    _row(axes, 0.2, top + 0.52, asked, INK, width - 0.4)
    for place, (side, cards) in enumerate(sides):
        left = 0.14 + place * (_COLUMN + 0.02)
        _heading(axes, left, top, side, bool(cards))
        for index, card in enumerate(cards):
            y = top - 0.26 - index * _ROW
            axes.plot([left, left], [y - _ROW + 0.12, y], color=side.colour if card.sure else FAINT, linewidth=2.2)
            _row(axes, left + 0.08, y, card, side.colour, _COLUMN - 0.2)
    return figure


def _row(axes: Axes, left: float, top: float, card: _Example, colour: str, width: float) -> None:
    """Value, label and id on one line, the text on the next two."""
    at = left
    head = (
        (card.value, 22, type_of(8, colour if card.sure else MUTED, fontweight="bold")),
        (card.label, 18, type_of(8, INK, fontweight="bold")),
        (card.id, 26, type_of(7.5, MUTED)),
    )
    for text, length, style in head:
        if text:
            short = shorten(text, length)
            axes.text(at, top, short, va="top", **style)
            at += (0.082 if style["fontweight"] == "bold" else 0.07) * len(short) + 0.1
    axes.text(
        left, top - 0.16, wrap(shorten(card.text, 400), width, 7.5, 2), va="top", linespacing=1.2,
        **type_of(7.5),
    )  # fmt: skip
