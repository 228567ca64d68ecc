"""One chain: from the snapshot to an iterator of draws, by steps of SGLD after burn-in, or by antithetic pairs."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning.config import SGLD, Chains, Pairs, Sampler
from bif_lightning.curvature.closed_form import LinearizedPosterior
from bif_lightning.losses.problem import Minibatch, Problem
from bif_lightning.losses.token_losses import TokenValues
from bif_lightning.model.weights import BoundModule, WeightBackend, Weights
from bif_lightning.results.estimate import Divergence
from bif_lightning.rng import GLOBAL, Noise, chain_noise, seed_global
from bif_lightning.sampling.antithetic import displacement
from bif_lightning.sampling.divergence import left_posterior
from bif_lightning.sampling.sgld import Preconditioner, drift_, preconditioner_for, step_
from bif_lightning.sampling.token_trace import TokenStore
from bif_lightning.sampling.trace import ChainTrace, batch_lengths, is_paired

_UNKNOWN = 1e-4
"""Scale of draws of a posterior that is not known yet, to time them."""


@dataclass(frozen=True)
class Draw:
    """The observables at one recorded state of a chain, and its distance from the snapshot.

    `tokens` are the losses of single tokens of train and query examples, where they are asked for.
    """

    index: int
    step: int
    train: Float[Tensor, " train"]
    columns: Float[Tensor, " column"]
    squared_distance: float
    tokens: tuple[TokenValues, TokenValues] | None = None

    @property
    def loss(self) -> float:
        """Mean train loss."""
        return float(self.train.double().mean())


@dataclass(frozen=True)
class ChainContext:
    """What all chains of one estimate share.

    Attributes:
        snapshot: key of the snapshot in the noise (0 where random numbers are common to all snapshots).
        loss: mean train loss at the snapshot.
        traces: whether every draw is kept.
        tick: called after every step; may raise to stop the chain.
        stochastic: the model or its data draws random numbers, from global generators to be keyed.
        directions: orthonormal rows, in whose span SGLD stays; None for all weights.
        linear: the closed form of `Subspace`, with the Gaussian posterior to draw from.
        token_losses: losses of single tokens at the snapshot, of train and query examples; None where they are not
            asked for.
        tokens: where those at the draws go; None where they are not needed.
    """

    problem: Problem
    backend: WeightBackend
    sampler: Sampler
    chains: Chains
    snapshot: int
    loss: float
    traces: bool
    tick: Callable[[], None]
    stochastic: bool = False
    directions: Tensor | None = None
    linear: LinearizedPosterior | None = None
    token_losses: tuple[TokenValues, TokenValues] | None = None
    tokens: TokenStore | None = None


class ChainState:
    """The moving parts of one chain: its weights, its anchor at the snapshot, its noise."""

    def __init__(self, plan: ChainContext, chain: int) -> None:
        self.plan = plan
        backend = plan.backend
        self.weights: Weights = backend.weights()
        self.bound: BoundModule = backend.bind(self.weights)
        self.anchor: BoundModule | None = None
        self.preconditioner: Preconditioner | None = None
        if isinstance(plan.sampler, SGLD):
            self.preconditioner = preconditioner_for(self.weights.flat, plan.sampler)
            if plan.sampler.gradient == "control_variate":
                # Gradients of both add up in one buffer, so a control variate costs no further memory.
                self.anchor = backend.bind(backend.anchor(self.weights.gradient))
        self.steps = 0
        self.scale = plan.problem.loss_scale
        self.noise: Noise = chain_noise(plan.chains.seed, plan.snapshot, chain, backend.device)

    def step(self, index: int, sampler: SGLD) -> None:
        """One SGLD step."""
        plan, gradient = self.plan, self.weights.gradient
        self.steps = index + 1
        if sampler.inverse_temperature or self.preconditioner:
            self.load_gradient(index)
        else:
            gradient.zero_()
        with torch.no_grad():
            drift = self._within(drift_(gradient, self.weights.flat, plan.backend.center, sampler))
            step_(self.weights.flat, drift, lambda out: self._fill_normal(out, index), sampler, self.preconditioner)

    def load_gradient(self, index: int) -> None:
        """Write the estimate of the loss's gradient that step `index` moves by."""
        problem, size = self.plan.problem, len(self.plan.problem.training)
        self.weights.gradient.zero_()
        self._key_global(index)
        self._gradient(problem.minibatch(self.noise.minibatch(index, size, self.plan.chains.batch_size)), index)

    def draw_gaussian(self, draw: int) -> None:
        """Put the weights where an independent draw of the Gaussian posterior is."""
        plan = self.plan
        self.steps = draw + 1
        color = plan.linear.normal.color if plan.linear else self._isotropic
        with torch.no_grad():
            torch.add(plan.backend.center, displacement(plan.backend, self.noise, draw, color), out=self.weights.flat)

    def measure(self, draw: int, step: int) -> Draw:
        """Measure the observables where the chain stands."""
        # The same key at every draw: the model's own randomness must not count as covariance of the weights.
        self._key_global(0)
        self.weights.track(False)
        problem, tokens = self.plan.problem, None
        if self.plan.tokens is None:
            train, columns = problem.measure(self.bound)
        else:
            train, columns, tokens = problem.measure_tokens(self.bound)
        self.weights.track(True)
        return Draw(draw, step, train, columns, self.squared_distance(), tokens)

    def squared_distance(self) -> float:
        """‖w − w*‖²."""
        return self.plan.backend.distance(self.weights.flat) ** 2

    def prior_distance(self) -> float:
        """(w − w*)ᵀM(w − w*), in the metric of the pull."""
        plan = self.plan
        if plan.linear is None:
            return self.squared_distance()
        return plan.linear.normal.metric.squared_length(self.weights.flat.detach() - plan.backend.center)

    def _gradient(self, minibatch: Minibatch, index: int) -> None:
        updated, sampler = False, self.plan.sampler
        while True:
            self._add_gradient(self.bound, minibatch, index, self.scale)
            finite = self._is_representable()
            if finite and self.preconditioner and not updated and isinstance(sampler, SGLD):
                self.preconditioner.update(self.weights.gradient, sampler, self.scale)
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
        self._key_global(index)
        self.plan.problem.add_gradient(bound, minibatch, factor)

    def _is_representable(self) -> bool:
        """Whether the scaled gradient fits half precision. Without a scale, an infinite one is the chain's own: it has
        diverged."""
        return self.scale <= 1 or math.isfinite(self.plan.backend.norm(self.weights.gradient))

    def _key_global(self, step: int) -> None:
        if self.plan.stochastic:
            seed_global(self.plan.backend.device, self.noise.key(step, GLOBAL))

    def _fill_normal(self, out: Tensor, index: int) -> None:
        # Noise usually goes into the gradient's memory, whose views lie ready.
        backend, ready = self.plan.backend, out is self.weights.gradient
        for parameter, piece in enumerate(self.weights.gradients if ready else backend.layout.pieces(out)):
            backend.fill_normal(piece, parameter, self.noise.normals(index, parameter))
        self._within(out)

    def _within(self, vector: Tensor) -> Tensor:
        """The part of a vector that lies in the span of the directions, in place."""
        directions = self.plan.directions
        return vector if directions is None else vector.copy_((directions @ vector) @ directions)

    def _isotropic(self, standard: Tensor) -> Tensor:
        sampler = self.plan.sampler
        return standard * (sampler.scale if isinstance(sampler, Pairs) else _UNKNOWN)


