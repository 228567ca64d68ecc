"""Pairs: independent antithetic draws of the pull alone, N(w*, σ²·I), by forward passes only.

Settings: `config.Pairs`; draws: `sampling.antithetic`. What the losses say of the data enters by the conditioned
influence (`statistics.conditioned`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bif_lightning.config import Chains, Pairs
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.distributed.threads import Progress
from bif_lightning.losses.problem import Problem
from bif_lightning.model.weights import WeightBackend
from bif_lightning.results.estimate import Estimate, Verdict
from bif_lightning.results.tokens import Tokens
from bif_lightning.results.verdict import diverged, not_local, too_few_draws
from bif_lightning.sampling.antithetic import draw_antithetic
from bif_lightning.sampling.covariances import Covariances, DrawnCovariances
from bif_lightning.sampling.memory import chain_bytes
from bif_lightning.sampling.sampler import ChainContext, ChainState
from bif_lightning.sampling.token_trace import TokenStore
from bif_lightning.sampling.tokens import drawn_tokens, token_store
from bif_lightning.sampling.trace import ChainTrace


@dataclass(frozen=True)
class PairsSampler:
    """Antithetic draws with the given settings."""

    settings: Pairs

    def chains(self) -> Chains:
        return Chains()

    def check(self, problem: Problem, backend: WeightBackend, chains: Chains) -> None:
        """Any scale can be drawn."""

    def preparation(self, problem: Problem, ranks: Ranks) -> int:
        return 0

    def seconds(self, problem: Problem, backend: WeightBackend, workers: int, ranks: Ranks) -> float:
        return 0.0

    def prepare(
        self, problem: Problem, backend: WeightBackend, workers: int, ranks: Ranks, progress: Progress | None = None
    ) -> "PreparedPairs":
        return PreparedPairs(self)

    def unprepared(self) -> "PreparedPairs":
        return PreparedPairs(self)

    def checks(self, estimate: Estimate) -> Iterator[Verdict]:
        yield from diverged(estimate, f"halve scale from {self.settings.scale:g}")
        yield from not_local(estimate)
        yield from too_few_draws(estimate)

    def remedy(self) -> str:
        return f"halve scale (now {self.settings.scale:g})"


@dataclass(frozen=True)
class PreparedPairs:
    """Antithetic draws at one snapshot."""

    sampler: PairsSampler
    closed_form: bool = False
    effective_dimension: None = None

    def start(self, context: ChainContext, chain: int) -> ChainState:
        return ChainState(context, chain)

    def draw(self, state: ChainState, index: int) -> None:
        draw_antithetic(state, index, lambda standard: standard * self.sampler.settings.scale)

    def squared_distance(self, state: ChainState) -> float:
        return state.squared_distance()

    def covariances(self, traces: Sequence[ChainTrace], shape: tuple[int, int, int], chains: Chains) -> Covariances:
        return DrawnCovariances.of(traces, shape, chains, paired=True)

    def tokens(
        self, context: ChainContext, traces: Sequence[ChainTrace], ranks: Ranks, everywhere: bool, scratch: Path | None
    ) -> Tokens | None:
        return drawn_tokens(context, traces, ranks, everywhere, scratch)

    def token_store(self, context: ChainContext, chains: Sequence[int], scratch: Path | None) -> TokenStore | None:
        return token_store(context, chains, scratch)

    def noise_ratio(self, context: ChainContext) -> float:
        return math.nan  # no minibatch moves the draws

    def llc_ratio(self, context: ChainContext, llc: float) -> float:
        return math.nan  # without data there is no curvature to compare with

    def control_draws(self, chains: Chains) -> int:
        return 0  # the draws are those of the control

    def within_span(self, vector: Tensor) -> Tensor:
        return vector

    def nbytes(self, problem: Problem, backend: WeightBackend, workers: int) -> int:
        return chain_bytes(backend, workers, vectors=5)
