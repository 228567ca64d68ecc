"""Style of all figures: colours, fonts, the colour bar, and the words for a sign.

Every property is passed explicitly. Matplotlib's rcParams are global, and `rc_context` changes them for other threads
too, so that a figure drawn during training must not depend on them.
"""

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image

QuantityName = Literal["correlation", "influence", "conditioned"]
MeanName = Literal["correlation", "influence"]
"""The quantities with means over labels."""

INK, MUTED, FAINT, PAPER = "#1a1a1a", "#666666", "#d9d9d9", "#ffffff"
HELPS, HURTS = "#1f66ad", "#c8500a"
UNDEFINED = "#e3e3e3"
# Okabe & Ito's colours, distinct under every common form of colour blindness; yellow is too pale on white.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
FONT = "DejaVu Sans"
MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
DPI = 110

_HURTS_TO_HELPS = (
    "#6b2503", "#b54708", "#e8792b", "#f9b07a", "#fde2ca", "#ffffff",
    "#d5e5f3", "#9dc6e3", "#5a9fd0", "#2369ad", "#0b3468",
)  # fmt: skip


@dataclass(frozen=True)
class Quantity:
    """A quantity that figures show: above 0, the train example helps.

    Attributes:
        name: of the values that are given.
        words: what is shown, in running text.
        formula: of what is shown.
        unit: empty for pure numbers.
        helps: sign of a given value that helps.
        preposition: what the words go with.
    """

    name: QuantityName
    words: str
    formula: str
    unit: str
    helps: Literal[1, -1]
    preposition: Literal["on", "with"]

    def shown(self, values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Given values with the sign that helps made positive."""
        return values if self.helps > 0 else -np.asarray(values)

    @property
    def label(self) -> str:
        """Name and unit, for an axis or a colour bar."""
        return f"{self.words}, {self.unit}" if self.unit else self.words

    @property
    def sentence(self) -> str:
        """One line on the definition of the quantity and the meaning of its sign."""
        stored = "" if self.helps > 0 else f", {MINUS}{'conditioned ' * (self.name == 'conditioned')}influence"
        return (
            f"{self.words} = {self.formula}{stored}. Blue, > 0: more weight on the train example lowers the "
            "query's loss (helps). Orange, < 0: raises it (hurts)."
        )

    @property
    def colours(self) -> LinearSegmentedColormap:
        """Diverging map over [−scale, scale]: blue where an example helps, white at zero, grey where undefined."""
        return _colours()


_QUANTITIES = {
    "correlation": Quantity("correlation", "correlation", "Corr(train loss, query loss)", "", 1, "with"),
    "influence": Quantity("influence", "effect", "Cov(train loss, query loss)", "nat²", -1, "on"),
    "conditioned": Quantity(
        "conditioned", "conditioned effect", "Cov(train loss, query loss | train losses)", "nat²", -1, "on"
    ),
}


def quantity_of(name: QuantityName) -> Quantity:
    """The quantity of that name.

    Raises:
        ValueError: another name than "correlation", "influence" and "conditioned".
    """
    if name not in _QUANTITIES:
        raise ValueError(f"quantity is {name!r}; it must be one of {', '.join(_QUANTITIES)}")
    return _QUANTITIES[name]


def mean_quantity_of(name: MeanName) -> Quantity:
    """The quantity of that name, which must have means over labels.

    Raises:
        ValueError: a name other than "correlation" and "influence".
    """
    kind = quantity_of(name)
    if kind.name == "conditioned":
        raise ValueError(f"quantity is {name!r}, which has no means over labels; show correlation or influence")
    return kind


@cache
def _colours() -> LinearSegmentedColormap:
    colours = LinearSegmentedColormap.from_list("influence", list(_HURTS_TO_HELPS), N=511)
    return cast(LinearSegmentedColormap, colours.with_extremes(bad=UNDEFINED))


def scale_of(values: Float[np.ndarray, "..."], quantile: float = 0.995) -> float:
    """Half-width of a colour scale: that quantile of |values|, rounded up to 1, 1.5, 2, 3, 5 or 7 times a
    power of ten.

    Rounding keeps the scale the same from step to step while values drift, so that pictures compare.
    """
    finite = np.abs(values[np.isfinite(values)])
    top = float(np.quantile(finite, quantile)) if finite.size else 0.0
    if top <= 0.0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(top))
    return power * next(step for step in (1, 1.5, 2, 3, 5, 7, 10) if top <= step * power * (1 + 1e-9))


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of that size in inches, on its own Agg canvas."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER, edgecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes whose frame lies at that place, in inches from the lower left corner of the figure."""
    full_width, full_height = figure.get_size_inches()
    box = (left / full_width, bottom / full_height, width / full_width, height / full_height)
    axes = figure.add_axes(box, facecolor=PAPER)
    axes.grid(visible=False)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=8, length=2.5, width=0.6, pad=3, labelfontfamily=FONT)
    axes.xaxis.labelpad = axes.yaxis.labelpad = 4
    for side in axes.spines.values():
        side.set(color=MUTED, linewidth=0.6)
    return axes


def type_of(size: float = 8, color: str = INK, **more: Any) -> dict[str, Any]:
    """All text properties; ids and label names appear literally, without `$` formulas."""
    plain = {"parse_math": False, "usetex": False, "fontfamily": FONT, "fontsize": size, "color": color}
    return plain | {"fontweight": "normal", "fontstyle": "normal"} | more


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=FONT))).get_charmap())


