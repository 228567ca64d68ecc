"""What TensorBoard's Text tab shows: the introduction, and a table of train examples for each query."""

import math
from collections.abc import Iterator, Sequence

from bif_lightning.config import Sampler
from bif_lightning.plots.ranking import strongest
from bif_lightning.plots.style import label_name, with_error
from bif_lightning.results.bands import is_clear
from bif_lightning.results.estimate import CORRELATION_SIGN, Estimate
from bif_lightning.results.examples import Samples

# TensorBoard breaks words to keep a table within the page: a long text would squeeze the other columns.
_LONGEST = 90

EFFECT_SIGN = (
    "effect = Cov(train loss, query loss), which is -influence of the dumps. Above 0, more weight on the train example "
    "lowers the query's loss: it helps. Below 0 it hurts. bif-lightning top ranks a snapshot by the same."
)

_DRAWN = {
    "SGLD": "chains of stochastic gradient Langevin dynamics were drawn around it",
    "Pairs": "weights were drawn around it, independently and in pairs that mirror one another",
    "Subspace": "the posterior around it was computed in closed form, and checked at a few independent draws",
}


def read_me(sampler: Sampler) -> str:
    """The introduction, in the words of the sampler that ran."""
    kind = type(sampler).__name__
    measures = "how complex is the model (`llc`), do two halves agree (`group_agreement`), and more"
    if not sampler.paired:
        measures = f"is the sampling sound (`rhat`, `ess`, `drift`), {measures}"
    shape = "independent draws scatter about their mean" if sampler.paired else "it should rise, then level off"
    return _READ_ME.format(drawn=_DRAWN.get(kind, "weights were drawn around it"), measures=measures, shape=shape)


_READ_ME = f"""### Bayesian influence, as this run trains

At each snapshot of the weights, {{drawn}}. So the loss of every *train* example is compared
with the loss of every *query*. The horizontal axis is the global training step.

**The sign.** {CORRELATION_SIGN} Blue helps, orange hurts, white is zero.
{EFFECT_SIGN}

**The error.** ± is one Monte Carlo standard error. Within two of them the sign is not established, and is shown in
grey. Agreement between two halves of an estimate cannot show a bias that both share.

| where | what |
|---|---|
| the **Influence** tab | each matrix: move through training, zoom, click a pair to see it evolve |
| Scalars, `bif/` | {{measures}} |
| Custom Scalars | median and 5 % to 95 % of all correlations; same label and other labels; named pairs with a band |
| Images, `bif/heatmap` | correlation of every train example with every query, ordered by label |
| Images, `bif/labels` | mean correlation label by label, with standard errors |
| Images, `bif/chains` | loss at each draw; dashed, at the snapshot: {{shape}} |
| Images, `bif/top_cards/...` | one query, and the train examples with the largest effect on it at that step |
| Images, `bif/trajectories` | correlation of some pairs over training, with a band |
| Text, `bif/verdict` | can this snapshot be trusted, and what to change |
| Text, `bif/top_table/...` | the same as a table |
| Histograms and Distributions, `bif/correlations` | the spread of all correlations |
| HParams | numbers of the last snapshot, beside hyperparameters |

**See every step.** TensorBoard keeps 10 images a tag, chosen at random. Start it with
`tensorboard --logdir DIR --samples_per_plugin images=1000` to keep all of them. The Influence tab reads the dumps
themselves, and so has all. Set *Smoothing* to 0: a smoothed
curve hides the changes that influence is measured for.
"""


def escape(text: str, longest: int = _LONGEST) -> str:
    """Text as literal Markdown for one table cell: nothing in it is markup, and it is cut to a bounded length.

    >>> escape("a|b *c*")
    'a&#124;b &#42;c&#42;'
    """
    flat = " ".join(text.split())
    short = flat if len(flat) <= longest else flat[: longest - 1].rstrip() + "…"
    return "".join(char if char.isalnum() or char in " .,;…" else f"&#{ord(char)};" for char in short)


def top_table(estimate: Estimate, column: int, train: Samples, query: Samples, k: int) -> str:
    """Two Markdown tables, of the k most helpful and of the k most harmful train examples of one query.

    They are ranked by their effect, as `bif_lightning.top` ranks one snapshot. Columns: train id, effect and
    correlation ± standard error, and label and text where there are any.
    """
    helpful, harmful = strongest(estimate.influence[:, column], k, -1)
    heads = ["train example", "effect ± standard error, nat²", "correlation ± standard error"]
    heads += ["label"] * (train.labels is not None) + ["text"] * (train.texts is not None)
    lines = [_query_line(query, column)]
    for effect, rows in (("Helps most", helpful), ("Hurts most", harmful)):
        lines += ["", f"**{effect}**" if rows.size else f"**{effect}**: none", ""]
        if rows.size:
            lines += [_table_row(heads), _table_row(["---"] * len(heads))]
            lines += [_table_row(list(_cells(estimate, int(row), column, train))) for row in rows]
    lines += ["", f"Ranked by the effect at this step. {EFFECT_SIGN} Unsure: within 1.96 standard errors of zero.", ""]
    stable = None if estimate.top_stability is None else float(estimate.top_stability[column])
    if stable is not None and not math.isnan(stable):
        lines.append(
            "Of the 10 most helpful and 10 most harmful by half of the draws (of Subspace: of the examples behind its "
            f"curvature), the rest finds {stable:.0%} too."
        )
    return "\n".join([*lines, "", verdict_text(estimate)])


def verdict_text(estimate: Estimate) -> str:
    """Whether the snapshot can be trusted, as Markdown."""
    verdict = estimate.verdict
    advice = f" To do: {escape(verdict.advice, 400)}." if verdict.advice else ""
    return f"This snapshot is **{verdict.word}**: {escape(verdict.sentence, 400)}.{advice}"


def _query_line(query: Samples, column: int) -> str:
    label = "" if query.labels is None else f", label **{_label(query, column)}**"
    text = "" if query.texts is None or not query.texts[column].strip() else f": {escape(query.texts[column], 400)}"
    return f"Query **{escape(query.ids[column])}**{label}{text}"


def _label(samples: Samples, place: int) -> str:
    return "" if samples.labels is None else escape(label_name(int(samples.labels[place]), samples.label_names))


def _cells(estimate: Estimate, row: int, column: int, train: Samples) -> Iterator[str]:
    losses = estimate.losses
    yield escape(train.ids[row])
    yield _number(-float(losses.influence[row, column]), float(losses.influence_standard_error[row, column]))
    yield _number(float(losses.correlation[row, column]), float(losses.correlation_standard_error[row, column]))
    if train.labels is not None:
        yield _label(train, row)
    if train.texts is not None:
        yield escape(train.texts[row])


def _number(value: float, error: float) -> str:
    return with_error(value, error) + ("" if is_clear(value, error) else ", unsure")


def _table_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
