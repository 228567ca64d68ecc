"""What a sampler is: how it prepares at a snapshot, draws, turns draws into covariances, and judges the result.

One file a sampler (`sgld`, `pairs`, `subspace`, `controlled`), always in the same order: prepare, draw, covariances,
checks. The flow in `estimation.estimator` knows samplers only by the protocols here; a further sampler is one new file,
its settings in `config`, and a line in `sampling.choice`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from bif_lightning import config
from bif_lightning.config import Chains
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.distributed.threads import Progress
from bif_lightning.losses.problem import Problem
from bif_lightning.losses.token_losses import TokenValues
from bif_lightning.model.weights import BoundModule, WeightBackend, Weights
from bif_lightning.results.estimate import Estimate, Verdict
from bif_lightning.results.tokens import Tokens
from bif_lightning.rng import GLOBAL, Noise, chain_noise, seed_global
from bif_lightning.sampling.covariances import Covariances
from bif_lightning.sampling.token_trace import TokenStore
from bif_lightning.sampling.trace import ChainTrace


class Sampler(Protocol):
    """A way to draw from a posterior around the snapshot, with its settings."""

    @property
    def settings(self) -> config.Sampler:
        """The settings, as they are recorded."""
        ...

    def chains(self) -> Chains:
        """Number and length of chains where the user gives none."""
        ...

    def check(self, problem: Problem, backend: WeightBackend, chains: Chains) -> None:
        """Refuse settings that cannot work at this snapshot.

        Raises:
            ValueError: which, and what to give.
        """
        ...

    def preparation(self, problem: Problem, ranks: Ranks) -> int:
        """Steps of progress that `prepare` reports on this rank."""
        ...

    def seconds(self, problem: Problem, backend: WeightBackend, workers: int, ranks: Ranks) -> float:
        """About how long `prepare` takes, timed on parts of it. Collective."""
        ...

    def prepare(
        self, problem: Problem, backend: WeightBackend, workers: int, ranks: Ranks, progress: Progress | None = None
    ) -> "Prepared":
        """Measure gradients and curvature at the snapshot, as far as this sampler uses them. Collective.

        Raises:
            ValueError: they cannot be had; the message says what to change.
        """
        ...

    def unprepared(self) -> "Kernel":
        """Stands in for `prepare` where only the cost of draws is wanted."""
        ...

    def checks(self, estimate: Estimate) -> Iterator[Verdict]:
        """What is wrong with an estimate of this sampler, the most harmful first, in this sampler's own words."""
        ...

    def remedy(self) -> str:
        """What to change where a chain diverges."""
        ...


class Kernel(Protocol):
    """How chains move, and what that takes."""

    @property
    def sampler(self) -> Sampler:
        """The sampler with the settings that were found for this snapshot."""
        ...

    @property
    def closed_form(self) -> bool:
        """Whether the matrices follow from gradients and curvature, and draws only check them."""
        ...

    @property
    def effective_dimension(self) -> float | None:
        """d_eff of the posterior, where the sampler knows it without draws; else None."""
        ...

    def start(self, context: "ChainContext", chain: int) -> "ChainState":
        """A chain at the snapshot."""
        ...

    def draw(self, state: "ChainState", index: int) -> None:
        """Move a chain to its next state."""
        ...

    def squared_distance(self, state: "ChainState") -> float:
        """|w − w*|², in the metric of the pull."""
        ...

    def nbytes(self, problem: Problem, backend: WeightBackend, workers: int) -> int:
        """Memory of this sampler beyond the snapshot and the draws: chains under way, gradients, curvature."""
        ...


