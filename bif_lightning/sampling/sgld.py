"""SGLD: chains of Langevin steps around the snapshot, plain or preconditioned by RMSprop.

Settings: `config.SGLD`; one step: `sampling.kernel`. Measures of its bias: `sampling.bias`, `sampling.prior_control`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.config import SGLD, Chains
from bif_lightning.curvature.laplace import directions_of, seconds_for_directions
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.distributed.threads import Progress, Steps
from bif_lightning.losses.problem import Minibatch, Problem
from bif_lightning.model.weights import BoundModule, WeightBackend
from bif_lightning.results.estimate import Estimate, Verdict
from bif_lightning.results.tokens import Tokens
from bif_lightning.results.verdict import (
    MOST_CHANGE,
    MOST_DRIFT,
    MOST_NOISE,
    diverged,
    not_local,
    rounded,
    settling_share,
    too_few_draws,
)
from bif_lightning.sampling import bias, prior_control
from bif_lightning.sampling.covariances import Covariances, DrawnCovariances
from bif_lightning.sampling.kernel import Preconditioner, drift_, preconditioner_for, step_
from bif_lightning.sampling.memory import chain_bytes, nbytes_of
from bif_lightning.sampling.sampler import ChainContext, ChainState
from bif_lightning.sampling.stability import check_stable
from bif_lightning.sampling.token_trace import TokenStore
from bif_lightning.sampling.tokens import drawn_tokens, token_store
from bif_lightning.sampling.trace import ChainTrace

_MOST_COOLED = 1000.0


@dataclass(frozen=True)
class SGLDSampler:
    """SGLD with the given settings."""

    settings: SGLD

    def chains(self) -> Chains:
        return Chains()

    def check(self, problem: Problem, backend: WeightBackend, chains: Chains) -> None:
        """Refuse a step size with which every chain runs away."""
        check_stable(self.settings, problem, backend, chains)

    def preparation(self, problem: Problem, ranks: Ranks) -> int:
        return 0 if self.settings.num_directions is None else problem.num_train

    def seconds(self, problem: Problem, backend: WeightBackend, workers: int, ranks: Ranks) -> float:
        if self.settings.num_directions is None:
            return 0.0
        return seconds_for_directions(problem, backend, workers, ranks)

    def prepare(
        self, problem: Problem, backend: WeightBackend, workers: int, ranks: Ranks, progress: Progress | None = None
    ) -> "PreparedSGLD":
        """Nothing, or the strongest directions of the train gradients, in whose span the chains stay."""
        count = self.settings.num_directions
        if count is None:
            return PreparedSGLD(self)
        with ranks.collective("the gradients at the snapshot") as section:
            steps = Steps(self.preparation(problem, ranks), section.watched(progress))
            return PreparedSGLD(self, directions_of(problem, backend, count, workers, steps))

    def unprepared(self) -> "PreparedSGLD":
        return PreparedSGLD(self)

    def checks(self, estimate: Estimate) -> Iterator[Verdict]:
        # Gradient noise heats the chains, so it is asked before what the heat does to the loss.
        advice = f"halve step_size from {self.settings.step_size:g}, or raise localization"
        yield from diverged(estimate, advice)
        yield from self._drifting(estimate)
        yield from self._noisy_gradients(estimate)
        yield from not_local(estimate)
        yield from too_few_draws(estimate)

    def remedy(self) -> str:
        of = self.settings
        return f"halve step_size (now {of.step_size:g}) or raise localization (now {of.localization:g})"

    def _drifting(self, estimate: Estimate) -> Iterator[Verdict]:
        of, chains = estimate.diagnostics, estimate.chains
        advice = f"raise burn_in from {chains.burn_in} to about {chains.num_steps}, or localization"
        if self.settings.gradient == "minibatch":
            advice = 'use gradient="control_variate", which makes w* the mode'
        if of.llc < -2 * (0.0 if math.isnan(of.llc_standard_error) else of.llc_standard_error):
            yield Verdict("drifting", f"the mean loss over the draws lies below that at w* (LLC {of.llc:.3g})", advice)
        change = settling_share(estimate)
        if abs(of.drift) > MOST_DRIFT and abs(change) > MOST_CHANGE:
            sentence = (
                f"the mean loss changes by {change:+.0%} of its rise above w* from the first to the second half of the "
                f"draws ({of.drift:+.1f} standard errors)"
            )
            yield Verdict("drifting", sentence, advice)

    def _noisy_gradients(self, estimate: Estimate) -> Iterator[Verdict]:
        ratio = estimate.diagnostics.noise_ratio
        if not ratio > MOST_NOISE:
            return
        batch, factor = estimate.chains.batch_size, min(ratio, _MOST_COOLED)
        advice = (
            f"lower step_size from {self.settings.step_size:g} to about "
            f"{rounded(self.settings.step_size / factor)}, or raise batch_size from {batch} to about "
            f"{math.ceil(batch * factor)}"
        )
        if self.settings.gradient == "minibatch":
            advice = f'use gradient="control_variate", or {advice}'
        yield Verdict("noisy", f"minibatches move the chains {ratio:.2g} times as much as their own noise", advice)


@dataclass(frozen=True)
class PreparedSGLD:
    """SGLD at one snapshot.

    Attributes:
        directions: orthonormal rows, in whose span the chains stay; None for all weights.
    """

    sampler: SGLDSampler
    directions: Float[Tensor, "direction weight"] | None = None
    closed_form: bool = False
    effective_dimension: None = None

    def start(self, context: ChainContext, chain: int) -> "LangevinState":
        return LangevinState(context, chain, self)

    def draw(self, state: ChainState, index: int) -> None:
        assert isinstance(state, LangevinState)
        state.step(index)

    def squared_distance(self, state: ChainState) -> float:
        return state.squared_distance()

    def covariances(self, traces: Sequence[ChainTrace], shape: tuple[int, int, int], chains: Chains) -> Covariances:
        return DrawnCovariances.of(traces, shape, chains)

    def tokens(
        self, context: ChainContext, traces: Sequence[ChainTrace], ranks: Ranks, everywhere: bool, scratch: Path | None
    ) -> Tokens | None:
        return drawn_tokens(context, traces, ranks, everywhere, scratch)

    def token_store(self, context: ChainContext, chains: Sequence[int], scratch: Path | None) -> TokenStore | None:
        return token_store(context, chains, scratch)

    def noise_ratio(self, context: ChainContext) -> float:
        return bias.noise_ratio(context, self.sampler.settings, lambda key: self.start(context, key))

    def llc_ratio(self, context: ChainContext, llc: float) -> float:
        if self.directions is not None:  # the curvature is that of all weights
            return math.nan
        return bias.llc_ratio(context, self.sampler.settings, llc)

    def control_draws(self, chains: Chains) -> int:
        return prior_control.num_control_draws(chains) if self.sampler.settings.localization else 0

    def within_span(self, vector: Tensor) -> Tensor:
        return vector if self.directions is None else vector.copy_((self.directions @ vector) @ self.directions)

    def nbytes(self, problem: Problem, backend: WeightBackend, workers: int) -> int:
        settings = self.sampler.settings
        preconditioned = settings.preconditioner is not None
        chains = chain_bytes(
            backend,
            workers,
            vectors=4 if preconditioned else 2,
            bound=2 if settings.gradient == "control_variate" else 1,
            afterwards=bias.vectors_held(backend, preconditioned=preconditioned),
        )
        return chains + nbytes_of([] if self.directions is None else [self.directions])


class LangevinState(ChainState):
    """A chain of SGLD: beside its weights, its anchor at the snapshot and its preconditioner."""

    def __init__(self, context: ChainContext, chain: int, prepared: PreparedSGLD) -> None:
        super().__init__(context, chain)
        self.prepared, self.settings = prepared, prepared.sampler.settings
        self.preconditioner: Preconditioner | None = preconditioner_for(self.weights.flat, self.settings)
        self.anchor: BoundModule | None = None
        if self.settings.gradient == "control_variate":
            # Gradients of both add up in one buffer, so a control variate costs no further memory.
            self.anchor = context.backend.bind(context.backend.anchor(self.weights.gradient))
        self.scale = context.problem.loss_scale

    def step(self, index: int) -> None:
        """One SGLD step."""
        context, settings, gradient = self.context, self.settings, self.weights.gradient
        if settings.inverse_temperature or self.preconditioner:
            self.load_gradient(index)
        else:
            gradient.zero_()
        with torch.no_grad():
            drift = self.prepared.within_span(drift_(gradient, self.weights.flat, context.backend.center, settings))
            step_(self.weights.flat, drift, lambda out: self._fill_normal(out, index), settings, self.preconditioner)

    def step_sizes(self) -> Tensor | float:
        """ε_t of every weight, or ε."""
        if self.preconditioner is None:
            return self.settings.step_size
        return self.preconditioner.step_sizes(self.settings)

    def load_gradient(self, index: int) -> None:
        """Write the estimate of the loss's gradient that step `index` moves by."""
        problem, size = self.context.problem, len(self.context.problem.training)
        self.weights.gradient.zero_()
        self.key_global(index)
        self._gradient(problem.minibatch(self.noise.minibatch(index, size, self.context.chains.batch_size)), index)

    def _gradient(self, minibatch: Minibatch, index: int) -> None:
        updated = False
        while True:
            self._add_gradient(self.bound, minibatch, index, self.scale)
            finite = self._is_representable()
            if finite and self.preconditioner and not updated:
                self.preconditioner.update(self.weights.gradient, self.settings, self.scale)
                updated = True
            if finite and self.anchor:
                self._add_gradient(self.anchor, minibatch, index, -self.scale)
                finite = self._is_representable()
            if finite:
                break
            self.scale /= 2
            self.weights.gradient.zero_()
        if self.scale != 1:
            self.weights.gradient.div_(self.scale)

    def _add_gradient(self, bound: BoundModule, minibatch: Minibatch, index: int, factor: float) -> None:
        self.key_global(index)
        self.context.problem.add_gradient(bound, minibatch, factor)

    def _is_representable(self) -> bool:
        """Whether the scaled gradient fits half precision. Without a scale, an infinite one is the chain's own: it has
        diverged."""
        return self.scale <= 1 or math.isfinite(self.context.backend.norm(self.weights.gradient))

    def _fill_normal(self, out: Tensor, index: int) -> None:
        # Noise usually goes into the gradient's memory, whose views lie ready.
        backend, ready = self.context.backend, out is self.weights.gradient
        for parameter, piece in enumerate(self.weights.gradients if ready else backend.layout.pieces(out)):
            backend.fill_normal(piece, parameter, self.noise.normals(index, parameter))
        self.prepared.within_span(out)
