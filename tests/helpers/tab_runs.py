"""Log folders for the tests of the page: influence with known trajectories, hostile words, a broken dump."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from bif_lightning.archive.write import write_dump, write_samples
from bif_lightning.results.estimate import Estimate, Influence
from bif_lightning.results.examples import Samples
from estimates import digits_estimate, estimate_from, influence_of, means_of, texts, with_divergence
from judged import judged
from small_language import by_tokens, sequences

STEPS = (10, 20, 40, 80, 160, 320)
TRAIN, QUERY = 120, 40
NASTY = "<b>bold</b> <script>alert(1)</script>"
WORDS = ("b", "i", "u", "s", "a", "p", "q", "em", "code", "pre", "hr")
ERROR = 0.04
FLIPS = (5, 3)
"""Train row and query row whose correlation goes from -0.5 to a peak at step 80, and down again."""
FLIPPING = (-0.5, -0.45, 0.2, 0.8, 0.4, 0.35)
NOISE = (6, 4)
"""Those of a pair that changes its sign at every step, within the error."""
DIVERGED = 40


def write_digits(folder: Path, steps: tuple[int, ...] = STEPS) -> None:
    """A run of digits: a good one, but that a chain diverged at one step."""
    for files, step in enumerate(steps):
        write_step(folder, step, files / max(len(STEPS) - 1, 1))


def write_step(folder: Path, step: int, progress: float) -> Path:
    """One more dump of the digits."""
    estimate, train, query = digits_estimate(TRAIN, QUERY, progress=progress, seed=step)
    train = described(train)
    correlation = estimate.correlation.copy()
    files = STEPS.index(step) if step in STEPS else len(STEPS) - 1
    correlation[FLIPS] = FLIPPING[files]
    correlation[NOISE] = 0.02 * (-1) ** files
    estimate = with_observables(holding(estimate, correlation, train, query))
    estimate = replace(estimate, diagnostics=replace(estimate.diagnostics, llc=10.0 + files))
    if step == DIVERGED:
        estimate = with_divergence(estimate)
    write_samples(folder, train, query)
    metrics = {"val_loss": 2.0 / (files + 1)}
    return write_dump(folder, estimate, step=step, epoch=files, train=train, query=query, metrics=metrics)


def described(train: Samples) -> Samples:
    """With words of markup, and columns of the user's own to sort by."""
    words = tuple(NASTY if row == FLIPS[0] else f"digit number {row}" for row in range(len(train)))
    columns = {"hardness": np.arange(len(train), 0, -1) / len(train), "=source": np.array(["web", "book"] * 60, object)}
    return replace(train, texts=words, columns=columns)


def holding(estimate: Estimate, correlation: np.ndarray, train: Samples, query: Samples) -> Estimate:
    """The estimate with another correlation, and the influence and label means that belong to it."""
    spread = np.linspace(0.5, 1.5, correlation.shape[1])
    losses = replace(
        estimate.losses,
        correlation=correlation.astype(np.float32),
        influence=(-correlation * spread).astype(np.float32),
        correlation_standard_error=np.full(correlation.shape, ERROR, np.float32),
    )
    return replace(estimate, losses=losses, label_means=means_of(correlation, train, query))


def with_observables(estimate: Estimate) -> Estimate:
    """And an observable with two columns of its own."""
    correlation = estimate.correlation[:, :2]
    accuracy = Influence(
        name="accuracy",
        unit="1",
        columns=("first half", "second half"),
        influence=-correlation,
        influence_standard_error=np.full(correlation.shape, ERROR, np.float32),
        correlation=correlation,
        correlation_standard_error=np.full(correlation.shape, ERROR, np.float32),
        mean=np.array([0.5, 0.6]),
        std=np.array([0.1, 0.1]),
    )
    return replace(estimate, observables={"accuracy": accuracy})


def write_other(folder: Path) -> None:
    """Another run that shares 60 of the train examples, in another order, and 30 of the queries."""
    estimate, train, query = digits_estimate(TRAIN, QUERY, progress=0.5, seed=7)
    rows, columns = np.arange(TRAIN)[::-2], np.arange(30)
    few = taken(train, rows), taken(query, columns)
    correlation = np.clip(estimate.correlation[np.ix_(rows, columns)] + 0.1, -1, 1)
    for step in (40, 320):
        write_samples(folder, *few)
        write_dump(folder, estimate_from(correlation, *few), step=step, epoch=0, train=few[0], query=few[1])


def taken(samples: Samples, rows: np.ndarray) -> Samples:
    def of(values: tuple | None) -> tuple | None:
        return None if values is None else tuple(values[row] for row in rows)

    assert samples.labels is not None
    return replace(
        samples,
        ids=of(samples.ids),
        index=samples.index[rows],
        labels=samples.labels[rows],
        texts=of(samples.texts),
        thumbnails=of(samples.thumbnails),
    )


def write_texts(folder: Path) -> None:
    """A run of texts without thumbnails, of one noisy step, with an observable that does not vary."""

    train, query = texts(30, "train"), texts(12, "query", seed=1)
    correlation = np.random.default_rng(0).normal(0, 0.3, (30, 12)).clip(-1, 1)
    estimate = replace(estimate_from(correlation, train, query), observables={"hits": constant(30)})
    noisy = replace(estimate.diagnostics, noise_ratio=4.0)
    write_samples(folder, train, query)
    write_dump(folder, judged(replace(estimate, diagnostics=noisy)), step=5, epoch=0, train=train, query=query)


def constant(rows: int) -> Influence:
    """The influence on an observable that is the same at every draw."""
    found = influence_of(np.full((rows, 1), np.nan), 0.1, ("all",), name="hits", unit="1")
    nothing = np.zeros((rows, 1), np.float32)
    return replace(found, influence=nothing, influence_standard_error=nothing, std=np.zeros(1))


def write_tokens(folder: Path) -> None:
    """A run of a tiny language model, token by token."""

    def side(name: str, count: int, seed: int) -> Samples:
        ids = [item["input_ids"].tolist() for item in sequences(count, seed)]
        words = tuple(tuple(f" <{WORDS[number]}>" for number in row) for row in ids)
        return Samples(ids=tuple(f"{name}{row}" for row in range(count)), index=np.arange(count), tokens=words)

    train, query = side("line ", 9, 0), side("question ", 4, 1)
    write_samples(folder, train, query)
    write_dump(folder, by_tokens(), step=7, epoch=0, train=train, query=query)


def write_broken(folder: Path) -> None:
    """A dump that was cut in the middle."""
    whole = sorted(folder.glob("step=*.h5"))[0].read_bytes()
    (folder / "step=000000999.h5").write_bytes(whole[: len(whole) // 2])


WRITERS: dict[str, Callable[[Path], None]] = {
    "digits/bif": write_digits,
    "other/bif": write_other,
    "words/bif": write_texts,
    "tokens/bif": write_tokens,
}