class Prepared(Kernel, Protocol):
    """A sampler at one snapshot."""

    def covariances(self, traces: Sequence[ChainTrace], shape: tuple[int, int, int], chains: Chains) -> Covariances:
        """Covariances of train losses and columns: of the draws, or in closed form.

        Args:
            traces: of all chains that did not diverge, in their order.
            shape: train rows, columns, and query losses (the first of the columns).
        """
        ...

    def token_store(self, context: "ChainContext", chains: Sequence[int], scratch: Path | None) -> TokenStore | None:
        """Where the losses of tokens at the draws of these chains go; None where they are not needed."""
        ...

    def tokens(
        self,
        context: "ChainContext",
        traces: Sequence[ChainTrace],
        ranks: Ranks,
        everywhere: bool,
        scratch: Path | None,
    ) -> Tokens | None:
        """Influence of single tokens; None where it is not asked for, or another rank gets it. Collective."""
        ...

    def noise_ratio(self, context: "ChainContext") -> float:
        """Variance that minibatches add to a step, over that of its own noise (`sampling.bias`); NaN without steps.

        Collective for a module in shards.
        """
        ...

    def llc_ratio(self, context: "ChainContext", llc: float) -> float:
        """LLC over half the effective dimension (`sampling.bias`); NaN where that is not known.

        Collective for a module in shards.
        """
        ...

    def control_draws(self, chains: Chains) -> int:
        """How many draws of the pull alone are compared with the estimate; 0 where that has no meaning."""
        ...

    def within_span(self, vector: Tensor) -> Tensor:
        """The part of a vector of weights that the chains can reach, in place."""
        ...


@dataclass(frozen=True)
class Draw:
    """The observables at one recorded state of a chain, and its distance from the snapshot.

    `tokens` are the losses of single tokens of train and query examples, with `per_token`; `coordinates` those of a
    chain and its surrogate, where there is one.
    """

    index: int
    step: int
    train: Float[Tensor, " train"]
    columns: Float[Tensor, " column"]
    squared_distance: float
    tokens: tuple[TokenValues, TokenValues] | None = None
    coordinates: Float[Tensor, "2 direction"] | None = None

    @property
    def loss(self) -> float:
        """Mean train loss."""
        return float(self.train.double().mean())


@dataclass(frozen=True)
class ChainContext:
    """What all chains of one estimate share.

    Attributes:
        kernel: how the chains move at this snapshot.
        snapshot: key of the snapshot in the noise (0 where random numbers are common to all snapshots).
        loss: mean train loss at the snapshot.
        traces: whether every draw is kept.
        tick: called after every step; may raise to stop the chain.
        stochastic: the model or its data draws random numbers, from global generators to be keyed.
        token_losses: losses of single tokens at the snapshot, of train and query examples; None where they are not
            asked for.
        tokens: where those at the draws go; None where they are not needed.
    """

    problem: Problem
    backend: WeightBackend
    kernel: Kernel
    chains: Chains
    snapshot: int
    loss: float
    traces: bool
    tick: Callable[[], None]
    stochastic: bool = False
    token_losses: tuple[TokenValues, TokenValues] | None = None
    tokens: TokenStore | None = None

    @property
    def settings(self) -> config.Sampler:
        """The sampler's settings at this snapshot."""
        return self.kernel.sampler.settings


class ChainState:
    """The moving parts of one chain: its weights, and its noise."""

    def __init__(self, context: ChainContext, chain: int) -> None:
        self.context = context
        backend = context.backend
        self.weights: Weights = backend.weights()
        self.bound: BoundModule = backend.bind(self.weights)
        self.steps = 0
        self.noise: Noise = chain_noise(context.chains.seed, context.snapshot, chain, backend.device)

    def measure(self, draw: int, step: int) -> Draw:
        """Measure the observables where the chain stands."""
        # The same key at every draw: the model's own randomness must not count as covariance of the weights.
        self.key_global(0)
        self.weights.track(False)
        problem, tokens = self.context.problem, None
        if self.context.tokens is None:
            train, columns = problem.measure(self.bound)
        else:
            train, columns, tokens = problem.measure_tokens(self.bound)
        self.weights.track(True)
        return Draw(draw, step, train, columns, self.squared_distance(), tokens, self.coordinates())

    def coordinates(self) -> Float[Tensor, "2 direction"] | None:
        """Coordinates of the chain and of its surrogate; None where there is none."""
        return None

    def squared_distance(self) -> float:
        """‖w − w*‖²."""
        return self.context.backend.distance(self.weights.flat) ** 2

    def put(self, displacement: Float[Tensor, " weight"]) -> None:
        """Put the weights at w* + displacement."""
        with torch.no_grad():
            torch.add(self.context.backend.center, displacement, out=self.weights.flat)

    def key_global(self, step: int) -> None:
        """Key the global generators, where the model or its data draws from them."""
        if self.context.stochastic:
            seed_global(self.context.backend.device, self.noise.key(step, GLOBAL))
