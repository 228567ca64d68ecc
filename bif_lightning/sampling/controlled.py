"""SGLD whose covariance is controlled: chains of the true loss, beside chains of its quadratic approximation.

Settings: `config.ControlledSGLD`. The coordinates are u = M^½·w, with M the metric of the pull (`curvature.kronecker`);
the pull is isotropic there, γ/2·|u − u*|², and gradients are g = M^(−½)·∇l. Chains move along the r directions q_k in
which the mean loss is most curved, with curvatures h_k, of the K that its curvature H is measured in; along all others
the posterior is that of the quadratic approximation, in closed form. Beside each chain x runs its *surrogate* x', the
chain of the energy Σ_k (nβ·h_k + γ)/2·x_k². Both start at the same point and have the same noise (Leimkuhler & Matthews
2013, whose law for a Gaussian is exact at any stable step),

    x ← x − ε/2·∇U(x) + √ε·(ξ_k + ξ_{k+1})/2,   ∇U(x)_k = nβ·q_k·M^(−½)(∇L(w) − ∇L(w*)) + γ·x_k.

The covariance of the surrogate is known, so that only the difference of both has Monte Carlo error: with a and b the
coordinates of gradients,

    Cov(l_i, φ_j) = g_iᵀ(nβ·H + γ)⁻¹g_j + α·a_iᵀ(Cov x − Cov x')b_j.

α = 1 is the covariance of the chains; by default α is the share of the correction that the chains agree on
(`statistics.correction`).

Noise in all d dimensions would only add to the distance from w*. On four networks of benchmarks/retraining, chains of
the whole space parted from their surrogates by 0.12 to 383 times the variance, these by 0.003 to 0.01 (0.7 where ReLUs
have many kinks), and at an untrained snapshot of a wide network those of the whole space diverged.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from bif_lightning.config import Chains, ControlledSGLD
from bif_lightning.curvature.example_weights import example_weights
from bif_lightning.curvature.gauss_newton import (
    BLOCK_BYTES,
    corrected,
    gauss_newton_along,
    gauss_newton_rows,
    seconds_for_gauss_newton,
    steps_of_gauss_newton,
    strongest_of,
)
from bif_lightning.curvature.laplace import (
    SurrogatePosterior,
    linearize,
    linearized_bytes,
    passing_bytes,
    seconds_to_linearize,
    steps_to_linearize,
)
from bif_lightning.curvature.outputs import NoOutputsError
from bif_lightning.curvature.sketched import (
    is_sketched,
    linearize_sketched,
    seconds_for_sketched,
    sketched_bytes,
    steps_of_sketched,
    streaming_bytes,
)
from bif_lightning.curvature.strata import OfExamples, Stratum, strata_of
from bif_lightning.curvature.subsample import hessians_along, seconds_for_hessians
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.distributed.threads import Progress, still_progress
from bif_lightning.losses.problem import Minibatch, Problem
from bif_lightning.model.weights import BoundModule, WeightBackend
from bif_lightning.results.estimate import Estimate, Verdict
from bif_lightning.results.tokens import Tokens
from bif_lightning.results.verdict import diverged, raise_localization, too_few_examples
from bif_lightning.sampling.bias import llc_over_dimension
from bif_lightning.sampling.covariances import ControlledCovariances, Covariances
from bif_lightning.sampling.memory import chain_bytes, nbytes_of
from bif_lightning.sampling.sampler import ChainContext, ChainState
from bif_lightning.sampling.token_trace import TokenStore
from bif_lightning.sampling.tokens import closed_form_tokens
from bif_lightning.sampling.trace import ChainTrace
from bif_lightning.statistics.correction import MOST_PARTED

NUM_DRAWS, THINNING, BATCH_SIZE = 8, 2, 256
"""Of chains, where the user gives none: they forget in about eight steps."""

_VECTORS = 4  # of the size of the weights, of a chain: weights, gradient, ∇L(w*), and one under way
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
        if is_sketched(problem, self.settings):
            return steps_of_sketched(problem, self.settings, ranks)
        gradients, _ = steps_to_linearize(problem, self.settings, ranks)
        return gradients + steps_of_gauss_newton(problem, ranks)

    def seconds(self, problem: Problem, backend: WeightBackend, workers: int, ranks: Ranks) -> float:
        if is_sketched(problem, self.settings):
            return seconds_for_sketched(problem, backend, self.settings, workers, ranks)
        directions = min(self.settings.num_directions, problem.num_train)
        some = backend.center.new_ones(directions, 1).expand(-1, backend.layout.size)

        def curvature() -> float:
            try:
                return seconds_for_gauss_newton(
                    problem, backend, partial(_project, some), self.settings.num_probes, workers, ranks.world_size
                )
            except NoOutputsError:
                return seconds_for_hessians(problem, backend, directions, workers, ranks.world_size)

        return seconds_to_linearize(problem, backend, self.settings, workers, ranks, curvature)

    def prepare(
        self, problem: Problem, backend: WeightBackend, workers: int, ranks: Ranks, progress: Progress | None = None
    ) -> "PreparedControlled":
        """Gradients of all that is measured, the curvature along the strongest of them, the pull, and the step."""
        if is_sketched(problem, self.settings):
            found = linearize_sketched(problem, backend, self.settings, workers, ranks, progress)
        else:
            found = self._linearize(problem, backend, workers, ranks, progress)
        normal = found.posterior.normal
        settings = replace(
            self.settings,
            inverse_temperature=normal.inverse_temperature,
            localization=normal.localization,
            step_size=self._step_size(float(normal.variances.min())),
        )
        return PreparedControlled(ControlledSampler(settings), found)

    def _linearize(
        self, problem: Problem, backend: WeightBackend, workers: int, ranks: Ranks, progress: Progress | None
    ) -> SurrogatePosterior:
        found = list[OfExamples]()

        def curvature(directions: Tensor, span: float, progress: Progress | None) -> Tensor:
            hessians, of_examples = self._curvature(problem, backend, directions, span, workers, ranks, progress)
            found.append(of_examples)
            return hessians

        steps = steps_of_gauss_newton(problem, ranks)
        posterior = linearize(problem, backend, self.settings, workers, ranks, progress, curvature, steps)
        normal = posterior.normal
        directions = normal.metric.to_weight_space(normal.directions[-self.settings.num_corrected :])
        return SurrogatePosterior(posterior, directions, found[0])

    def _step_size(self, least: float) -> float:
        """ε, by default the least variance of the posterior, 1/(nβ·h₁ + γ).

        Raises:
            ValueError: it is not stable, as it is not below 4 times that.
        """
        given = self.settings.step_size
        if given is not None and not given < 4 * least:
            raise ValueError(
                f"step_size {given:g} makes every chain diverge at this snapshot, where it must be below "
                f"{4 * least:.2g}, 4 times the least variance of the posterior; lower it, or leave it out, which "
                f"takes {least:.2g}"
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
    ) -> tuple[Tensor, OfExamples]:
        """The curvature of groups of examples, and what is known of each training example."""
        steps, probes = steps_of_gauss_newton(problem, ranks), self.settings.num_probes
        after = still_progress(progress, steps, steps)
        try:
            known = gauss_newton_along(
                problem, backend, partial(_project, directions), probes, workers, ranks, progress
            )
        except NoOutputsError as error:
            problem.remarks["curvature"] = f"the curvature is by products with the Hessian, since of the loss {error}"
            hessians = hessians_along(problem, backend, directions, span, workers, ranks, after)
            weights = example_weights(problem, backend, gauss_newton_rows(problem))
            return hessians, OfExamples(torch.empty(0, device="cpu"), ranks.broadcast(weights))
        if problem.tokens is not None:  # many outputs an example: few sequences would differ by chance alone
            return known.groups(), OfExamples(known.curvature, known.weights)
        strongest = strongest_of(known)
        top = strongest.mT.to(directions) @ directions
        hessians, _ = corrected(problem, backend, strongest, top, span, known, workers, ranks, after)
        return hessians, OfExamples(known.curvature, known.weights)

    def unprepared(self) -> "UnpreparedControlled":
        return UnpreparedControlled(self)

    def checks(self, estimate: Estimate) -> Iterator[Verdict]:
        yield from diverged(estimate, "raise localization")
        yield from self._parted(estimate)
        yield from too_few_examples(estimate, self.settings.num_directions)

    def _parted(self, estimate: Estimate) -> Iterator[Verdict]:
        share = estimate.residual_share
        if share is not None and share > MOST_PARTED:
            sentence = (
                f"the chains part from their quadratic approximation by {share:.2g} times its variance, as where the "
                "loss curves down: the influence is that of the approximation, to first order"
            )
            yield Verdict("not local", sentence, raise_localization(self.settings.localization, 10.0))

    def remedy(self) -> str:
        return f"raise localization (now {self.settings.localization:g})"


def _project(
    directions: Float[Tensor, "direction weight"], vectors: Float[Tensor, "vector weight"]
) -> Float[Tensor, "vector direction"]:
    return vectors @ directions.mT


@dataclass(frozen=True)
class PreparedControlled:
    """Controlled SGLD at one snapshot.

    Attributes:
        surrogate: the posterior of the surrogate.
    """

    sampler: ControlledSampler
    surrogate: SurrogatePosterior
    closed_form: bool = True

    @property
    def effective_dimension(self) -> float:
        return self.surrogate.posterior.normal.effective_dimension

    def start(self, context: ChainContext, chain: int) -> "CoupledState":
        return CoupledState(context, chain, self)

    def draw(self, state: ChainState, index: int) -> None:
        assert isinstance(state, CoupledState)
        state.step(index)

    def squared_distance(self, state: ChainState) -> float:
        assert isinstance(state, CoupledState)
        return float(state.chain.square().sum())

    def strata(self, context: ChainContext) -> list[Stratum]:
        """Parts of the training data that minibatches are drawn from."""
        return self.surrogate.examples.strata(len(context.problem.training), context.chains.batch_size)

    def covariances(self, traces: Sequence[ChainTrace], shape: tuple[int, int, int], chains: Chains) -> Covariances:
        return ControlledCovariances.of(self.surrogate.posterior, traces, chains, self.sampler.settings)

    def tokens(
        self, context: ChainContext, traces: Sequence[ChainTrace], ranks: Ranks, everywhere: bool, scratch: Path | None
    ) -> Tokens | None:
        return closed_form_tokens(context, self.surrogate.posterior, self.sampler.settings.span, ranks)

    def token_store(self, context: ChainContext, chains: Sequence[int], scratch: Path | None) -> TokenStore | None:
        return None

    def noise_ratio(self, context: ChainContext) -> float:
        return math.nan  # what minibatches do shows in the residual share

    def llc_ratio(self, context: ChainContext, llc: float) -> float:
        return llc_over_dimension(llc, self.surrogate.effective_dimension)

    def control_draws(self, chains: Chains) -> int:
        return 0

    def within_span(self, vector: Tensor) -> Tensor:
        return vector

    def nbytes(self, problem: Problem, backend: WeightBackend, workers: int) -> int:
        held = nbytes_of(self.surrogate.tensors())
        return held + _under_way(problem, backend, self.sampler.settings, workers)


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
        settings = self.sampler.settings
        held = sketched_bytes if is_sketched(problem, settings) else linearized_bytes
        return held(problem, backend, settings) + _under_way(problem, backend, settings, workers)


def _under_way(problem: Problem, backend: WeightBackend, settings: ControlledSGLD, workers: int) -> int:
    """Bytes of chains under way, or of the preparation before them if that takes more."""
    chains = chain_bytes(backend, workers, vectors=_VECTORS, bound=2)
    if is_sketched(problem, settings):
        return max(chains, streaming_bytes(problem, backend, settings, workers))
    passing = passing_bytes(backend, min(settings.num_directions, problem.num_train), settings.metric)
    return max(chains, passing, workers * (3 * backend.center.nbytes + 2 * BLOCK_BYTES))


class CoupledState(ChainState):
    """A chain of the true loss and its surrogate: their coordinates along the most curved directions."""

    def __init__(self, context: ChainContext, chain: int, prepared: PreparedControlled | None) -> None:
        super().__init__(context, chain)
        self.anchor: BoundModule = context.backend.bind(context.backend.anchor(self.weights.gradient))
        self.prepared, self.scale = prepared, context.problem.loss_scale
        self.strata = strata_of(torch.empty(0, device="cpu"), len(context.problem.training), context.chains.batch_size)
        self.most = context.problem.eval_batch_size
        self.constant: Tensor | None = None  # ∇L(w*), where it is that of every step
        if prepared is None:
            return
        self.strata = prepared.strata(context)
        self.directions, self.curvature = prepared.surrogate.directions, prepared.surrogate.along
        if prepared.surrogate.examples.weights is not None and self.strata[0].weights is None:
            self.most = context.chains.batch_size  # how means of parts would count is not known
        normal, settings = prepared.surrogate.posterior.normal, prepared.sampler.settings
        assert settings.step_size is not None
        self.step_size, self.nb, self.pull = settings.step_size, normal.inverse_temperature, normal.localization
        if context.chains.batch_size >= len(context.problem.training):
            self.load_gradient()
        self.standard = self._normal(0)
        self.chain = self._first()
        self.surrogate = self.chain
        self._move()

    def load_gradient(self) -> None:
        """Keep ∇L(w*) of all training examples."""
        problem, backend = self.context.problem, self.context.backend
        self.key_global(0)
        problem.gradient(backend, self.weights, self.bound, self._parts(0))
        self.constant = self.weights.gradient.clone()

    def _first(self) -> Float64[Tensor, " direction"]:
        """A point of the surrogate's stationary law, jointly with ξ_0: √ε/2·ξ_0 + (V − ε/4)^½·η."""
        variances = 1 / (self.nb * self.curvature + self.pull)
        spread = (variances - self.step_size / 4).clamp(min=0).sqrt()
        return 0.5 * math.sqrt(self.step_size) * self.standard + spread * self._normal(_START)

    def _normal(self, index: int) -> Float64[Tensor, " direction"]:
        """ξ of one step; on the CPU, so that the device changes no bit."""
        generator = torch.Generator().manual_seed(self.noise.key(index, 0))
        return torch.randn(len(self.curvature), generator=generator, dtype=torch.float64, device="cpu")

    def step(self, index: int) -> None:
        """Move the chain and its surrogate by one step with the same noise."""
        self.load_difference(index)
        with torch.no_grad():
            gradient = (self.directions @ self.weights.gradient).double().cpu()
            following = self._normal(index + 1)
            noise = 0.5 * math.sqrt(self.step_size) * (self.standard + following)
            self.chain = self._moved(self.chain, gradient) + noise
            self.surrogate = self._moved(self.surrogate, self.curvature * self.surrogate) + noise
            self.standard = following
            self._move()

    def _moved(self, x: Float64[Tensor, " direction"], gradient: Float64[Tensor, " direction"]) -> Tensor:
        """Half a step down the energy, whose loss has this gradient."""
        return x - 0.5 * self.step_size * (self.nb * gradient + self.pull * x)

    def _move(self) -> None:
        """Put the weights where the chain stands."""
        self.put(self.chain.to(self.directions) @ self.directions)

    def coordinates(self) -> Float64[Tensor, "2 direction"] | None:
        """Of the chain and of its surrogate; None while there are none."""
        return None if self.prepared is None else torch.stack([self.chain, self.surrogate])

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
