"""Worlds with a closed form: linear regression, its posterior, and the law of SGLD's own steps on it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from bif_lightning.config import SGLD
from bif_lightning.data.dataset import Examples
from bif_lightning.losses.observables import LossFn
from bif_lightning.losses.problem import Problem
from bif_lightning.losses.token_losses import zero_absent


class Line(nn.Module):
    """y = w·x, in float64."""

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(weight.copy()))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def half_square(module: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """½(w·x − y)² of each example."""
    x, y = batch
    return 0.5 * (module(x) - y).square()


def problem_with(module: nn.Module, loss: LossFn, train: TensorDataset, query: TensorDataset) -> Problem:
    """A problem with these train examples as the training data, as `estimate` makes it."""
    examples = Examples(train)
    return Problem(
        module=module, loss=zero_absent(loss), objective=lambda module, batch: loss(module, batch).mean(),  # type: ignore[union-attr]
        train=examples, query=Examples(query), training=examples, prepare=lambda batch: batch,
    )  # fmt: skip


@dataclass(frozen=True)
class WeightValues:
    """An observable whose columns are the weights themselves."""

    size: int
    name: str = "weights"
    unit: str = "1"

    def columns(self, num_queries: int) -> tuple[str, ...]:
        return tuple(f"w{i}" for i in range(self.size))

    def measure(self, module: nn.Module, batches: object, losses: Tensor) -> Tensor:
        return torch.cat([p.detach().flatten() for p in module.parameters()])


@dataclass(frozen=True)
class Regression:
    """Examples (x, y) with loss ½(w·x − y)², and the snapshot w*, which is not their minimiser."""

    inputs: np.ndarray
    targets: np.ndarray
    snapshot: np.ndarray

    @classmethod
    def random(cls, examples: int, weights: int, seed: int) -> "Regression":
        rng = np.random.default_rng(seed)
        inputs = rng.normal(size=(examples, weights)) * np.linspace(0.5, 1.5, weights)
        return cls(inputs, rng.normal(size=examples), rng.normal(size=weights) * 0.5)

    def model(self) -> Line:
        return Line(self.snapshot)

    def data(self) -> TensorDataset:
        return TensorDataset(torch.from_numpy(self.inputs), torch.from_numpy(self.targets))

    @property
    def hessian(self) -> np.ndarray:
        """Of the mean loss: the mean of x xᵀ."""
        return self.inputs.T @ self.inputs / len(self.inputs)

    def gradient(self, weight: np.ndarray, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Of the mean loss of some rows."""
        x, y = self.inputs[rows], self.targets[rows]
        return x.T @ (x @ weight - y) / len(x)


@dataclass(frozen=True)
class Law:
    """The Gaussian law of the recorded states of one chain.

    Attributes:
        mean: [draw, weight].
        covariance: [draw, draw, weight, weight].
    """

    mean: np.ndarray
    covariance: np.ndarray

    def losses(self, inputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residuals at the mean [draw, example], and the covariance of x_i·w with x_j·w [draw, draw, i, j]."""
        return self.mean @ inputs.T - targets, np.einsum("ia,tuab,jb->tuij", inputs, self.covariance, inputs)

    def sample_covariance(self, one: Regression, other: Regression) -> np.ndarray:
        """What 1/(T−1)·Σ(l − mean l)(φ − mean φ) of one chain is on average, exactly: [one, other].

        Cov(l_i(t), φ_j(u)) = r_i(t)·r_j(u)·c + ½c², c = Cov(x_i·w_t, x_j·w_u), and E l = ½(r² + Var(x·w)).
        """
        size = len(one.targets)
        inputs = np.concatenate([one.inputs, other.inputs])
        residual, c = self.losses(inputs, np.concatenate([one.targets, other.targets]))
        joint = residual[:, None, :, None] * residual[None, :, None, :] * c + 0.5 * c**2
        draws = len(self.mean)
        level = 0.5 * (residual**2 + np.einsum("ttii->ti", c))
        level = level - level.mean(0)
        within = np.einsum("ttij->ij", joint) - joint.sum((0, 1)) / draws + level.T @ level
        return (within / (draws - 1))[:size, size:]


def chain_law(world: Regression, sampler: SGLD, steps: Sequence[int]) -> Law:
    """Of full-batch SGLD from w*, at these numbers of steps.

    Along an eigenvector of Λ = nβH + γI with eigenvalue λ the state is an AR(1) process with factor
    a = 1 − ελ/2 and variance s²(1 − a^{2t}), s² = 1/(λ(1 − ελ/4)). With a control variate its mean stays at w*,
    with plain gradients it goes from w* to the mode as a^t.
    """
    nb, eps = sampler.inverse_temperature, sampler.step_size
    eigenvalues, vectors = np.linalg.eigh(nb * world.hessian + sampler.localization * np.eye(len(world.snapshot)))
    factor = 1 - eps * eigenvalues / 2
    stationary = 1 / (eigenvalues * (1 - eps * eigenvalues / 4))
    t = np.asarray(steps)
    earlier, apart = np.minimum.outer(t, t)[..., None], np.abs(np.subtract.outer(t, t))[..., None]
    variance = stationary * (1 - factor ** (2 * earlier)) * factor**apart
    covariance = np.einsum("ak,tuk,bk->tuab", vectors, variance, vectors)
    mean = np.tile(world.snapshot, (len(t), 1))
    if sampler.gradient == "minibatch":
        to_mode = -nb * (vectors.T @ world.gradient(world.snapshot)) / eigenvalues
        mean = mean + (to_mode * (1 - factor ** t[:, None])) @ vectors.T
    return Law(mean, covariance)


def gaussian_influence(one: Regression, other: Regression, center: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """−Cov(l_i, φ_j) = −(r_i r_j x_iᵀΣx_j + ½(x_iᵀΣx_j)²) under N(center, Σ)."""
    c = one.inputs @ covariance @ other.inputs.T
    r, s = one.inputs @ center - one.targets, other.inputs @ center - other.targets
    return -(np.outer(r, s) * c + 0.5 * c**2)
