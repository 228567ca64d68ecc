"""Subspace: a Gaussian posterior with the loss's curvature in a few directions, and its influence in closed form.

Settings: `config.Subspace`; the posterior: `curvature.laplace`, `curvature.closed_form`. Its draws are independent and
antithetic (`sampling.antithetic`). The matrices do without them: they show whether the closed form holds.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from bif_lightning.config import Chains, Subspace
from bif_lightning.curvature.closed_form import LinearizedPosterior
from bif_lightning.curvature.laplace import (
    linearize,
    linearized_bytes,
    passing_bytes,
    seconds_to_linearize,
    steps_to_linearize,
)
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.distributed.threads import Progress
from bif_lightning.losses.problem import Problem
from bif_lightning.model.weights import WeightBackend
from bif_lightning.results.estimate import Estimate, Verdict
from bif_lightning.results.tokens import Tokens
from bif_lightning.results.verdict import MOST_LLC, diverged, raise_localization, too_few_examples
from bif_lightning.sampling.antithetic import draw_antithetic
from bif_lightning.sampling.bias import llc_over_dimension
from bif_lightning.sampling.covariances import ClosedFormCovariances, Covariances
from bif_lightning.sampling.memory import chain_bytes, nbytes_of
from bif_lightning.sampling.sampler import ChainContext, ChainState
from bif_lightning.sampling.token_trace import TokenStore
from bif_lightning.sampling.tokens import closed_form_tokens
from bif_lightning.sampling.trace import ChainTrace

CHECKING_DRAWS = 8
"""Draws a chain, where the user gives none: they check the closed form, and the matrices do without."""

_UNKNOWN = 1e-4  # scale of draws of a posterior that is not known yet, to time them


@dataclass(frozen=True)
class SubspaceSampler:
    """The closed form with the given settings."""

    settings: Subspace

    def chains(self) -> Chains:
        return Chains(num_draws=CHECKING_DRAWS)

    def check(self, problem: Problem, backend: WeightBackend, chains: Chains) -> None:
        """Localization and temperature follow from the curvature, whatever it is."""

    def preparation(self, problem: Problem, ranks: Ranks) -> int:
        return sum(steps_to_linearize(problem, self.settings, ranks))

    def seconds(self, problem: Problem, backend: WeightBackend, workers: int, ranks: Ranks) -> float:
        return seconds_to_linearize(problem, backend, self.settings, workers, ranks)

    def prepare(
        self, problem: Problem, backend: WeightBackend, workers: int, ranks: Ranks, progress: Progress | None = None
    ) -> "PreparedSubspace":
        """Gradients of all that is measured, the curvature along the strongest of them, and the pull."""
        posterior = linearize(problem, backend, self.settings, workers, ranks, progress)
        found = replace(
            self.settings,
            inverse_temperature=posterior.normal.inverse_temperature,
            localization=posterior.normal.localization,
        )
        return PreparedSubspace(SubspaceSampler(found), posterior)

    def unprepared(self) -> "UnpreparedSubspace":
        return UnpreparedSubspace(self)

    def checks(self, estimate: Estimate) -> Iterator[Verdict]:
        yield from diverged(estimate, "raise localization")
        yield from self._not_local(estimate)
        yield from too_few_examples(estimate, self.settings.num_directions)

    def remedy(self) -> str:
        return f"raise inverse_temperature (now {self.settings.inverse_temperature:g}) or localization"

    def _not_local(self, estimate: Estimate) -> Iterator[Verdict]:
        ratio = estimate.diagnostics.llc_ratio
        if not ratio > MOST_LLC:
            return
        sentence = (
            f"the matrices come from the closed form, but at the draws the loss rises {ratio:.2g} times as much as the "
            "curvature at w* explains: influence beyond first order is missing. Kinks of ReLUs and max pooling cause "
            "this at any localization, which has not made scores worse"
        )
        advice = (
            f"{raise_localization(self.settings.localization, ratio)}, or use "
            f"SGLD(num_directions={self.settings.num_directions}, ...), which samples with the true loss"
        )
        yield Verdict("not local", sentence, advice)


@dataclass(frozen=True)
class PreparedSubspace:
    """The closed form at one snapshot.

    Attributes:
        posterior: the Gaussian posterior, with the gradients of all that is measured.
    """

    sampler: SubspaceSampler
    posterior: LinearizedPosterior
    closed_form: bool = True

    @property
    def effective_dimension(self) -> float:
        return self.posterior.normal.effective_dimension

    def start(self, context: ChainContext, chain: int) -> ChainState:
        return ChainState(context, chain)

    def draw(self, state: ChainState, index: int) -> None:
        draw_antithetic(state, index, self.posterior.normal.color)

    def squared_distance(self, state: ChainState) -> float:
        moved = state.weights.flat.detach() - state.context.backend.center
        return self.posterior.normal.metric.squared_length(moved)

    def covariances(self, traces: Sequence[ChainTrace], shape: tuple[int, int, int], chains: Chains) -> Covariances:
        return ClosedFormCovariances(self.posterior, traces, chains.centring)

    def tokens(
        self, context: ChainContext, traces: Sequence[ChainTrace], ranks: Ranks, everywhere: bool, scratch: Path | None
    ) -> Tokens | None:
        return closed_form_tokens(context, self.posterior, self.sampler.settings.span, ranks)

    def token_store(self, context: ChainContext, chains: Sequence[int], scratch: Path | None) -> TokenStore | None:
        return None

    def noise_ratio(self, context: ChainContext) -> float:
        return math.nan  # no minibatch moves the draws

    def llc_ratio(self, context: ChainContext, llc: float) -> float:
        return llc_over_dimension(llc, self.effective_dimension)

    def control_draws(self, chains: Chains) -> int:
        return 0

    def within_span(self, vector: Tensor) -> Tensor:
        return vector

    def nbytes(self, problem: Problem, backend: WeightBackend, workers: int) -> int:
        chains = chain_bytes(backend, workers, vectors=2)
        passing = passing_bytes(backend, len(self.posterior.variances), self.sampler.settings.metric)
        return max(chains, passing) + nbytes_of(self.posterior.tensors())


@dataclass(frozen=True)
class UnpreparedSubspace:
    """Stands in for `PreparedSubspace` while there is no posterior yet: draws that take as long, and memory."""

    sampler: SubspaceSampler
    closed_form: bool = True
    effective_dimension: None = None

    def start(self, context: ChainContext, chain: int) -> ChainState:
        return ChainState(context, chain)

    def draw(self, state: ChainState, index: int) -> None:
        draw_antithetic(state, index, lambda standard: standard * _UNKNOWN)

    def squared_distance(self, state: ChainState) -> float:
        return state.squared_distance()

    def nbytes(self, problem: Problem, backend: WeightBackend, workers: int) -> int:
        return chain_bytes(backend, workers, vectors=2) + linearized_bytes(problem, backend, self.sampler.settings)