def draws(walker: ChainState) -> Iterator[Draw]:
    """Walk the chain; yield a draw after burn-in, every `thinning` steps. Independent draws have neither."""
    chains, sampler = walker.plan.chains, walker.plan.sampler
    for step in range(1, chains.num_steps + 1):
        if isinstance(sampler, SGLD):
            walker.step(step - 1, sampler)
        else:
            walker.draw_gaussian(step - 1)
        walker.plan.tick()
        past = step - chains.burn_in
        if past > 0 and past % chains.thinning == 0:
            yield walker.measure(past // chains.thinning - 1, step)


def run_chain(plan: ChainContext, chain: int) -> ChainTrace | Divergence:
    """Run one chain to its end, or to the draw at which it left the posterior."""
    walker = ChainState(plan, chain)
    record = ChainTrace(chain, batch_lengths(plan.chains, paired=is_paired(plan.sampler)), plan.traces)
    before = plan.loss
    try:
        for draw in draws(walker):
            why = left_posterior(
                draw.train,
                draw.columns,
                walker.prior_distance(),
                plan.loss,
                plan.backend.layout.num_weights,
                plan.sampler,
            )
            if why:
                return _divergence(plan, chain, draw.index, draw.step, before, draw.loss, why)
            before = draw.loss
            record.push(draw.train, draw.columns)
            if plan.tokens is not None and draw.tokens is not None:
                plan.tokens.push(chain, draw.index, *draw.tokens)
            record.loss.append(before)
            record.distance.append(draw.squared_distance**0.5)
    except Exception:
        # Shards of a model fail together or not at all: whether one is finite says nothing of the others.
        if plan.backend.sharded or bool(walker.weights.flat.isfinite().all()):
            raise
        why = "the weights are no longer finite and the model refused them"
        past = walker.steps - plan.chains.burn_in
        draw = (past - 1) // plan.chains.thinning if past > 0 else -1
        return _divergence(plan, chain, draw, walker.steps, before, float("nan"), why)
    record.seal()
    return record


def _divergence(
    plan: ChainContext, chain: int, draw: int, step: int, before: float, loss: float, why: str
) -> Divergence:
    message = (
        f"chain {chain} diverged at draw {draw} of {plan.chains.num_draws} (step {step}): loss {before:.4g} -> "
        f"{loss:.4g}; {why}; {_remedy(plan.sampler)}"
    )
    return Divergence(chain=chain, draw=draw, step=step, loss_before=before, loss=loss, message=message)


def _remedy(sampler: Sampler) -> str:
    if isinstance(sampler, SGLD):
        return f"halve step_size (now {sampler.step_size:g}) or raise localization (now {sampler.localization:g})"
    if isinstance(sampler, Pairs):
        return f"halve scale (now {sampler.scale:g})"
    return f"raise inverse_temperature (now {sampler.inverse_temperature:g}) or localization"
