"""Estimates for the tests of plots and summaries: ten digits, influence with structure, honest errors."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from bif_lightning.config import SGLD, Chains
from bif_lightning.results.estimate import Cost, Diagnostics, Divergence, Estimate, Influence, LabelMeans
from bif_lightning.results.examples import Samples
from judged import judged

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def png_of(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray((255 - pixels * 15.9).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def digits(start: int, count: int, name: str) -> tuple[Samples, np.ndarray]:
    """Some of scikit-learn's 8 x 8 digits as samples, and their pixels as unit vectors about the mean."""
    data = load_digits()
    images, labels = data.images[start : start + count], data.target[start : start + count]
    samples = Samples(
        ids=tuple(f"{name}-{start + place}" for place in range(count)),
        index=np.arange(start, start + count),
        labels=labels,
        label_names=DIGITS,
        thumbnails=tuple(png_of(image) for image in images),
    )
    flat = images.reshape(count, -1) - data.images.reshape(-1, 64).mean(0)
    return samples, flat / np.linalg.norm(flat, axis=1, keepdims=True)


def texts(count: int, name: str, seed: int = 0) -> Samples:
    """Samples with texts, labels and hostile characters."""
    rng = np.random.default_rng(seed)
    words = ["the", "old", "river", "keeps", "slow", "time", "|", "asks", "*why*", "it", "<b>turns</b>", "$x^2$", "河"]
    return Samples(
        ids=tuple(f"{name}/{place}" for place in range(count)),
        index=np.arange(count),
        labels=rng.integers(0, 2, count),
        label_names=("negative", "positive"),
        texts=tuple(" ".join(rng.choice(words, 40)) for _ in range(count)),
    )


def bare(count: int, name: str) -> Samples:
    return Samples(ids=tuple(f"{name}{place}" for place in range(count)), index=np.arange(count))


def influence_of(
    correlation: np.ndarray, error: float, columns: tuple[str, ...] | None = None, **more: Any
) -> Influence:
    spread = np.linspace(0.5, 1.5, correlation.shape[1])
    return Influence(
        name=more.get("name", "loss"),
        unit=more.get("unit", "nat"),
        columns=columns,
        influence=(-correlation * spread).astype(np.float32),
        influence_standard_error=np.full(correlation.shape, error, np.float32) * spread.astype(np.float32),
        correlation=correlation.astype(np.float32),
        correlation_standard_error=np.full(correlation.shape, error, np.float32),
        mean=np.linspace(0.1, 2.0, correlation.shape[1]),
        std=spread,
    )


def means_of(correlation: np.ndarray, train: Samples, query: Samples, error: float = 0.015) -> LabelMeans:
    assert train.labels is not None
    assert query.labels is not None
    rows, columns = (np.unique(labels[labels >= 0]) for labels in (train.labels, query.labels))
    blocks = np.array(
        [
            [np.nanmean(correlation[train.labels == row][:, query.labels == column]) for column in columns]
            for row in rows
        ]
    )
    errors = np.full(blocks.shape, error)
    return LabelMeans(
        train_labels=rows,
        query_labels=columns,
        influence=-blocks,
        influence_standard_error=errors,
        correlation=blocks,
        correlation_standard_error=errors,
    )


def estimate_from(
    correlation: np.ndarray, train: Samples, query: Samples, *, seed: int = 0, chains: int = 4, draws: int = 100
) -> Estimate:
    """An estimate that holds this correlation, with traces that look like real ones."""
    rng = np.random.default_rng(seed)
    time = np.arange(draws)
    level = 0.31 + 0.08 * (1 - np.exp(-time / 12))
    noise = np.zeros((chains, draws))
    for draw in range(1, draws):
        noise[:, draw] = 0.9 * noise[:, draw - 1] + rng.normal(0, 0.004, chains)
    labelled = train.labels is not None and query.labels is not None
    return judged(
        Estimate(
            losses=influence_of(correlation, 0.04),
            observables={},
            train_loss=rng.random(len(train)),
            train_std=rng.random(len(train)),
            snapshot_loss=0.31,
            chain_ids=tuple(range(chains)),
            loss_trace=level + noise,
            distance_trace=np.sqrt(time + 1.0) * np.ones((chains, 1)),
            divergences=(),
            diagnostics=Diagnostics(
                rhat=1.012,
                ess=231.4,
                llc=12.31,
                llc_standard_error=0.42,
                drift=0.7,
                score_agreement=0.91,
                noise_ratio=0.2,
                llc_ratio=1.3,
                control_agreement=0.3,
            ),
            cost=Cost(seconds=3.5, steps=400, workers=2, extra_bytes=1 << 20),
            sampler=SGLD(step_size=1e-5, inverse_temperature=1000.0, localization=100.0),
            chains=Chains(num_chains=chains, num_draws=draws, burn_in=10, thinning=2),
            parameters=("weight",),
            num_weights=650,
            label_means=means_of(correlation, train, query) if labelled else None,
            top_stability=np.where(np.arange(len(query)) < 5, 0.75, np.nan),
        )
    )


def digits_estimate(
    train_count: int = 300, query_count: int = 80, *, progress: float = 1.0, seed: int = 0
) -> tuple[Estimate, Samples, Samples]:
    """Digits whose influence follows their likeness, more and more label by label as `progress` goes to 1."""
    rng = np.random.default_rng(seed)
    train, left = digits(0, train_count, "train")
    query, right = digits(1000, query_count, "query")
    assert train.labels is not None
    assert query.labels is not None
    likeness = left @ right.T
    same = train.labels[:, None] == query.labels[None, :]
    signal = 0.35 * (1 - progress) * likeness + progress * (0.45 * same * np.abs(likeness) + 0.25 * (likeness - 0.15))
    correlation = np.clip(signal + rng.normal(0, 0.04, signal.shape), -1, 1)
    return estimate_from(correlation, train, query, seed=seed), train, query


def with_divergence(estimate: Estimate) -> Estimate:
    gone = Divergence(chain=2, draw=31, step=72, loss_before=0.41, loss=8.1e9, message="loss above its bound")
    return judged(
        replace(
            estimate,
            chain_ids=tuple(chain for chain in estimate.chain_ids if chain != 2),
            loss_trace=np.delete(estimate.loss_trace, 2, 0),
            distance_trace=np.delete(estimate.distance_trace, 2, 0),
            divergences=(gone,),
        )
    )
