"""What is to be estimated: a module, its loss, the training data, and the examples on both axes."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bif_lightning.data import Batch, Examples
from bif_lightning.host import Bound
from bif_lightning.observables import Batches, LossFn, Observable, per_example


@dataclass
class Problem:
    """Everything about an estimate but the weights and the settings; serves every snapshot of a run.

    Attributes:
        module: the model; its weights at the time of an estimate are the snapshot.
        loss: loss of each example of a batch, [batch] or [batch, token].
        objective: (module, batch) -> the mean loss of a batch, a scalar; its gradient moves the chains.
        train: the attribution set, rows of the matrices.
        query: the query set, columns of the matrices; the same object as `train` for train x train.
        training: the whole training data, from which minibatches are drawn.
        observables: measured on the query set beside the losses.
        params: name patterns of the parameters to sample; None for all trainable ones.
        eval_batch_size: examples in a batch where losses are measured.
        prepare: makes a collated batch ready for the module (device, precision, user's hooks).
    """

    module: nn.Module
    loss: LossFn
    objective: Callable[[nn.Module, Batch], Tensor]
    train: Examples
    query: Examples
    training: Examples
    prepare: Callable[[Batch], Batch]
    observables: Sequence[Observable] = ()
    params: Sequence[str] | None = None
    eval_batch_size: int = 256
    twins: bool | None = field(default=None, init=False)
    """Whether twins of the module reproduce it; None until it was tried."""
    stochastic: bool = field(default=False, init=False)
    """Whether the model (also in evaluation mode) or the training data draws random numbers from global generators."""

    @cached_property
    def _train_batches(self) -> Batches:
        return [(self.prepare(batch), count) for batch, count in self.train.batches(self.eval_batch_size)]

    @cached_property
    def _query_batches(self) -> Batches:
        if self.query is self.train:
            return self._train_batches
        return [(self.prepare(batch), count) for batch, count in self.query.batches(self.eval_batch_size)]

    @property
    def num_train(self) -> int:
        """n, rows of the matrices."""
        return len(self.train)

    @cached_property
    def column_counts(self) -> tuple[int, ...]:
        """Columns of the query losses, then of each further observable."""
        q = len(self.query)
        return (q, *(q if (c := o.columns(q)) is None else len(c) for o in self.observables))

    def load(self) -> None:
        """Touch the datasets: cache what is measured, and stack the training data where that is safe."""
        self.training.prepare()
        _ = self._train_batches, self._query_batches

    def minibatch(self, indices: Tensor) -> Batch:
        """These rows of the training data, ready for the module."""
        return self.prepare(self.training.batch(indices))

    def measure(self, bound: Bound) -> tuple[Float[Tensor, " train"], Float[Tensor, " column"]]:
        """Train losses, and query losses followed by the further observables, at the bound weights."""

        def everything(module: nn.Module) -> tuple[Tensor, Tensor]:
            train = per_example(self.loss, module, self._train_batches, "loss_fn")
            query = (
                train if self.query is self.train else per_example(self.loss, module, self._query_batches, "loss_fn")
            )
            further = [o.measure(module, self._query_batches, query).to(query) for o in self.observables]
            return train, torch.cat([query, *further]) if further else query

        with torch.no_grad():
            return bound.call(everything)

    def mean_loss(self, bound: Bound, batch: Batch, sign: float = 1.0) -> None:
        """Add the gradient of (sign x) the mean loss of a minibatch to the bound weights' gradient."""

        def backward(module: nn.Module) -> None:
            loss = self.objective(module, batch)
            loss.backward(None if sign == 1 else torch.full_like(loss, sign))

        bound.call(backward)


@contextmanager
def evaluating(module: nn.Module) -> Generator[None]:
    """The module in evaluation mode, so that an example's loss is its own; each part's flag is put back."""
    flags = [(part, part.training) for part in module.modules()]
    for part, _ in flags:
        part.training = False
    try:
        yield
    finally:
        for part, flag in flags:
            part.training = flag
