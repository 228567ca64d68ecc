"""SGLD whose covariance is controlled: chains of the true loss, beside chains of its quadratic approximation.

Settings: `config.ControlledSGLD`. The coordinates are u = M^½·w, with M the metric of the pull (`curvature.kronecker`);
the pull is isotropic there, γ/2·|u − u*|², and gradients are g = M^(−½)·∇l. With H the curvature of the mean loss along
K gradient directions, the *surrogate* is the chain of the energy nβ·½·δᵀHδ + γ/2·|δ|², δ = u − u*. A chain and its
surrogate start at the same point and have the same noise (Leimkuhler & Matthews 2013, whose law for a Gaussian is exact
at any stable step),

    u ← u − ε/2·∇U(u) + √ε·(ξ_k + ξ_{k+1})/2.

The covariance of the surrogate is known, so that only the difference of both has Monte Carlo error. With x and x' the
coordinates of chain and surrogate along the r most curved directions, a and b those of the gradients,

    Cov(l_i, φ_j) = g_iᵀ(nβ·H + γ)⁻¹g_j + α·a_iᵀ(Cov x − Cov x')b_j.

α = 1 is the covariance of the chains; by default α is the share of the correction that the chains agree on
(`statistics.correction`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.config import Chains, ControlledSGLD
from bif_lightning.curvature.closed_form import LinearizedPosterior
from bif_lightning.curvature.example_weights import example_weights
from bif_lightning.curvature.gauss_newton import (
    corrected,
    gauss_newton_along,
    seconds_for_gauss_newton,
    sketched_rows,
    steps_of_gauss_newton,
)
from bif_lightning.curvature.laplace import (
    linearize,
    linearized_bytes,
    passing_bytes,
    seconds_to_linearize,
    steps_to_linearize,
)
from bif_lightning.curvature.outputs import NoOutputsError
from bif_lightning.curvature.strata import Stratum, strata_of
from bif_lightning.curvature.subsample import hessians_along, seconds_for_hessians
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.distributed.threads import Progress, still_progress
from bif_lightning.losses.problem import Minibatch, Problem
from bif_lightning.model.weights import BoundModule, WeightBackend
from bif_lightning.results.estimate import Estimate, Verdict
from bif_lightning.results.tokens import Tokens
from bif_lightning.results.verdict import diverged, too_few_examples
from bif_lightning.sampling.bias import llc_over_dimension
from bif_lightning.sampling.covariances import ControlledCovariances, Covariances
from bif_lightning.sampling.memory import chain_bytes, nbytes_of
from bif_lightning.sampling.sampler import ChainContext, ChainState
from bif_lightning.sampling.token_trace import TokenStore
from bif_lightning.sampling.tokens import closed_form_tokens
from bif_lightning.sampling.trace import ChainTrace

NUM_DRAWS, THINNING, BATCH_SIZE = 16, 2, 256
"""Of chains, where the user gives none: they forget in about eight steps."""

_START = -1  # keys the numbers of a chain's start, before those of its steps


@dataclass(frozen=True)
class ControlledSampler:
    """Controlled SGLD with the given settings."""

    settings: ControlledSGLD

    def chains(self) -> Chains:
        return Chains(num_draws=NUM_DRAWS, thinning=THINNING, batch_size=BATCH_SIZE)

    def check(self, problem: Problem, backend: WeightBackend, chains: Chains) -> None:
        """Pull, temperature and step follow from the curvature, whatever it is."""

    def preparation(self, problem: Problem, ranks: Ranks) -> int:
        gradients, _ = steps_to_linearize(problem, self.settings, ranks)
        return gradients + steps_of_gauss_newton(problem, ranks)

    def seconds(self, problem: Problem, backend: WeightBackend, workers: int, ranks: Ranks) -> float:
        directions, probes = min(self.settings.num_directions, problem.num_train), self.settings.num_probes

        def curvature() -> float:
            try:
                return seconds_for_gauss_newton(problem, backend, probes, directions, workers, ranks.world_size)
            except NoOutputsError:
                return seconds_for_hessians(problem, backend, directions, workers, ranks.world_size)

        return seconds_to_linearize(problem, backend, self.settings, workers, ranks, curvature)

    def prepare(
        self, problem: Problem, backend: WeightBackend, workers: int, ranks: Ranks, progress: Progress | None = None
    ) -> "PreparedControlled":
        """Gradients of all that is measured, the curvature along the strongest of them, the pull, and the step."""
        found = list[OfExamples]()

        def curvature(directions: Tensor, span: float, progress: Progress | None) -> Tensor:
            hessians, of_examples = self._curvature(problem, backend, directions, span, workers, ranks, progress)
            found.append(of_examples)
            return hessians

        steps = steps_of_gauss_newton(problem, ranks)
        posterior = linearize(problem, backend, self.settings, workers, ranks, progress, curvature, steps)
        normal = posterior.normal
        settings = replace(
            self.settings,
            inverse_temperature=normal.inverse_temperature,
            localization=normal.localization,
            step_size=self._step_size(float(normal.variances.min())),
        )
        return PreparedControlled(ControlledSampler(settings), posterior, found[0])

    def _step_size(self, least: float) -> float:
        """ε, by default the least variance of the posterior, 1/(nβ·h₁ + γ).

        Raises:
            ValueError: it is not stable, as it is not below 4 times that.
        """
        given = self.settings.step_size
        if given is not None and not given < 4 * least:
            raise ValueError(
                f"step_size {given:g} makes every chain diverge at this snapshot, where it must be below "
                f"{4 * least:.2g}, 4 times the least variance of the posterior; lower it, or leave it out, which takes "
                f"{least:.2g}"
            )
        return given or least

    def _curvature(
        self,
        problem: Problem,
        backend: WeightBackend,
        directions: Tensor,
        span: float,
        workers: int,
        ranks: Ranks,
        progress: Progress | None,
    ) -> "tuple[Tensor, OfExamples]":
        """The curvature of groups of examples, and what is known of each training example."""
        steps, probes = steps_of_gauss_newton(problem, ranks), self.settings.num_probes
        after = still_progress(progress, steps, steps)
        try:
            sketch = gauss_newton_along(problem, backend, directions, probes, workers, ranks, progress)
        except NoOutputsError as error:
            problem.remarks["curvature"] = f"the curvature is by products with the Hessian, since of the loss {error}"
            hessians = hessians_along(problem, backend, directions, span, workers, ranks, after)
            weights = example_weights(problem, backend, sketched_rows(problem))
            return hessians, OfExamples(torch.empty(0, device="cpu"), ranks.broadcast(weights))
        if problem.tokens is not None:  # many outputs an example: few sequences would differ by chance alone
            return sketch.groups(), OfExamples(sketch.curvature, sketch.weights)
        hessians, _ = corrected(problem, backend, directions, span, sketch, workers, ranks, after)
        return hessians, OfExamples(sketch.curvature, sketch.weights)

    def unprepared(self) -> "UnpreparedControlled":
        return UnpreparedControlled(self)

    def checks(self, estimate: Estimate) -> Iterator[Verdict]:
        yield from diverged(estimate, "raise localization")
        yield from too_few_examples(estimate, self.settings.num_directions)

    def remedy(self) -> str:
        return f"raise localization (now {self.settings.localization:g})"


@dataclass(frozen=True)
class OfExamples:
    """What is known of single training examples, or of those that the curvature is of.

    Attributes:
        curvature: tr(Q·G_i·Qᵀ), with the weights; empty where it is not known.
        weights: how much each counts in L(w), with mean 1; None for all alike.
    """

    curvature: Float[Tensor, " example"]
    weights: Float[Tensor, " example"] | None = None

    def strata(self, size: int, batch_size: int) -> list[Stratum]:
        """Parts of `size` training examples that minibatches are drawn from."""
        weights = None if self.weights is None or len(self.weights) != size else self.weights
        return strata_of(self.curvature, size, batch_size, weights)


@dataclass(frozen=True)
class PreparedControlled:
    """Controlled SGLD at one snapshot.

    Attributes:
        posterior: of the surrogate, with the gradients of all that is measured.
        examples: what is known of single training examples.
    """

    sampler: ControlledSampler
    posterior: LinearizedPosterior
    examples: OfExamples
    closed_form: bool = True

    @property
    def effective_dimension(self) -> float:
        return self.posterior.normal.effective_dimension

    def start(self, context: ChainContext, chain: int) -> "CoupledState":
        return CoupledState(context, chain, self)

    def draw(self, state: ChainState, index: int) -> None:
        assert isinstance(state, CoupledState)
        state.step(index)

    def squared_distance(self, state: ChainState) -> float:
        assert isinstance(state, CoupledState)
        return float(state.chain.square().sum(dtype=torch.float64))

    def strata(self, context: ChainContext) -> list[Stratum]:
        """Parts of the training data that minibatches are drawn from."""
        return self.examples.strata(len(context.problem.training), context.chains.batch_size)

    def covariances(self, traces: Sequence[ChainTrace], shape: tuple[int, int, int], chains: Chains) -> Covariances:
        return ControlledCovariances.of(self.posterior, traces, chains, self.sampler.settings)

    def tokens(
        self, context: ChainContext, traces: Sequence[ChainTrace], ranks: Ranks, everywhere: bool, scratch: Path | None
    ) -> Tokens | None:
        return closed_form_tokens(context, self.posterior, self.sampler.settings.span, ranks)

    def token_store(self, context: ChainContext, chains: Sequence[int], scratch: Path | None) -> TokenStore | None:
        return None

    def noise_ratio(self, context: ChainContext) -> float:
        return math.nan  # what minibatches do shows in the residual share

    def llc_ratio(self, context: ChainContext, llc: float) -> float:
        return llc_over_dimension(llc, self.effective_dimension)

    def control_draws(self, chains: Chains) -> int:
        return 0

    def within_span(self, vector: Tensor) -> Tensor:
        return vector

    def nbytes(self, problem: Problem, backend: WeightBackend, workers: int) -> int:
        chains = chain_bytes(backend, workers, vectors=6, bound=2)
        passing = passing_bytes(backend, len(self.posterior.variances), self.sampler.settings.metric)
        return max(chains, passing) + nbytes_of(self.posterior.tensors())


@dataclass(frozen=True)
class UnpreparedControlled:
    """Stands in for `PreparedControlled` while there is no posterior yet: steps that take as long, and memory."""

    sampler: ControlledSampler
    closed_form: bool = True
    effective_dimension: None = None

    def start(self, context: ChainContext, chain: int) -> "CoupledState":
        return CoupledState(context, chain, None)

    def draw(self, state: ChainState, index: int) -> None:
        assert isinstance(state, CoupledState)
        state.load_difference(index)

    def squared_distance(self, state: ChainState) -> float:
        return state.squared_distance()

    def nbytes(self, problem: Problem, backend: WeightBackend, workers: int) -> int:
        return chain_bytes(backend, workers, vectors=6, bound=2) + linearized_bytes(
            problem, backend, self.sampler.settings
        )


class CoupledState(ChainState):
    """A chain of the true loss and its surrogate: displacements from u*, in the coordinates of the metric."""

    def __init__(self, context: ChainContext, chain: int, prepared: PreparedControlled | None) -> None:
        super().__init__(context, chain)
        self.anchor: BoundModule = context.backend.bind(context.backend.anchor(self.weights.gradient))
        self.prepared, self.scale = prepared, context.problem.loss_scale
        self.strata = strata_of(torch.empty(0, device="cpu"), len(context.problem.training), context.chains.batch_size)
        self.most = context.problem.eval_batch_size
        self.constant: Tensor | None = None  # ∇L(w*), where it is that of every step
        if prepared is None:
            return
        self.normal, self.settings = prepared.posterior.normal, prepared.sampler.settings
        self.strata = prepared.strata(context)
        if prepared.examples.weights is not None and self.strata[0].weights is None:
            self.most = context.chains.batch_size  # how means of parts would count is not known
        self.curved = self.normal.inverse_temperature * self.normal.curvature.to(context.backend.center)
        self.standard = self._normal(0)
        self.chain = self._first()
        self.surrogate = self.chain.clone()
        if context.chains.batch_size >= len(context.problem.training):
            self.load_gradient()

    def load_gradient(self) -> None:
        """Keep ∇L(w*) of all training examples."""
        problem, backend = self.context.problem, self.context.backend
        self.key_global(0)
        problem.gradient(backend, self.weights, self.bound, self._parts(0))
        self.constant = self.weights.gradient.clone()

    def _first(self) -> Float[Tensor, " weight"]:
        """A point of the surrogate's stationary law, jointly with ξ_0: √ε/2·ξ_0 + (Σ − ε/4)^½·η."""
        step, normal, other = self._step_size(), self.normal, self._normal(_START)
        along = normal.directions @ other
        outside = math.sqrt(1 / normal.localization - step / 4)
        inside = (normal.variances.to(other) - step / 4).clamp(min=0).sqrt()
        return (
            0.5 * math.sqrt(step) * self.standard + outside * other + ((inside - outside) * along) @ normal.directions
        )

    def _step_size(self) -> float:
        assert self.settings.step_size is not None
        return self.settings.step_size

    def _normal(self, index: int) -> Float[Tensor, " weight"]:
        """ξ of one step."""
        backend = self.context.backend
        out = torch.zeros_like(backend.center)
        for parameter, piece in enumerate(backend.layout.pieces(out)):
            backend.fill_normal(piece, parameter, self.noise.normals(index, parameter))
        return out

    def step(self, index: int) -> None:
        """Move the chain and its surrogate by one step with the same noise."""
        with torch.no_grad():
            self.put(self.normal.metric.to_weight_space(self.chain[None])[0])
        self.load_difference(index)
        with torch.no_grad():
            step, normal, gradient = self._step_size(), self.normal, self.weights.gradient[None].clone()
            normal.metric.whiten(gradient)
            following = self._normal(index + 1)
            noise = (self.standard + following).mul_(0.5 * math.sqrt(step))
            self.standard = following
            pull = 1 - 0.5 * step * normal.localization
            bent = (self.curved * (normal.directions @ self.surrogate)) @ normal.directions
            self.chain.mul_(pull).add_(gradient[0], alpha=-0.5 * step * normal.inverse_temperature).add_(noise)
            self.surrogate.mul_(pull).add_(bent, alpha=-0.5 * step).add_(noise)
            self.put(normal.metric.to_weight_space(self.chain[None])[0])

    def coordinates(self) -> Float[Tensor, "2 direction"] | None:
        """Coordinates of the chain and of its surrogate along the most curved directions; None while there are none."""
        if self.prepared is None:
            return None
        count = self.settings.num_corrected
        top = self.normal.directions[-count:]
        return torch.stack([top @ self.chain, top @ self.surrogate]).double().cpu()

    def load_difference(self, index: int) -> None:
        """Write ∇L(w) − ∇L(w*), of the same examples, into the gradient of the weights."""
        parts = self._parts(index)
        while True:
            self.weights.gradient.zero_()
            for minibatch, share in parts:
                self._add(self.bound, minibatch, index, self.scale * share)
                if self.constant is None:
                    self._add(self.anchor, minibatch, index, -self.scale * share)
            if self.scale <= 1 or math.isfinite(self.context.backend.norm(self.weights.gradient)):
                break
            self.scale /= 2
        if self.scale != 1:
            self.weights.gradient.div_(self.scale)
        if self.constant is not None:
            self.weights.gradient.sub_(self.constant)

    def _parts(self, index: int) -> list[tuple[Minibatch, float]]:
        """Minibatches of step `index`, and the shares of their means in the gradient."""
        problem, found = self.context.problem, list[tuple[Minibatch, float]]()
        for number, stratum in enumerate(self.strata):
            key = index * len(self.strata) + number
            chosen = self.noise.minibatch(key, len(stratum.rows), stratum.batch_size)
            found += [(problem.minibatch(rows), share) for rows, share in stratum.parts(chosen, self.most)]
        return found

    def _add(self, bound: BoundModule, minibatch: Minibatch, index: int, factor: float) -> None:
        self.key_global(index)
        self.context.problem.add_gradient(bound, minibatch, factor)
