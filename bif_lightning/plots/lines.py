"""Curves of the loss along chains and of influence over training."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from bif_lightning.plots.style import (
    DPI,
    FAINT,
    INK,
    LINES,
    MUTED,
    QuantityName,
    axes_at,
    headings,
    new_figure,
    quantity_of,
    shorten,
    type_of,
)
from bif_lightning.results.bands import CLEAR
from bif_lightning.results.estimate import Estimate

_INCH_PER_CHAR = 0.078


def chain_losses(estimate: Estimate, *, title: str | None = None) -> Figure:
    """Mean train loss at each recorded draw of every chain, against the loss at the snapshot.

    Healthy chains rise above the snapshot's loss and soon level off, all at the same height. Independent draws, as of
    `Subspace`, do neither: their mean counts.

    >>> from bif_lightning.plots import chain_losses
    >>> figure = chain_losses(snapshot, title="step 200")  # an Estimate
    >>> figure.axes[0].get_xlabel()
    'recorded draw'
    """
    figure = new_figure(7.0, 4.0)
    axes = axes_at(figure, 0.8, 1.0, 4.9, 2.25)
    draws = np.arange(estimate.loss_trace.shape[1])
    few = len(estimate.chain_ids) <= len(LINES)
    for place, losses in enumerate(estimate.loss_trace):
        colour = LINES[place % len(LINES)] if few else MUTED
        axes.plot(draws, losses, color=colour, linewidth=1.0 if few else 0.4, alpha=0.9 if few else 0.5)
    if not few:
        axes.plot(draws, estimate.loss_trace.mean(0), color=LINES[0], linewidth=1.8)
    axes.axhline(estimate.snapshot_loss, color=INK, linewidth=1.1, linestyle=(0, (5, 3)))
    axes.margins(x=0.01)
    _plain(axes)
    axes.set_xlabel(_draw_label(estimate), **type_of(9))
    axes.set_ylabel("mean train loss, nats", **type_of(9))
    ends = [float(losses[-1]) for losses in estimate.loss_trace] if few else [float(estimate.loss_trace[:, -1].mean())]
    one = "set" if estimate.sampler.paired else "chain"
    names = [f"{one} {chain}" for chain in estimate.chain_ids] if few else [f"mean of {len(estimate.chain_ids)} {one}s"]
    colours = [LINES[place % len(LINES)] for place in range(len(ends))]
    _name_lines(axes, [*ends, estimate.snapshot_loss], [*names, "at the snapshot"], [*colours, INK])
    of = "at the draws" if estimate.sampler.paired else "along the chains"
    headings(figure, title or f"Loss {of}", _verdict(estimate), _divergences(estimate))
    return figure


def _draw_label(estimate: Estimate) -> str:
    chains = estimate.chains
    thinning = f", one every {chains.thinning} steps" if chains.thinning > 1 else ""
    burn_in = f", after {chains.burn_in} steps of burn-in" if chains.burn_in else ""
    return f"recorded draw{thinning}{burn_in}"


def _verdict(estimate: Estimate) -> str:
    of = estimate.diagnostics
    mixing = (f"R-hat {of.rhat:.3f}", f"ESS {of.ess:.0f} of {estimate.loss_trace.size} draws")
    # Independent draws mix by construction; older dumps hold numbers for them all the same.
    parts = (
        *(() if estimate.sampler.paired else mixing),
        f"LLC {of.llc:.3g} ± {of.llc_standard_error:.2g} nats",
        f"agreement on groups {of.group_agreement:.2f}",
    )
    return "     ".join(part for part in parts if "nan" not in part.split("±")[0])


def _divergences(estimate: Estimate) -> str:
    if estimate.sampler.paired:
        return (
            "Draws are independent: from one to the next nothing rises or settles. Their mean lies above the snapshot."
        )
    healthy = "Healthy: rises above the snapshot, levels off soon, and all chains level off alike."

    gone = [
        f"chain {one.chain} diverged at step {one.step} (loss {one.loss_before:.3g} to {one.loss:.3g})"
        for one in estimate.divergences
    ]
    if not gone:
        return healthy
    more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
    return f"LEFT OUT: {'; '.join(gone[:3])}{more}. {healthy}"


def trajectories(
    steps: Sequence[int],
    values: Float[np.ndarray, "line step"],
    errors: Float[np.ndarray, "line step"],
    names: Sequence[str],
    *,
    quantity: QuantityName = "correlation",
    log: bool | None = None,
    title: str | None = None,
) -> Figure:
    """Influence over training, one line for each pair or group, with 95 % bands.

    Args:
        steps: global training step of each point, ascending.
        values: of the quantity at each step; NaN leaves a gap.
        errors: Monte Carlo standard error of each value.
        names: of the lines.
        quantity: of the values. Influence scales with the local curvature; correlation is comparable over steps.
        log: whether the step axis is logarithmic; None decides by whether the steps span a factor of 30 or more.
        title: replaces the default.

    Raises:
        ValueError: the shapes do not fit.

    >>> from bif_lightning.plots import trajectories
    >>> values, errors = np.array([[0.1, 0.4, 0.3]]), np.full((1, 3), 0.05)
    >>> figure = trajectories([100, 200, 300], values, errors, ["cat on cat"])
    >>> figure.axes[0].get_ylabel()
    '← hurts     correlation     helps →'
    """
    if values.shape != (len(names), len(steps)) or errors.shape != values.shape:
        raise ValueError(
            f"{len(names)} names and {len(steps)} steps, but values {values.shape} and errors {errors.shape}; "
            "pass values and errors of shape (names, steps)"
        )
    kind = quantity_of(quantity)
    values = kind.shown(values)
    short = [shorten(name, 26) for name in names]
    figure = new_figure(5.9 + max(_INCH_PER_CHAR * max(map(len, short), default=0), 0.7), 4.2)
    axes = axes_at(figure, 0.85, 1.05, 4.8, 2.4)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    for place, (line, error) in enumerate(zip(values, errors, strict=True)):
        colour, style = _line_style(place)
        axes.fill_between(steps, line - CLEAR * error, line + CLEAR * error, color=colour, alpha=0.16, linewidth=0)
        axes.plot(steps, line, color=colour, linestyle=style, linewidth=1.6, marker="o", markersize=2.6)
    _step_axis(axes, steps, log)
    _plain(axes)
    axes.set_ylabel(f"← hurts     {kind.label}     helps →", **type_of(9))

    ends = [float(line[np.isfinite(line)][-1]) if np.isfinite(line).any() else np.nan for line in values]
    _name_lines(axes, ends, short, [_line_style(place)[0] for place in range(len(names))])
    headings(
        figure, title or f"{kind.words.capitalize()} over training",
        "bands: ± 1.96 Monte Carlo standard errors",
         kind.sentence.replace("Blue, ", "").replace("Orange, ", ""),
    )  # fmt: skip
    return figure


def _line_style(place: int) -> tuple[str, str]:
    return LINES[place % len(LINES)], ("-", "--", ":", "-.")[place // len(LINES) % 4]


def _step_axis(axes: Axes, steps: Sequence[int], log: bool | None) -> None:
    positive = [step for step in steps if step > 0]
    wide = len(positive) > 1 and positive[-1] >= 30 * positive[0]
    if positive and (wide if log is None else log):
        if len(positive) == len(steps):
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=positive[0], linscale=0.4)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("global training step", **type_of(9))
    axes.margins(x=0.015)


def _plain(axes: Axes) -> None:
    """Leave only what carries information: two spines and faint horizontal lines."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(visible=True, axis="y", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)