def drawable(text: str) -> str:
    """The text on one line, with a box for each character that the font lacks, as Matplotlib warns about each."""
    return "".join(char if ord(char) in _glyphs() else "□" for char in " ".join(text.split()))


def shorten(text: str, length: int) -> str:
    """The text on one line, cut to that many characters, with an ellipsis where it was cut."""
    flat = drawable(text)
    return flat if len(flat) <= length else flat[: max(length - 1, 1)].rstrip() + "…"


def headings(figure: Figure, title: str, subtitle: str, caption: str) -> None:
    """Title and subtitle at the top left, caption at the bottom left; each at most two lines."""
    width, height = figure.get_size_inches()
    left = 0.14 / width
    figure.text(left, 1 - 0.12 / height, title, va="top", **type_of(11.5, fontweight="bold"))
    figure.text(left, 1 - 0.36 / height, subtitle, va="top", linespacing=1.3, **type_of(8.5, MUTED))
    figure.text(left, 0.09 / height, wrap(caption, width - 0.28), va="bottom", linespacing=1.3, **type_of(7.2, MUTED))


def wrap(text: str, width: float, size: float = 7.2, lines: int | None = None) -> str:
    """The text wrapped to a width in inches at a size in points, cut after `lines` lines."""
    # The mean glyph of the font is 0.54 em wide; a wider line would run off the figure.
    letters = max(int(width * 72 / (0.545 * size)), 12)
    return "\n".join(textwrap.wrap(text, letters, max_lines=lines, placeholder="…"))


def colour_bar(figure: Figure, quantity: Quantity, scale: float, box: tuple[float, float, float, float]) -> None:
    """A vertical colour bar at that place in inches, with "helps" and "hurts" at its ends.

    Drawn as a separate image, several times faster than `Figure.colorbar`.
    """
    axes = axes_at(figure, *box)
    ramp = np.linspace(-scale, scale, 255)[:, None]
    axes.imshow(
        ramp, cmap=quantity.colours, vmin=-scale, vmax=scale, origin="lower", aspect="auto",
        extent=(0, 1, -scale, scale), interpolation="nearest",
    )  # fmt: skip
    ticks = [-scale, -scale / 2, 0.0, scale / 2, scale]
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks(ticks, [signed(tick) for tick in ticks], **type_of(8))
    axes.yaxis.set_label_position("right")
    axes.set_ylabel(quantity.label, **type_of(8.5))
    colour = {"helps": HELPS, "hurts": HURTS}
    for word, height, align in (("helps", 1.02, "bottom"), ("hurts", -0.02, "top")):
        style = type_of(8.5, colour[word], fontweight="bold")
        axes.text(0.5, height, word, transform=axes.transAxes, ha="center", va=align, **style)


def signed(value: float, digits: int = 2) -> str:
    """A short number with its sign; "undefined" where it is not finite.

    >>> signed(0.0731), signed(-12345.0), signed(0.0), signed(float("nan"))
    ('+0.073', '−1.2e+04', '0', 'undefined')
    """
    if not math.isfinite(value):
        return "undefined"
    if value == 0:
        return "0"
    text = f"{value:+.{digits}g}"
    return text.replace("-", MINUS, 1) if value < 0 else text


def with_error(value: float, error: float) -> str:
    """Value ± standard error, both to the last digit that the error supports.

    >>> with_error(0.07312, 0.0116), with_error(-3.0, float("nan"))
    ('+0.073 ± 0.012', '−3 ± ?')
    """
    if not math.isfinite(value):
        return "undefined"
    if not math.isfinite(error) or error <= 0:
        return f"{signed(value)} ± ?"
    digits = 1 - math.floor(math.log10(error))
    if not 0 <= digits <= 5:
        return f"{signed(value)} ± {error:.1e}"
    return f"{value:+.{digits}f} ± {error:.{digits}f}".replace("-", MINUS, 1)


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_of_ten(values: Sequence[float]) -> int:
    """The exponent, a multiple of 3, in which the largest of some numbers is short; 0 from 0.1 to 1000.

    >>> power_of_ten([0.00124, -0.0002]), power_of_ten([0.3, 120.0]), power_of_ten([5e7]), power_of_ten([])
    (-3, 0, 6, 0)
    """
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if largest == 0 or 0.1 <= largest < 1000:
        return 0
    return 3 * math.floor(math.log10(largest) / 3)


def in_power(label: str, power: int) -> str:
    """The label, with its unit, of numbers that are divided by a power of ten.

    >>> in_power("effect, nat²", -3), in_power("effect, nat²", 0), in_power("effect", 6)
    ('effect, 10⁻³ nat²', 'effect, nat²', 'effect, 10⁶')
    """
    name, _, unit = label.partition(", ")
    return f"{name}, 10{str(power).translate(_SUPERSCRIPTS)} {unit}".rstrip() if power else label


def label_name(label: int, names: Sequence[str] | None) -> str:
    """The name of a class, its number where it has none, "no label" for −1."""
    if label < 0:
        return "no label"
    return names[label] if names is not None and label < len(names) else str(label)


def to_png(figure: Figure) -> tuple[bytes, int, int]:
    """The figure as PNG bytes, its width and its height in pixels.

    It avoids `savefig`, whose result depends on global rcParams (bounding box, transparency, dpi).

    >>> from bif_lightning.plots import heatmap, to_png
    >>> png, width, height = to_png(heatmap(snapshot.correlation, train, query))
    >>> png[1:4], width > 100
    (b'PNG', True)
    """
    canvas = figure.canvas
    if not isinstance(canvas, FigureCanvasAgg):
        canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue(), pixels.shape[1], pixels.shape[0]
