"""Do intervals of ±1.96 standard errors hold the value that they are for?

Draws are simulated (AR(1) modes from their stationary law), everything after them is the package's own code.
With 24 batches a 95 % interval of ±1.96 holds 93.8 % (the t quantile is 2.07), which is what independent draws give.
Two things take away from that. Chains that remember: batches look alike within a chain; `inflation` puts most of it
back. And short chains: a covariance about a chain's own mean is too small by about the share of a chain that its
slowest mode remembers, which is a bias and no matter of errors; correlations have little of it.
"""

import numpy as np
import pytest
import torch

from bif_lightning.blocks import Maker
from bif_lightning.config import Chains
from bif_lightning.matrices import Matrices, compute
from bif_lightning.placement import Placement
from bif_lightning.recorder import Record, batch_lengths
from targets import Regression, gaussian_influence

TRAIN, QUERY = Regression.random(8, 6, 0), Regression.random(5, 6, 1)
VARIANCE = np.geomspace(0.2, 0.05, 6)
CENTER = TRAIN.snapshot


def losses(world: Regression, w: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(0.5 * (w @ world.inputs.T - world.targets) ** 2)


def estimated(chains: Chains, w: np.ndarray) -> Matrices:
    """All matrices from weights [chain, draw, weight]."""
    records = [
        Record(c, batch_lengths(chains), True, [losses(TRAIN, w[c])], [losses(QUERY, w[c])])
        for c in range(chains.num_chains)
    ]
    matrices = compute(Maker.of(records, (8, 5, 5), chains.centring), 1, Placement())
    assert matrices is not None
    return matrices


def walk(chains: Chains, memory: float, rng: np.random.Generator) -> np.ndarray:
    """Modes that relax in `memory` draws (the slowest) to an eighth of that."""
    factor = np.exp(-1 / np.geomspace(memory, memory / 8, 6)) if memory else np.zeros(6)
    x = rng.normal(size=(chains.num_chains, 6))
    out = np.empty((chains.num_chains, chains.num_draws, 6))
    for t in range(chains.num_draws):
        x = factor * x + np.sqrt(1 - factor**2) * rng.normal(size=x.shape)
        out[:, t] = x
    return CENTER + out * np.sqrt(VARIANCE)


def coverage(chains: Chains, memory: float, estimates: int) -> tuple[float, float, float]:
    """Share of intervals that hold the mean of all estimates, that hold the exact correlation, and the ratio of
    reported to true standard deviation; all of the correlation."""
    rng = np.random.default_rng(0)
    got = [estimated(chains, walk(chains, memory, rng)) for _ in range(estimates)]
    value, error = np.array([m.correlation for m in got]), np.array([m.correlation_error for m in got])
    covariance = np.diag(VARIANCE)
    query = Regression(QUERY.inputs, QUERY.targets, CENTER)
    variance = [-np.diag(gaussian_influence(a, a, CENTER, covariance)) for a in (TRAIN, query)]
    exact = -gaussian_influence(TRAIN, query, CENTER, covariance) / np.sqrt(np.outer(*variance))
    own = float((np.abs(value - value.mean(0)) < 1.96 * error).mean())
    size = float(np.sqrt((error**2).mean() / value.var(0, ddof=1).mean()))
    return own, float((np.abs(value - exact) < 1.96 * error).mean()), size


@pytest.mark.parametrize(
    ("num_chains", "memory", "least", "least_exact"),
    [
        (4, 0, 0.90, 0.90),  # measured 0.93, 0.93
        (4, 5, 0.88, 0.88),  # 0.92, 0.92; 0.89, 0.89 without inflation
        (4, 20, 0.84, 0.82),  # 0.89, 0.89; 0.79, 0.79 without
        (1, 0, 0.86, 0.86),  # 0.90, 0.90: batches of 4 draws
        (1, 5, 0.81, 0.81),  # 0.86, 0.86
        (15, 5, 0.90, 0.90),  # 0.94, 0.93
        (15, 20, 0.89, 0.84),  # 0.93, 0.90
        (30, 5, 0.89, 0.87),  # 0.93, 0.91
    ],
)
def test_intervals_hold_their_value(num_chains: int, memory: float, least: float, least_exact: float) -> None:
    chains = Chains(num_chains=num_chains, num_draws=100)
    own, exact, size = coverage(chains, memory, 60)
    assert own > least
    assert exact > least_exact
    assert 0.75 < size < 1.35


def test_errors_of_one_short_chain_that_remembers_are_known_to_be_too_small() -> None:
    """One chain of five memories: nothing in it shows how far it could have gone. Measured 0.74; use several."""
    own, _, size = coverage(Chains(num_chains=1, num_draws=100), 20, 60)
    assert 0.6 < own < 0.9
    assert 0.5 < size < 1.0
