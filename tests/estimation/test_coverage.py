"""Do intervals of ±1.96 standard errors hold the long-run value for a real network, sampled by the whole engine?

A small network trained on the digits; many estimates that differ in nothing but their seed. The long-run value is that
of all their draws together, centred together: tens of times as many as in any one of them.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import bif_lightning as bl
from bif_lightning.config import SGLD, Chains
from bif_lightning.sampling.choice import judge

pytestmark = pytest.mark.statistical

ESTIMATES = 16
CURVATURE = 1.5  # λmax of the trained network, about
WARM = 1e4 * CURVATURE / 5  # a pull against which the slowest mode relaxes in about 17 steps


def examples(first: int, last: int) -> TensorDataset:
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))[first:last]
    inputs = torch.tensor(digits.data[order] / 16, dtype=torch.float32)
    return TensorDataset(inputs, torch.from_numpy(digits.target[order]))


def trained() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    inputs, labels = examples(0, 200).tensors
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model


def cross_entropy(module: nn.Module, batch: list[Tensor]) -> Tensor:
    return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_intervals_of_a_network_hold_the_long_run_value() -> None:
    """Measured: influence 0.973, correlation 0.964 ± 0.002, with an LLC ratio of 1.28 and 198 independent draws behind
    the mean loss of 400. The test fails for standard errors that are a quarter too small (0.906 and 0.895 ± 0.004)."""
    model, train, query = trained(), examples(0, 100), examples(200, 215)
    sampler = SGLD(step_size=0.7 / (1e4 * CURVATURE + WARM), inverse_temperature=1e4, localization=WARM)
    chains = Chains(thinning=8, burn_in=40)
    found = [
        bl.estimate(
            model, cross_entropy, train, query, training_data=examples(0, 200), sampler=sampler,
            chains=replace(chains, seed=seed), store_traces=True,
        )
        for seed in range(ESTIMATES)
    ]  # fmt: skip
    assert judge(found[0]).word in ("good", "noisy")
    left, right = (np.concatenate([draws(each, side) for each in found]) for side in ("train", "loss"))
    left, right = left - left.mean(0), right - right.mean(0)
    covariance = left.T @ right / len(left)
    truth = {"influence": -covariance, "correlation": covariance / np.outer(left.std(0), right.std(0))}
    for name, value in truth.items():
        inside = [
            np.abs(getattr(each, name) - value) < 1.96 * getattr(each.losses, f"{name}_standard_error")
            for each in found
        ]
        shares = np.array([each.mean() for each in inside])
        error = shares.std(ddof=1) / math.sqrt(ESTIMATES)
        assert shares.mean() + 5 * error > 0.93
        assert shares.mean() - 5 * error < 0.97


def draws(estimate: bl.Estimate, side: str) -> np.ndarray:
    """All draws of a side, one after the other."""
    assert estimate.traces is not None
    values = estimate.traces.train if side == "train" else estimate.traces.columns[side]
    return values.astype(np.float64).reshape(-1, values.shape[-1])
