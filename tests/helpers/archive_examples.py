"""Samples and estimates to write: random numbers of the right shapes, with every optional part at will."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bif_lightning.config import SGLD, Chains
from bif_lightning.results.estimate import Cost, Diagnostics, Divergence, Estimate, Influence, LabelMeans, Traces
from bif_lightning.results.examples import Samples
from bif_lightning.results.token_matrices import InMemoryTokens
from bif_lightning.results.token_products import CovarianceModel, DrawCovariance, GaussianCovariance
from bif_lightning.results.tokens import TokenAxis, Tokens, blocks_of
from bif_lightning.statistics.standard_errors import ErrorModel, ErrorScale
from judged import judged

PNG = b"\x89PNG\r\n\x1a\n"


def make_samples(side: str, size: int, *, classes: Sequence[str] = (), texts: bool = False) -> Samples:
    """Samples with labels and names where there are classes, and with texts and thumbnails where asked for."""
    return Samples(
        ids=tuple(f"{side}-é{row}" for row in range(size)),
        index=np.arange(size)[::-1] * 3,
        labels=np.arange(size) % len(classes) if classes else None,
        label_names=tuple(classes) or None,
        texts=tuple(f"text {row} 日本" for row in range(size)) if texts else None,
        thumbnails=tuple(PNG + bytes([row]) * row for row in range(size)) if texts else None,
        columns=make_columns(size) if texts else None,
        tokens=tuple(tuple(f" ü{row}" * (s % 2) for s in range(row % 4)) for row in range(size)) if texts else None,
        token_ids=tuple(np.arange(row % 4) * 7 for row in range(size)) if texts else None,
    )


def make_columns(size: int) -> dict[str, np.ndarray]:
    """A column of numbers and one of texts, to sort by."""
    hardness = np.where(np.arange(size) % 3, np.arange(size) % 4 / 4, np.nan)
    return {"hardness": hardness, "source": np.array([f"web-ü{row % 2}" for row in range(size)], dtype=object)}


def make_tokens(rng, n: int, q: int, chains: int, draws: int, *, closed_form=False) -> Tokens:
    """Tokens 1, 2, ... of sequences of 0, 1, 2 and 3 tokens."""
    axes, values = {}, []
    for side, size in (("train", n), ("query", q)):
        sequence = np.array([row for row in range(size) for _ in range(1, row % 4)], np.int64)
        position = np.array([s for row in range(size) for s in range(1, row % 4)], np.int64)
        numbers = {name: abs(rng.normal(size=len(sequence))) for name in ("snapshot_loss", "loss", "std")}
        axes[side] = TokenAxis(sequence=sequence, position=position, num_sequences=size, **numbers)
        shape = (3, len(sequence)) if closed_form else (chains, draws, len(sequence))
        values.append(InMemoryTokens(rng.normal(size=shape).astype(np.float32)))
    model: CovarianceModel = DrawCovariance(chains, (draws - draws // 2, draws // 2), "chain", 0.75)
    if closed_form:
        model = GaussianCovariance(abs(rng.normal(size=3)), rng.normal(size=(2, 3, 3)))
    return Tokens(
        **axes, blocks=blocks_of(model, ErrorModel(6, ErrorScale(1.25, 40.5), ErrorScale(1.5, math.nan)), *values)
    )


def make_influence(
    rng, train: int, width: int, *, name="loss", unit="nat", columns=None, conditioned=False, drawn=False
) -> Influence:
    """One observable's matrices; the correlation has an undefined entry."""

    def normal():
        return rng.normal(size=(train, width)).astype(np.float32)

    correlation = np.tanh(normal())
    correlation[-1, -1] = np.nan
    further = {"conditioned": normal(), "conditioned_standard_error": abs(normal())} if conditioned else {}
    if drawn:
        further |= {"influence_draws": normal(), "influence_draws_standard_error": abs(normal())}
    return Influence(
        name=name,
        unit=unit,
        columns=columns,
        influence=normal(),
        influence_standard_error=abs(normal()),
        correlation=correlation,
        correlation_standard_error=abs(normal()) / 10,
        mean=rng.normal(size=width),
        std=abs(rng.normal(size=width)),
        **further,
    )


