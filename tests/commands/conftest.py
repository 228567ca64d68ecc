"""A real run on disk, written by the archive, with numbers that the tests know."""

from pathlib import Path

import numpy as np
import pytest

from bif_lightning.archive.write import write_dump, write_samples
from bif_lightning.config import SGLD, Chains
from bif_lightning.results.estimate import Cost, Diagnostics, Divergence, Estimate, Influence, LabelMeans
from bif_lightning.results.examples import Samples
from judged import judged

STEPS = (0, 10, 200)
TRAIN = Samples(
    ids=("cat/1", "dog/1", "猫/2", "odd\x1b[31m", "dog/3"),
    index=np.arange(5) + 100,
    labels=np.array([0, 1, 0, -1, 1]),
    label_names=("cat", "dog"),
    texts=("a cat", "a dog", "two\nlines", "escape \x1b[31m", "long " * 40),
)
QUERY = Samples(ids=("q/a", "7", "q/c"), index=np.arange(3), labels=np.array([1, 0, 1]), label_names=("cat", "dog"))
# Column 1: rows 2 and 0 help (influence below 0), 4 and 1 hurt, 3 does neither; row 1 is within its error of 0.
COLUMN = np.array([-0.5, 0.001, -2.0, 0.0, 1.5], np.float32)
ERRORS = np.array([0.1, 0.002, 0.3, 0.1, 0.25], np.float32)


def _influence(name: str, columns: tuple[str, ...] | None, scale: float) -> Influence:
    width = len(columns or QUERY.ids)
    matrix = np.tile((scale * COLUMN)[:, None], (1, width)) * np.array([1, 1, -1])[:width]
    errors = np.tile(ERRORS[:, None], (1, width))
    return Influence(
        name=name,
        unit="nat",
        columns=columns,
        influence=matrix.astype(np.float32),
        influence_standard_error=errors,
        correlation=np.tanh(-matrix).astype(np.float32),
        correlation_standard_error=errors / 10,
        mean=np.ones(width),
        std=np.ones(width),
    )


def estimate(step: int, *, labels: bool = True) -> Estimate:
    """An estimate with one diverged chain at step 200, and a score agreement that is not known at step 0."""
    last = step == STEPS[-1]
    chains = 3 if last else 4
    losses = _influence("loss", None, 1.0 + step / 100)
    means = np.array([[-0.25, 0.5], [0.125, -0.75]])
    trace = np.full((chains, 6), 2.5)
    return judged(
        Estimate(
            losses=losses,
            observables={"margin": _influence("margin", ("easy", "hard"), -1.0)},
            train_loss=np.ones(5),
            train_std=np.ones(5),
            snapshot_loss=2.302585,
            chain_ids=tuple(range(chains)),
            loss_trace=trace,
            distance_trace=trace,
            divergences=(
                Divergence(chain=3, draw=4, step=5, loss_before=2.5, loss=1e9, message="chain 3 diverged at draw 4"),
            )
            * last,
            diagnostics=Diagnostics(
                rhat=1.0123,
                ess=12.34,
                llc=15.25,
                llc_standard_error=0.75,
                drift=-0.5,
                score_agreement=float("nan") if step == 0 else 0.91,
                group_agreement=float("nan") if step == 0 else 0.86,
                noise_ratio=0.125,
                llc_ratio=1.25,
                control_agreement=0.375,
            ),
            cost=Cost(seconds=3.21, steps=24, workers=1, extra_bytes=1000),
            sampler=SGLD(step_size=1e-5, inverse_temperature=100.0, localization=10.0),
            chains=Chains(num_chains=4, num_draws=6),
            parameters=("weight",),
            num_weights=10,
            label_means=LabelMeans(
                train_labels=np.array([0, 1]),
                query_labels=np.array([0, 1]),
                influence=-means,
                influence_standard_error=np.full((2, 2), 0.02),
                correlation=means,
                correlation_standard_error=np.full((2, 2), 0.01),
            )
            if labels
            else None,
            notes=("the loss has dropout",) * last,
            top_stability=np.array([0.75, 0.5, np.nan]),
        )
    )


def write_run(folder: Path, *, labels: bool = True) -> Path:
    write_samples(folder, TRAIN, QUERY)
    for step in STEPS:
        write_dump(folder, estimate(step, labels=labels), step=step, epoch=step // 10, train=TRAIN, query=QUERY)
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("cli") / "bif")


@pytest.fixture
def own_run(tmp_path: Path) -> Path:
    """A run that a test may break; it has no label means."""
    return write_run(tmp_path / "bif", labels=False)
