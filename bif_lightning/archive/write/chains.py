"""Datasets of a dump about the chains: loss traces, diagnostics, divergences, draws, cost."""

from collections.abc import Iterator, Sequence

import numpy as np

from bif_lightning.archive.schema import (
    COSTS,
    DIAGNOSTICS,
    LOSS,
    PARTICULARS,
    Variable,
    float32,
    float64,
    int64,
    string,
    text_column,
)
from bif_lightning.results.estimate import Divergence, Estimate, Traces


def chains(estimate: Estimate) -> Iterator[Variable]:
    """Loss and distance traces of the chains, and the diagnostics."""
    loss, dims = np.asarray(estimate.loss_trace, np.float64), ("chain", "draw")
    yield int64("chains/chain", estimate.chain_ids, "id of each chain that did not diverge", ("chain",))
    yield int64("chains/draw", np.arange(loss.shape[1]), "recorded draw within a chain", ("draw",))
    yield float64("chains/loss", loss, "nat", "mean train loss at each draw", dims)
    words = "distance of each draw from the snapshot, |w - w*|"
    yield float64("chains/distance", estimate.distance_trace, "1", words, dims)
    llc = (estimate.sampler.inverse_temperature or 0.0) * (loss.mean(axis=1) - estimate.snapshot_loss)
    yield float64("chains/chain_llc", llc, "nat", "estimated local learning coefficient of each chain", ("chain",))
    numbers = vars(estimate.diagnostics) | {"snapshot_loss": estimate.snapshot_loss}
    for name, (units, long_name) in DIAGNOSTICS.items():
        yield float64(f"chains/{name}", numbers[name], units, long_name)
    for name, (units, long_name) in PARTICULARS.items():
        if (value := getattr(estimate, name)) is not None:
            yield float64(f"chains/{name}", value, units, long_name)
    words = "whether the estimate is reliable, why, and what to change"
    text = string(str(estimate.verdict))
    yield Variable(path="chains/verdict", dims=(), values=text, units=None, long_name=words)


def stability(values: np.ndarray) -> Variable:
    """Agreement of two halves of the draws on the extremes of each query."""
    words = (
        "share of the 10 most helpful and 10 most harmful train examples by one half of the draws (Subspace: of the "
        "examples of its curvature) that are among those of the other half"
    )
    return float64("top_stability", values, "1", words, ("query",))


def divergences(divergences: Sequence[Divergence]) -> Iterator[Variable]:
    """The chains that diverged."""
    dims = ("divergence",)
    yield int64("divergences/divergence", np.arange(len(divergences)), "index of the divergence", dims)
    columns = {name: [getattr(each, name) for each in divergences] for name in Divergence.__dataclass_fields__}
    yield int64("divergences/chain", columns["chain"], "id of the chain that diverged", dims)
    yield int64("divergences/draw", columns["draw"], "recorded draw at which it diverged, -1 within burn-in", dims)
    yield int64("divergences/step", columns["step"], "sampler step at which it diverged", dims)
    yield float64("divergences/loss_before", columns["loss_before"], "nat", "loss before that step", dims)
    yield float64("divergences/loss", columns["loss"], "nat", "loss after that step", dims)
    yield text_column("divergences/message", columns["message"], "description of the divergence", *dims)


def traces(estimate: Estimate, traces: Traces) -> Iterator[Variable]:
    """Values of every loss and observable at each recorded draw."""
    dims = ("chain", "draw")
    yield int64("traces/chain", estimate.chain_ids, "id of each chain", ("chain",))
    yield int64("traces/draw", np.arange(traces.train.shape[1]), "recorded draw within a chain", ("draw",))
    words = "loss of each train example at each draw"
    yield float32("traces/train_loss", traces.train, "nat", words, (*dims, "train"))
    for name, values in traces.columns.items():
        influence = estimate.losses if name == LOSS else estimate.observables[name]
        column = "query" if influence.columns is None else f"{name}_column"
        words = "loss of each query at each draw" if name == LOSS else f"{name} at each draw"
        yield float32(f"traces/{name}", values, influence.unit, words, (*dims, column))


def cost(estimate: Estimate) -> Iterator[Variable]:
    """Time and memory of the estimate."""
    for name, (units, long_name) in COSTS.items():
        value = getattr(estimate.cost, name)
        if name == "seconds":
            yield float64(f"cost/{name}", value, units, long_name)
        else:
            yield int64(f"cost/{name}", value, long_name, units=units)
