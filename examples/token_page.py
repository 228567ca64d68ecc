"""A page by itself that colours the tokens of the queries by influence, with curves over training."""

import html
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

WIDTH, HEIGHT, LEFT, TOP = 560, 260, 56, 18
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9")  # told apart by all eyes

_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Influence token by token</title><style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
pre { font: 14px/1.7 ui-monospace, monospace; white-space: pre-wrap; padding: .6rem .8rem; border-radius: 6px;
  border: 1px solid #8884; margin: .5rem 0; tab-size: 4; }
.t { border-radius: 3px; } .t:hover { outline: 1px solid currentColor; } .none { opacity: .45; }
.controls { display: flex; gap: 1.2rem; flex-wrap: wrap; align-items: center; position: sticky; top: 0;
  padding: .6rem 0; background: Canvas; }
#told { min-height: 1.5em; font-variant-numeric: tabular-nums; }
svg { max-width: 44rem; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; } svg .axis { stroke: currentColor; opacity: .5; }
</style>"""

_SCRIPT = """<script>
const data = JSON.parse(document.getElementById("data").textContent);
const [step, kind, told] = ["step", "kind", "told"].map((id) => document.getElementById(id));
const tokens = [...document.querySelectorAll(".t")];
function paint() {
  const s = data.snapshots[step.value], row = s.value[kind.value], error = s.error[kind.value];
  document.getElementById("at").textContent = s.step;
  const most = data.scale;
  tokens.forEach((token, i) => {
    const x = Math.max(-1, Math.min(1, row[i] / most)), clear = Math.abs(row[i]) > 1.96 * error[i];
    const colour = x > 0 ? "0,114,178" : "213,94,0";
    token.style.background = `rgba(${colour},${(clear ? 0.85 : 0.25) * Math.abs(x)})`;
    token.title = `${row[i].toFixed(3)} ± ${(1.96 * error[i]).toFixed(3)}${clear ? "" : " (not clear)"}`;
    token.onmouseenter = () => told.textContent = `${JSON.stringify(token.textContent)}: ${token.title}`;
  });
}
step.oninput = kind.onchange = paint; paint();
</script>"""


@dataclass(frozen=True)
class Snapshot:
    """What one dump says.

    Attributes:
        step: of training.
        rows, columns: kinds of train and of query tokens.
        by_kind: mean correlations of tokens of two kinds.
        by_token: those of train tokens of each kind with every query token.
        stored: the dump.
    """

    step: int
    rows: list[str]
    columns: list[str]
    by_kind: Any
    by_token: Any
    stored: Any

    def pair(self, row: str, column: str) -> tuple[float, float]:
        """Mean correlation of two kinds, and its standard error."""
        if row not in self.rows or column not in self.columns:
            return float("nan"), float("nan")
        place = self.rows.index(row), self.columns.index(column)
        return float(self.by_kind.value[place]), float(self.by_kind.standard_error[place])

    def same(self, kind: str) -> tuple[float, float]:
        """Of tokens of one kind among themselves."""
        return self.pair(kind, kind)

    def excess(self, kind: str) -> tuple[float, float]:
        """That less the mean over other kinds; the error is an upper bound, as if all erred together."""
        others = [self.pair(row, kind) for row in self.rows if row != kind]
        value, error = self.same(kind)
        rest = [other for other, _ in others]
        return value - float(np.mean(rest)), error + float(np.mean([each for _, each in others]))


def page(snapshots: list[Snapshot]) -> str:
    """The whole page."""
    last = snapshots[-1]
    values = np.concatenate([each.by_token.value for each in snapshots])
    data = {
        "scale": float(np.nanpercentile(abs(values), 98)),
        "snapshots": [
            {"step": each.step, "value": _rounded(each.by_token.value), "error": _rounded(each.by_token.standard_error)}
            for each in snapshots
        ],
    }
    kinds = "".join(f'<option value="{place}">{html.escape(name)}</option>' for place, name in enumerate(last.rows))
    inline = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return f"""{_HEAD}<h1>Influence token by token</h1>
<p>Each token below is coloured by how its loss moves with the losses of all training tokens of one kind, over a cloud
of weights around those of this step (mean correlation). <b style="color:#0072b2">Blue</b>: learning those training
tokens better makes this token better predicted, too: they help. <b style="color:#d55e00">Orange</b>: they hurt. Pale:
the 95 % interval holds 0. Faint text has no loss.</p>
<div class="controls"><label>training tokens <select id="kind">{kinds}</select></label>
<label>step <input id="step" type="range" min="0" max="{len(snapshots) - 1}" value="{len(snapshots) - 1}">
<output id="at"></output></label><span id="told">hover a token for its value</span></div>
{_texts(last.stored)}
<h2>When tokens of a kind come to move together</h2>
<p>Mean correlation of query tokens with training tokens of the same kind, with 95 % intervals; dotted: with training
tokens of other kinds.</p>
{curves(snapshots)}
<script id="data" type="application/json">{inline}</script>{_SCRIPT}</html>
"""


def _rounded(matrix: np.ndarray) -> list[list[float]]:
    return [[round(float(value), 4) for value in row] for row in np.nan_to_num(matrix)]


def _texts(stored: Any) -> str:
    with_loss = set(zip(stored.query.sequence.tolist(), stored.query.position.tolist(), strict=True))
    out = []
    for row in range(stored.query.num_sequences):
        spans = []
        for position, text in enumerate(stored.texts("query", row) or []):
            shown = html.escape(text)
            spans.append(f'<span class="{"t" if (row, position) in with_loss else "none"}">{shown}</span>')
        out.append(f"<pre>{''.join(spans)}</pre>")
    return "\n".join(out)


def curves(snapshots: list[Snapshot]) -> str:
    """An SVG of mean correlations within kinds, over log-spaced steps, with bands."""
    kinds = [name for name in snapshots[-1].rows if name in snapshots[-1].columns]
    same = {name: np.array([each.same(name) for each in snapshots]) for name in kinds}
    other = {name: np.array([each.same(name)[0] - each.excess(name)[0] for each in snapshots]) for name in kinds}
    every = np.concatenate([band[:, 0] for band in same.values()])
    low, high = min(0.0, 1.3 * float(every.min())), max(0.02, 1.3 * float(every.max()))  # wide bands may be cut
    x = np.log([each.step for each in snapshots])
    across = LEFT + (x - x[0]) / (x[-1] - x[0]) * (WIDTH - LEFT - 10)

    def up(values: np.ndarray) -> np.ndarray:
        return TOP + (high - np.clip(values, low, high)) / (high - low) * (HEIGHT - TOP - 30)

    def line(values: np.ndarray) -> str:
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, up(values), strict=True))

    parts = []
    for name, colour in zip(kinds, COLOURS, strict=False):
        value, error = same[name].T
        band = line(value - 1.96 * error) + " " + " ".join(reversed(line(value + 1.96 * error).split()))
        parts.append(f'<polygon points="{band}" fill="{colour}" opacity=".15"/>')
        parts.append(f'<polyline points="{line(value)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<polyline points="{line(other[name])}" fill="none" stroke="{colour}" stroke-dasharray="2 4"/>')
    legend = "".join(
        f'<text x="{LEFT + 12}" y="{TOP + 16 * place + 4}" style="fill:{colour}">{html.escape(name)}</text>'
        for place, (name, colour) in enumerate(zip(kinds, COLOURS, strict=False))
    )
    ticks = "".join(
        f'<text x="{a:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{each.step}</text>'
        for a, each in zip(across, snapshots, strict=True)
    )
    marks = "".join(
        f'<text x="{LEFT - 6}" y="{up(np.array([value]))[0] + 4:.1f}" text-anchor="end">{value:.2f}</text>'
        for value in (low, 0.0, high)
    )
    zero = up(np.zeros(1))[0]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="mean correlation within kinds, by step">'
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - 10}" y1="{zero:.1f}" y2="{zero:.1f}"/>'
        f"{''.join(parts)}{legend}{ticks}{marks}</svg>"
    )