def make_label_means(rng, train: Samples, query: Samples) -> LabelMeans:
    """Block means for the labels that occur."""
    labels = [np.unique(samples.labels) for samples in (train, query)]
    blocks = [rng.normal(size=(len(labels[0]), len(labels[1]))) for _ in range(4)]
    return LabelMeans(
        train_labels=labels[0],
        query_labels=labels[1],
        influence=blocks[0],
        influence_standard_error=abs(blocks[1]),
        correlation=np.tanh(blocks[2]),
        correlation_standard_error=abs(blocks[3]),
    )


def make_estimate(
    rng,
    n: int,
    q: int,
    *,
    chain_ids=(0, 1),
    draws=5,
    observables=(),
    label_means=None,
    traces=False,
    diverged=(),
    conditioned=False,
    drawn=False,
) -> Estimate:
    """An estimate of n x q; `observables` are Influences, `diverged` are chain ids."""
    chains = len(chain_ids)
    columns = {"loss": q} | {each.name: each.influence.shape[1] for each in observables}

    def normal(*shape):
        return rng.normal(size=(chains, draws, *shape))

    return judged(
        Estimate(
            losses=make_influence(rng, n, q, conditioned=conditioned, drawn=drawn),
            observables={each.name: each for each in observables},
            train_loss=rng.normal(size=n),
            train_std=abs(rng.normal(size=n)),
            snapshot_loss=0.25,
            chain_ids=tuple(chain_ids),
            loss_trace=normal(),
            distance_trace=abs(normal()),
            divergences=tuple(
                Divergence(chain=chain, draw=-1, step=3, loss_before=2.0, loss=np.inf, message=f"chain {chain} left")
                for chain in diverged
            ),
            diagnostics=Diagnostics(
                rhat=1.01,
                ess=40.5,
                llc=3.5,
                llc_standard_error=0.5,
                drift=-0.25,
                score_agreement=np.nan,
                group_agreement=0.625,
            ),
            cost=Cost(seconds=1.5, steps=10, workers=2, extra_bytes=1000),
            sampler=SGLD(step_size=1e-4, inverse_temperature=10.0, localization=10.0),
            chains=Chains(num_chains=chains + len(diverged), num_draws=draws),
            parameters=("layer.weight", "layer.bias"),
            num_weights=12,
            ridge=0.125 if conditioned else None,
            label_means=label_means,
            traces=Traces(
                train=normal(n).astype(np.float32),
                columns={name: normal(width).astype(np.float32) for name, width in columns.items()},
            )
            if traces
            else None,
            notes=("a note",) if diverged else (),
        )
    )


def make_full(rng, n: int = 7, q: int = 4):
    """Train samples, query samples, and an estimate with every optional part."""
    train = make_samples("train", n, classes=("cat", "dog", "ünit"), texts=True)
    query = make_samples("query", q, classes=("cat", "dog"), texts=True)
    observables = (
        make_influence(rng, n, 2, name="accuracy", unit="1", columns=("cat", "dog"), conditioned=True, drawn=True),
        make_influence(rng, n, q, name="margin", unit="m", conditioned=True, drawn=True),
    )
    estimate = make_estimate(
        rng,
        n,
        q,
        chain_ids=(0, 2),
        observables=observables,
        label_means=make_label_means(rng, train, query),
        traces=True,
        diverged=(1,),
        conditioned=True,
        drawn=True,
    )
    stability = np.where(np.arange(q) < 3, 0.5, np.nan)
    diagnostics = replace(estimate.diagnostics, noise_ratio=0.5, llc_ratio=1.25, control_agreement=0.25)
    estimate = replace(estimate, top_stability=stability, diagnostics=diagnostics, effective_dimension=6.5)
    estimate = replace(estimate, alpha=0.25, residual_share=0.0625)
    tokens = make_tokens(rng, n, q, 2, estimate.loss_trace.shape[1])
    return train, query, judged(replace(estimate, tokens=tokens))
