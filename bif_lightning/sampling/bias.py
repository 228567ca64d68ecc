"""Measures of bias that need no labels: the noise ratio of SGLD, and the LLC against the curvature at the snapshot.

Monte Carlo error shows in the spread of chains. Bias does not: it is the same in all of them.

Noise ratio. A step of SGLD adds its own noise, of covariance ε·I, and the noise of its minibatch, of covariance
(ε/2)²·(nβ)²·C, with C the covariance of the minibatch gradient that the step moves by. Their ratio is largest along an
eigenvector of C:

    ratio = ε·(nβ)²·λmax(C)/4      (C = F/m for plain minibatches of m, F the covariance of one example's gradient)

With a preconditioner ε is a diagonal matrix, and λmax that of ε^½·C·ε^½. With control variates C vanishes at w*, so
that it is measured where chains stand: after a few steps, when the stiff directions, which C is largest along, have
relaxed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.config import SGLD
from bif_lightning.curvature.hessian import Hessian, examples_in_a_pass
from bif_lightning.curvature.spectrum import hessian_spectrum
from bif_lightning.data.dataset import spread_rows
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.model.devices import is_out_of_memory, raise_unrelated
from bif_lightning.model.weights import WeightBackend, Weights, norm_of_snapshot
from bif_lightning.sampling.prior_control import control_influence
from bif_lightning.sampling.sampler import ChainContext, Prepared
from bif_lightning.statistics.diagnostics import score_agreement

_CHAIN = -2  # the key of this walk in the noise; chains count from 0
_STEPS = 8  # from w*, until the stiff directions have relaxed
_GRADIENTS = 8
_KEPT_BYTES = 1 << 29  # of gradients at once
_LEAST_GRADIENTS = 4

_SHARE, _MOST_SHARE = 0.02, 0.05  # of a snapshot's passes, for the curvature
_LANCZOS, _LEAST_LANCZOS = 24, 8  # steps, of a product with the Hessian each: with 8, d_eff was 2 to 4 times too large
_HELD = 8  # vectors of the Lanczos recurrence
_PASSES, _PRODUCT_PASSES = 3, 12  # forward passes that a gradient, and such a product, cost as much as
_STEP = 1e-5  # of differences of gradients, where those are needed, in the norm of the weights
_FEW_ROWS, _MOST_ROWS = 32, 512
_LEAST_ROWS = 8  # where already a few take more than they should


class Walk(Protocol):
    """A chain whose steps follow gradients of minibatches."""

    @property
    def weights(self) -> Weights:
        """Where it stands, and the last gradient."""
        ...

    def step(self, index: int) -> None:
        """Take a step."""
        ...

    def load_gradient(self, index: int) -> None:
        """Write the gradient that step `index` moves by."""
        ...

    def step_sizes(self) -> Tensor | float:
        """ε_t of the present step, for every weight or for all."""
        ...


def noise_ratio(context: ChainContext, settings: SGLD, start: Callable[[int], Walk]) -> float:
    """Variance that minibatches add to a step, over that of its own noise, along the direction where it is largest.

    NaN where so many gradients do not fit into memory. Collective for a module in shards.

    Args:
        start: begins a chain whose noise has this key.
    """
    backend, chains = context.backend, context.chains
    if not settings.inverse_temperature or chains.batch_size >= len(context.problem.training):
        return 0.0
    count = min(_GRADIENTS, _KEPT_BYTES // (backend.center.element_size() * backend.layout.size))
    if count < _LEAST_GRADIENTS:
        return math.nan
    walk = start(_CHAIN)
    try:
        gradients = _gradients(walk, count)
    except Exception as error:
        raise_unrelated(error)
        # A model may refuse weights that are no longer finite; shards of one fail together or not at all.
        if backend.sharded or bool(walk.weights.flat.isfinite().all()):
            raise
        return math.inf
    sizes = walk.step_sizes()
    scale = sizes.sqrt() if isinstance(sizes, Tensor) else sizes**0.5
    for gradient in gradients:
        gradient.mul_(scale)
    products = [[backend.inner(a, b) for b in gradients] for a in gradients]
    gram = torch.tensor(products, dtype=torch.float64, device="cpu")
    if not bool(gram.isfinite().all()):
        return math.inf
    gram = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()  # as if the gradients were centred
    eigenvalues = torch.linalg.eigvalsh(gram) / (count - 1)
    # The largest eigenvalue of a sample covariance is too large by about the mean of the others.
    rest = float(eigenvalues[:-1].sum()) / (count - 2)
    return 0.25 * settings.inverse_temperature**2 * max(float(eigenvalues[-1]) - rest, 0.0)


def _gradients(walk: Walk, count: int) -> list[Tensor]:
    """Those of `count` minibatches, where the walk stands after a few steps."""
    for index in range(_STEPS):
        walk.step(index)
    found = list[Tensor]()
    for index in range(_STEPS, _STEPS + count):
        walk.load_gradient(index)
        found.append(walk.weights.gradient.clone())
    return found


def vectors_held(backend: WeightBackend, *, preconditioned: bool) -> int:
    """Vectors of the size of the weights that these measurements hold at once, beyond the snapshot."""
    walk = 4 if preconditioned else 2
    fitting = _KEPT_BYTES // (backend.center.element_size() * backend.layout.size)
    return walk + 6 + min(max(_GRADIENTS, _HELD), fitting)


def llc_ratio(context: ChainContext, settings: SGLD, llc: float) -> float:
    """LLC over d_eff/2, d_eff = tr H(H + (γ/nβ)·I)⁻¹ with H the Hessian of the mean loss at w*.

    For a quadratic loss the mean loss of the posterior lies d_eff/(2·nβ) above that at its minimum. Here d_eff is
    measured by Lanczos steps on some training examples: from below where H is stiff only for examples left out. NaN
    where γ or nβ is 0, or where H has no positive part. Collective for a module in shards.
    """
    if not settings.localization or not settings.inverse_temperature:
        return math.nan
    count, steps = curvature_size(context, settings)
    rows = spread_rows(len(context.problem.training), count)
    chunk = examples_in_a_pass(context.chains.batch_size)
    hessian = Hessian.of_training(context.problem, context.backend, rows=rows, chunk=chunk, key=context.chains.seed)
    # A longer step crosses kinks of ReLUs, which enter as curvature, in each of the many flat directions.
    hessian.step = _STEP * norm_of_snapshot(context.backend)
    spectrum = hessian_spectrum(hessian, probes=1, steps=steps, held=_HELD)
    return llc_over_dimension(llc, spectrum.effective_dimension(settings.localization / settings.inverse_temperature))


def llc_over_dimension(llc: float, dimension: float) -> float:
    """LLC over d_eff/2; NaN without a dimension."""
    return llc / (0.5 * dimension) if dimension > 0 else math.nan


def curvature_size(context: ChainContext, settings: SGLD) -> tuple[int, int]:
    """Examples behind the curvature, and Lanczos steps: as many as take about 2 % of a snapshot's passes.

    24 steps on at most 512 examples, and where that leaves fewer than 32 of these, up to 5 % for them. In shorter
    snapshots first the steps become fewer, down to 8, then the examples, down to 8.
    """
    chains, problem = context.chains, context.problem
    draws, steps = chains.num_chains * chains.num_draws, chains.num_chains * chains.num_steps
    gradients = 1 if settings.gradient == "minibatch" else 2
    passes = draws * (problem.num_train + problem.num_further_queries) + steps * chains.batch_size * gradients * _PASSES
    products, most = (int(share * passes) // _PRODUCT_PASSES for share in (_SHARE, _MOST_SHARE))
    rows = min(max(products // _LANCZOS, _FEW_ROWS), _MOST_ROWS)
    if rows > _FEW_ROWS:
        return rows, _LANCZOS
    return max(min(rows, most // _LEAST_LANCZOS), _LEAST_ROWS), max(min(most // rows, _LANCZOS), _LEAST_LANCZOS)


@dataclass(frozen=True)
class BiasMeasures:
    """Measures of bias, the same on every rank.

    Attributes:
        noise_ratio, llc_ratio: see `bias`.
        control: influence on the scored queries without data; None where there is none.
        scored: which queries these are.
    """

    noise_ratio: float
    llc_ratio: float
    control: Float[Tensor, "train scored"] | None
    scored: Sequence[int]

    def agreement(self, influence: Float[np.ndarray, "train column"]) -> float:
        """Median over the scored queries of the Spearman correlation of an influence with the control's."""
        if self.control is None:
            return math.nan
        return score_agreement(torch.from_numpy(influence[:, list(self.scored)]).double(), self.control)


