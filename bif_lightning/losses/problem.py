"""The inputs of an estimate: a module, its loss, the training data, and the examples of both axes."""

import math
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bif_lightning.data.dataset import Batch, Examples, digest
from bif_lightning.distributed.ranks import BatchShard, Ranks
from bif_lightning.losses.observables import Batches, DividedBatches, ExampleLoss, LossFn, Observable, per_example
from bif_lightning.losses.token_losses import TokenValues, token_values
from bif_lightning.model.weights import BoundModule, WeightBackend, Weights
from bif_lightning.rng import DATA, seed_global, stream_seed


@dataclass(frozen=True)
class Minibatch:
    """A batch for the gradient, or this rank's part of one, with the weight of its mean loss."""

    batch: Batch
    weight: float = 1.0


@dataclass
class Problem:
    """All inputs of an estimate except weights and settings; one object serves every snapshot of a run.

    Attributes:
        module: the model; its weights at the time of an estimate are the snapshot.
        loss: loss of each example of a batch, [batch] or [batch, token].
        objective: (module, batch) -> the mean loss of a batch, a scalar; its gradient moves the chains.
        train: the attribution set, rows of the matrices.
        query: the query set, columns of the matrices; the same object as `train` for train x train.
        training: the whole training data, from which minibatches are drawn.
        observables: quantities measured on the query set in addition to the losses.
        params: name patterns of the parameters to sample; None for all trainable ones.
        eval_batch_size: batch size for measuring losses.
        prepare: prepares a collated batch for the module (device, precision, user's hooks).
        split: how ranks with a sharded module divide the examples of a batch.
        loss_scale: factor of the losses before a backward pass in half precision, which avoids underflow of gradients;
            gradients are divided by it afterwards.
        check_gradient: compare the gradient with finite differences of the loss before the first chain.
        tokens: loss function that returns token losses; None without `per_token`.
        sums_elements: the loss of an example is the objective on it alone times its divisor (`per_sample="sum"`).
        relative_weights: (module, batch) -> how much the loss of each example counts in the objective of a batch, the
            most at 1, [batch], or None for all alike; it raises a ValueError where the objective is no such mean. None
            for all alike.
        tick: called before every pass of a batch; may raise to stop.
    """

    module: nn.Module
    loss: ExampleLoss
    objective: Callable[[nn.Module, Batch], Tensor]
    train: Examples
    query: Examples
    training: Examples
    prepare: Callable[[Batch], Batch]
    observables: Sequence[Observable] = ()
    params: Sequence[str] | None = None
    eval_batch_size: int = 256
    split: BatchShard = field(default_factory=BatchShard)
    loss_scale: float = 1.0
    check_gradient: bool = True
    tokens: LossFn | None = None
    sums_elements: bool = False
    relative_weights: Callable[[nn.Module, Batch], Tensor | None] | None = None
    tick: Callable[[], None] = lambda: None
    remarks: dict[str, str] = field(default_factory=dict[str, str])
    """What is done in another way than documented, by subject: they are in the notes of every estimate."""
    twins: bool | None = field(default=None, init=False)
    """Whether copies of the module give the same results as the module; None before the test."""
    differentiates: bool = field(default=False, init=False)
    """Whether losses or observables differentiate inside (forces, gradient penalties)."""
    loaded: bool = field(default=False, init=False)
    """Whether the examples have been read."""
    written: tuple[str, ...] = field(default=(), init=False)
    """Names of the parameters, not sampled, that a forward pass writes into; every chain has its own copies of them."""
    by_differences: bool = field(default=False, init=False)
    """Whether second derivatives of the loss are wrong, so that its curvature is by differences of gradients."""
    stochastic: bool = field(default=False, init=False)
    """Whether the model (also in evaluation mode) or the training data draws random numbers from global generators."""

    def measuring(self) -> AbstractContextManager[None]:
        """Around measurements: a graph is recorded only where losses or observables differentiate inside."""
        return torch.set_grad_enabled(self.differentiates)

    @cached_property
    def train_batches(self) -> Batches:
        """All train examples, ready for the module."""
        return self._measured(self.train)

    @cached_property
    def query_batches(self) -> Batches:
        """All query examples, ready for the module."""
        if self.query is self.train:
            return self.train_batches
        return self._measured(self.query)

    @cached_property
    def train_singles(self) -> list[Batch]:
        """Batches of one train example each, ready for the module."""
        return [self.prepare(batch) for batch, _ in self.train.batches(1)]

    @cached_property
    def query_singles(self) -> list[Batch]:
        """Batches of one query example each, ready for the module."""
        if self.query is self.train:
            return self.train_singles
        return [self.prepare(batch) for batch, _ in self.query.batches(1)]

    def _measured(self, examples: Examples) -> Batches:
        batches = [(self.prepare(batch), count) for batch, count in examples.batches(self.eval_batch_size)]
        return batches if self.split.parts == 1 else DividedBatches(batches, self.split)

    def measure_observables(self, module: nn.Module) -> list[Tensor]:
        """Values of the further observables, with losses of 0: for a trial."""
        losses = torch.zeros(len(self.query), device=next(module.parameters()).device)
        return [o.measure(module, self.query_batches, losses) for o in self.observables]

    @property
    def num_train(self) -> int:
        """n, rows of the matrices."""
        return len(self.train)

    @property
    def num_further_queries(self) -> int:
        """Number of queries, or 0 if they are the train examples."""
        return 0 if self.query is self.train else len(self.query)

    @cached_property
    def column_counts(self) -> tuple[int, ...]:
        """Number of columns of the query losses and of each further observable."""
        q = len(self.query)
        return (q, *(q if (c := o.columns(q)) is None else len(c) for o in self.observables))

    def load(self, seed: int, device: torch.device, ranks: Ranks) -> None:
        """Read the measured examples once, and the training data if it fits into memory. Collective.

        Global generators are seeded first. Therefore every rank and every run reads the same examples even if reading
        draws random numbers.

        Raises:
            ValueError: the examples differ between the ranks.
        """
        if self.loaded:
            return
        with ranks.collective("reading the examples"):
            seed_global(device, stream_seed(seed, DATA))
            self.training.prepare()
            measured = [self.train_batches, self.query_batches]
            found = digest(measured) if ranks.world_size > 1 else ""
        everyone = ranks.all_gather(found)
        if differing := [rank for rank, theirs in enumerate(everyone) if theirs != everyone[0]]:
            raise ValueError(
                f"ranks {differing} read other train or query examples than rank 0, so their losses would belong to "
                "different examples: the dataset draws random numbers from its own generator, or reads different "
                "files. Pass datasets without augmentation"
            )
        self.loaded = True

    def minibatch(self, indices: Tensor) -> Minibatch:
        """Prepare a minibatch of rows of the training data; with a sharded module, this rank's part of it."""
        rows, weight = self.split.rows(indices)
        return Minibatch(self.prepare(self.training.batch(rows)), weight)

    def measure(self, bound: BoundModule) -> tuple[Float[Tensor, " train"], Float[Tensor, " column"]]:
        """Train losses, and query losses followed by the further observables, at the bound weights."""

        def everything(module: nn.Module) -> tuple[Tensor, Tensor]:
            train = per_example(self._ticking, module, self.train_batches, "loss_fn")
            return train, self._columns(module, train if self.query is self.train else None)

        with self.measuring():
            return bound.call(everything)

    def measure_tokens(
        self, bound: BoundModule
    ) -> tuple[Float[Tensor, " train"], Float[Tensor, " column"], tuple[TokenValues, TokenValues]]:
        """Train losses, columns (see `measure`), and the token losses of train and query examples.

        Raises:
            ValueError: the loss function does not return token losses.
        """
        function = self._ticking if self.tokens is None else self._ticking_tokens

        def everything(module: nn.Module) -> tuple[Tensor, Tensor, tuple[TokenValues, TokenValues]]:
            train = token_values(function, module, self.train_batches)
            query = train if self.query is self.train else token_values(function, module, self.query_batches)
            return train.sums, self._columns(module, query.sums), (train, query)

        with self.measuring():
            return bound.call(everything)

    def measure_columns(self, bound: BoundModule) -> Float[Tensor, " column"]:
        """Query losses followed by the further observables, at the bound weights."""
        with self.measuring():
            return bound.call(lambda module: self._columns(module, None))

    def _columns(self, module: nn.Module, query: Tensor | None) -> Tensor:
        if query is None:
            query = per_example(self._ticking, module, self.query_batches, "loss_fn")
        further = [o.measure(module, self.query_batches, query).detach().to(query) for o in self.observables]
        return torch.cat([query, *further]) if further else query

    def _ticking(self, module: nn.Module, batch: Batch) -> Tensor:
        self.tick()
        return self.loss(module, batch)

    def _ticking_tokens(self, module: nn.Module, batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
        self.tick()
        assert self.tokens is not None
        return self.tokens(module, batch)

    def add_gradient(self, bound: BoundModule, minibatch: Minibatch, factor: float = 1.0) -> None:
        """Add the gradient of (factor x) the mean loss of a minibatch to the bound weights' gradient."""
        self.tick()
        factor *= minibatch.weight

        def backward(module: nn.Module) -> None:
            loss = self.objective(module, minibatch.batch)
            if not loss.requires_grad:  # of examples without a target, or of other weights than those that are sampled
                return
            loss.backward(None if factor == 1 else torch.full_like(loss, factor))

        bound.call(backward)

    def gradient(
        self,
        backend: WeightBackend,
        weights: Weights,
        bound: BoundModule,
        parts: Minibatch | Sequence[tuple[Minibatch, float]],
    ) -> None:
        """Set `weights.gradient` to the gradient of the mean loss of a minibatch, or of a weighted sum of such means.

        The loss is scaled by the largest of `loss_scale`, its half, its quarter, ... that does not overflow.
        """
        shared = [(parts, 1.0)] if isinstance(parts, Minibatch) else parts
        scale = self.loss_scale
        while True:
            weights.gradient.zero_()
            for minibatch, share in shared:
                self.add_gradient(bound, minibatch, scale * share)
            if scale <= 1 or math.isfinite(backend.norm(weights.gradient)):
                break
            scale /= 2
        if scale != 1:
            weights.gradient.div_(scale)

    def mean_loss(self, bound: BoundModule, minibatch: Minibatch) -> float:
        """Mean loss of a minibatch over all ranks' parts, at the bound weights."""
        with self.measuring():
            loss = bound.call(lambda module: self.objective(module, minibatch.batch))
        parts = self.split.gathered(loss.detach().double() * minibatch.weight)
        return sum(float(part) for part in parts) / len(parts)


@contextmanager
def disable_compile() -> Generator[None]:
    """Run compiled modules without the compiler: chains would make it trace again, up to its recompile limit."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and importing the compiler takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def eval_mode(module: nn.Module) -> Generator[None]:
    """Put the module into evaluation mode, so that losses of examples are independent; restore each part's flag.

    Recurrent layers compute without cuDNN, whose backward pass refuses evaluation mode, and has no second derivative.
    """
    flags = [(part, part.training) for part in module.modules()]
    recurrent = any(isinstance(part, nn.RNNBase) for part, _ in flags)
    for part, _ in flags:
        part.training = False
    try:
        with _without_cudnn() if recurrent else nullcontext():
            yield
    finally:
        for part, flag in flags:
            part.training = flag


@contextmanager
def _without_cudnn() -> Generator[None]:
    enabled = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = enabled
