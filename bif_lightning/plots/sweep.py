"""A page of loss traces over a grid of sampler settings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bif_lightning.config import SGLD
from bif_lightning.plots.style import (
    FAINT,
    HURTS,
    INK,
    LINES,
    MINUS,
    MUTED,
    TIMES,
    axes_at,
    headings,
    new_figure,
    type_of,
    wrap,
)

CELL_WIDTH, CELL_HEIGHT, GAP, BLOCK_GAP = 1.15, 0.8, 0.09, 0.4
_LEFT, _BOTTOM, _RIGHT, _TOP = 1.0, 0.95, 0.3, 1.1
_ROW = CELL_HEIGHT + 0.27  # with its line of numbers


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One setting of the grid, and the result of its pilot.

    Attributes:
        block, row, column: place in the grid: temperature, localization, step size.
        sampler: the setting.
        stiffness: c = ε·(nβ·λmax + γ).
        rise: nβ·(mean train loss − loss at the snapshot) at each draw, nats; NaN after a chain diverged.
        diverged: why a chain did; empty if none did.
        dimension: effective dimension, NaN if diverged.
        nonlinearity: share of the losses' variance that is not linear in the weights, NaN if diverged.
        chosen: whether this setting was chosen.
    """

    block: int
    row: int
    column: int
    sampler: SGLD
    stiffness: float
    rise: Float[np.ndarray, "chain draw"]
    diverged: str
    dimension: float
    nonlinearity: float
    chosen: bool


def sweep(cells: Sequence[Cell], target: float, spacing: int, choice: str) -> Figure:
    """Loss traces of every setting: blocks of nβ, rows of the pull γ/nβ, columns of c.

    Args:
        cells: a full grid.
        target: the effective dimension aimed at; traces of the right size level off at half of it.
        spacing: steps from one draw to the next.
        choice: the chosen setting and the reason, in words.
    """
    places = zip(*((cell.block, cell.row, cell.column) for cell in cells), strict=True)
    blocks, rows, columns = (1 + max(values) for values in places)
    block_width = columns * CELL_WIDTH + (columns - 1) * GAP
    width = _LEFT + blocks * block_width + (blocks - 1) * BLOCK_GAP + _RIGHT
    height = _BOTTOM + rows * _ROW + _TOP
    figure = new_figure(width, height)
    top = _scale(cells, target)
    for cell in cells:
        left = _LEFT + cell.block * (block_width + BLOCK_GAP) + cell.column * (CELL_WIDTH + GAP)
        bottom = _BOTTOM + (rows - 1 - cell.row) * _ROW
        axes = axes_at(figure, left, bottom, CELL_WIDTH, CELL_HEIGHT)
        _draw(axes, cell, target, top)
        _label(axes, cell, rows, top)
    for block in range(blocks):
        first = next(c for c in cells if c.block == block)
        x = (_LEFT + block * (block_width + BLOCK_GAP)) / width
        y = (_BOTTOM + rows * _ROW + 0.06) / height
        words = f"inverse temperature {first.sampler.inverse_temperature:.3g}"
        figure.text(x, y, words, ha="left", va="bottom", **type_of(9, fontweight="bold"))
    about = (
        f"inverse temperature {TIMES} (mean train loss {MINUS} that at the snapshot), nats, at each draw of "
        f"{len(cells[0].rise)} chains, one every {spacing} steps. Healthy: rises, levels off soon and alike, near the "
        "dashed line, half the effective dimension aimed at. Orange: left the posterior. d: effective dimension; nl: "
        "nonlinear share of the variance of losses. pull = localization / inverse_temperature; "
        f"c = step_size {TIMES} (inverse_temperature {TIMES} largest curvature + localization)."
    )
    headings(figure, "Pilots over a grid of sampler settings", wrap(f"Framed, the choice: {choice}", width, 8.5), about)
    return figure


def _scale(cells: Sequence[Cell], target: float) -> float:
    """Height of a cell, so that the chosen traces fill half of it and the target is visible."""
    chosen = [cell.rise for cell in cells if cell.chosen and np.isfinite(cell.rise).any()]
    highest = max((float(np.nanmax(np.abs(rise))) for rise in chosen), default=target)
    return 1.6 * max(highest, target / 2)


def _draw(axes: Axes, cell: Cell, target: float, top: float) -> None:
    draws = np.arange(cell.rise.shape[1])
    for place, rise in enumerate(cell.rise):
        colour = HURTS if cell.diverged else LINES[place % 2 * 4]
        axes.plot(draws, np.clip(rise, -0.3 * top, 1.05 * top), color=colour, linewidth=0.9)
    axes.axhline(target / 2, color=MUTED, linewidth=0.7, linestyle=(0, (4, 3)))
    axes.axhline(0, color=FAINT, linewidth=0.7)
    axes.set(xlim=(-0.5, len(draws) - 0.5), ylim=(-0.25 * top, top), xticks=[], yticks=[])
    if cell.diverged:
        axes.set_facecolor("#fbe6d9")
        axes.text(0.5, 0.5, "diverged", transform=axes.transAxes, ha="center", va="center", **type_of(8, HURTS))
    else:
        words = f"d {cell.dimension:.3g}  nl {cell.nonlinearity:.2g}"
        axes.text(0.5, 1.03, words, transform=axes.transAxes, ha="center", va="bottom", **type_of(7, MUTED))
    for spine in axes.spines.values():
        spine.set(color=INK if cell.chosen else FAINT, linewidth=2.2 if cell.chosen else 0.8)


def _label(axes: Axes, cell: Cell, rows: int, top: float) -> None:
    if cell.row == rows - 1:
        axes.set_xlabel(f"c {cell.stiffness:.2g}", **type_of(8))
    if cell.block == 0 and cell.column == 0:
        pull = cell.sampler.localization / cell.sampler.inverse_temperature
        axes.set_ylabel(f"pull {pull:.2g}", **type_of(8))
        axes.set_yticks([0, round(top / 1.6, -int(np.floor(np.log10(top / 1.6))))])
        axes.tick_params(length=2, color=MUTED, labelsize=7, labelcolor=MUTED)