def measure_bias(
    prepared: Prepared, context: ChainContext, llc: float, scored: Sequence[int], workers: int, ranks: Ranks
) -> BiasMeasures:
    """Measure, the same on every rank. Collective.

    Args:
        prepared: the sampler.
        context: of the chains.
        llc: their local learning coefficient, nats.
        scored: queries whose influence is compared.
        workers: chains that this rank runs at once.
        ranks: the ranks.
    """
    with ranks.collective("measuring the bias of the chains"):
        # Every rank measures the same; one that waited would save no time.
        ratios = (
            _unless_out_of_memory(context, "the noise ratio", lambda: prepared.noise_ratio(context)),
            _unless_out_of_memory(context, "the LLC ratio", lambda: prepared.llc_ratio(context, llc)),
        )
    ratios = ranks.broadcast(ratios)
    return BiasMeasures(*ratios, control_influence(prepared, context, scored, workers, ranks), scored)


def _unless_out_of_memory(context: ChainContext, what: str, measure: Callable[[], float]) -> float:
    """NaN, and a note, where memory runs out: all chains are done, and their estimate stands without this number."""
    try:
        return measure()
    except Exception as error:
        if context.backend.sharded or not is_out_of_memory(error):
            raise
        context.problem.remarks[what] = f"{what} was not measured, since memory ran out"
        return math.nan
