"""Pictures of one snapshot, each with its tag: for TensorBoard's Images tab, and for other loggers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from bif_lightning import plots
from bif_lightning.results.estimate import CORRELATION_SIGN, Estimate
from bif_lightning.results.examples import Samples
from bif_lightning.tensorboard.records import tag_part
from bif_lightning.tensorboard.texts import EFFECT_SIGN

MAX_CARDS = 3  # a picture of cards takes 0.1 s to draw while training waits


@dataclass(frozen=True)
class Picture:
    """A figure, its tag, and what it shows."""

    tag: str
    figure: Figure
    words: str


@dataclass(frozen=True)
class History:
    """Correlation of some pairs over training.

    Attributes:
        title: of their picture.
        names: of the pairs.
        steps: global training steps, ascending.
        values, errors: the correlations and their standard errors.
    """

    title: str
    names: tuple[str, ...]
    steps: tuple[int, ...]
    values: Float[np.ndarray, "pair step"]
    errors: Float[np.ndarray, "pair step"]


def pictures(
    estimate: Estimate,
    train: Samples,
    query: Samples,
    *,
    views: Sequence[str],
    columns: Sequence[int],
    k: int = 5,
    history: History | None = None,
) -> Iterator[Picture]:
    """Draw the pictures of some views.

    Args:
        estimate: of the influence at one snapshot.
        train, query: who its rows and columns are.
        views: of `summaries.VIEWS`; those without pictures are passed over.
        columns: positions of queries; the first three get cards.
        k: train examples a side on the cards.
        history: what the view "trajectories" shows.
    """
    if "heatmap" in views:
        figure = plots.heatmap(estimate.correlation, train, query, verdict=_checks(estimate))
        yield Picture("bif/heatmap", figure, f"Every train example with every query. {CORRELATION_SIGN}")
    if "labels" in views and estimate.label_means is not None:
        figure = plots.label_means(estimate.label_means, train.label_names or query.label_names)
        yield Picture("bif/labels", figure, f"Means by label. {CORRELATION_SIGN}")
    if "chains" in views:
        what = "at each draw" if estimate.sampler.paired else "along each chain"
        figure = plots.chain_losses(estimate)
        yield Picture("bif/chains", figure, f"Mean train loss {what}, nats; dashed: at the snapshot.")
    if "cards" in views:
        for column in columns[:MAX_CARDS]:
            figure = plots.extremes(estimate, column, train, query, k=k)
            yield Picture(f"bif/top_cards/{tag_part(query.ids[column])}", figure, EFFECT_SIGN)
    if "trajectories" in views and history is not None:
        figure = plots.trajectories(history.steps, history.values, history.errors, history.names, title=history.title)
        yield Picture("bif/trajectories", figure, f"{history.title}. {CORRELATION_SIGN}")


def _checks(estimate: Estimate) -> str:
    """The verdict, with what it is on."""
    word = estimate.verdict.word
    return {"good": "all checks passed", "not judged": "not checked"}.get(word, f"a check failed: {word}")