def _name_lines(axes: Axes, ends: Sequence[float], names: Sequence[str], colours: Sequence[str]) -> None:
    """Write each name at the right of the end of its line, moved apart where they would overlap."""
    shown = [place for place, end in enumerate(ends) if np.isfinite(end)]
    low, high = axes.get_ylim()
    gap = 0.135 * DPI * (high - low) / axes.get_window_extent().height
    order = sorted(shown, key=lambda place: ends[place])
    heights = spread([ends[place] for place in order], gap, low, high)
    for place, height in zip(order, heights, strict=True):
        axes.annotate(
            names[place], (1, ends[place]), xycoords=axes.get_yaxis_transform(), xytext=(1.022, height),
            textcoords=axes.get_yaxis_transform(), va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colours[place], "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0},
            **type_of(8, colours[place]),
        )  # fmt: skip
    axes.set_ylim(low, high)


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending heights apart to at least `gap`, as little as possible upwards, then down from `high`.

    >>> spread([1.0, 1.0, 3.0], 0.5, 0.0, 4.0)
    [1.0, 1.5, 3.0]
    """
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else max(height, low))
    ceiling = high
    for place in range(len(moved) - 1, -1, -1):
        moved[place] = min(moved[place], ceiling)
        ceiling = moved[place] - gap
    return moved
