"""The `Problem` of a fit: the Trainer's module, data, batch transfer, precision and training step."""

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from bif_lightning.data.dataset import Batch, Collate, Examples, MapDataset, check_map_style
from bif_lightning.distributed.ranks import BatchShard, current_ranks
from bif_lightning.exceptions import LossRefusedError
from bif_lightning.losses.derived.derive import DerivedLoss, PerSample, check_user_loss, derive_loss
from bif_lightning.losses.derived.intercept import Step, scalar_loss
from bif_lightning.losses.observables import ExampleLoss, LossFn, Observable, mean_of
from bif_lightning.losses.problem import Problem, eval_mode
from bif_lightning.losses.token_losses import by_token, zero_absent
from bif_lightning.model.sharded import is_sharded
from bif_lightning.trainer.collectives import collectives_in, refuse_collectives
from bif_lightning.trainer.support import split_of

_PROOF_EXAMPLES = 8
_TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


@dataclass(frozen=True, kw_only=True)
class AttributionRequest:
    """The user's arguments about what to attribute, as given."""

    train: Any
    query: Any
    observables: Sequence[Observable]
    params: Sequence[str] | None
    loss_fn: LossFn | None
    per_sample: PerSample
    collate_fn: Collate | None
    eval_batch_size: int
    check_gradient: bool
    per_token: bool = False


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """A problem, and the origin of its examples.

    Attributes:
        problem: for the engine.
        train, query: (dataset, positions in it) of the rows and of the columns.
        around: context of a whole snapshot, for default dtypes, which are global to all threads.
        loss: the method of per-example losses, in words.
        derived: the losses, where derived from the training step.
    """

    problem: Problem
    train: tuple[Any, Sequence[int]]
    query: tuple[Any, Sequence[int]]
    around: Callable[[], AbstractContextManager[Any]]
    loss: str
    derived: DerivedLoss | None

    @property
    def datasets(self) -> list[Any]:
        """The objects that user code reads examples with."""
        parts = (self.problem.train, self.problem.query, self.problem.training)
        return [obj for part in parts for obj in (part.dataset, part.collate)]


def is_indices(data: Any) -> bool:
    """Whether `data` is a sequence of whole numbers: positions in the Trainer's training data, not examples."""
    if isinstance(data, range):
        return True
    if isinstance(data, Tensor):
        return data.dim() == 1 and not data.is_floating_point()
    if isinstance(data, np.ndarray):
        return data.ndim == 1 and np.issubdtype(data.dtype, np.integer)
    return isinstance(data, list | tuple) and all(type(i) is int for i in cast(Sequence[Any], data))


def check_request(data: Any, name: str) -> None:
    """Refuse an empty set or a stream, before the Trainer exists.

    Raises:
        ValueError: empty, or a negative index.
        TypeError: an iterable stream.
    """
    if not is_indices(data):
        check_map_style(data, name)
        return
    values = [int(i) for i in data]
    if not values:
        raise ValueError(f"{name} is empty; give at least one index into the training data, or a dataset")
    if min(values) < 0 or len(set(values)) < len(values):
        raise ValueError(
            f"{name} has negative or repeated indices (smallest {min(values)}, {len(values) - len(set(values))} "
            "repeated); give each example of the training data once, counted from 0"
        )


def attribution_of(trainer: Any, module: nn.Module, request: AttributionRequest) -> Attribution:
    """The inputs of the engine, from a Trainer in `fit` with its training data.

    Raises:
        MisconfigurationException: the training data is unusable, or per-example losses cannot be derived.
        ValueError, TypeError: bad sets or indices.
    """
    loader = _loader(trainer)
    collate = request.collate_fn or (None if loader is None else loader.collate_fn)
    data = None if loader is None else loader.dataset
    training = None if isinstance(data, IterableDataset) else cast(MapDataset | None, data)
    train = _resolve(request.train, training, "train")
    query = train if request.query is None else _resolve(request.query, training, "query")
    train_examples = Examples(train[0], collate, train[1])
    prepare = _preparer(trainer)
    around, per_call = _precision_contexts(trainer)
    losses = _losses(trainer, module, request, train_examples, prepare, around, per_call)
    batch_size = losses.derived.eval_batch_size if losses.derived else None
    problem = Problem(
        module=module,
        loss=losses.each,
        objective=losses.mean,
        train=train_examples,
        query=train_examples if request.query is None else Examples(query[0], collate, query[1]),
        training=train_examples if training is None else Examples(training, collate),
        prepare=prepare,
        observables=[_InPrecision(o, per_call) for o in request.observables],
        params=request.params,
        eval_batch_size=batch_size or request.eval_batch_size,
        split=split_of(trainer) if is_sharded(module) else BatchShard(),
        check_gradient=request.check_gradient,
        tokens=losses.tokens,
    )
    return Attribution(
        problem=problem, train=train, query=query, around=around, loss=losses.words, derived=losses.derived
    )


def data_of(trainer: Any) -> list[Any]:
    """What the Trainer's training loader reads examples with."""
    loader = _loader(trainer)
    return [] if loader is None else [loader.dataset, loader.collate_fn]


def _loader(trainer: Any) -> DataLoader[Any] | None:
    loaders = trainer.train_dataloader
    if isinstance(loaders, dict | list | tuple):
        flat = list(loaders.values()) if isinstance(loaders, dict) else list(cast(Sequence[Any], loaders))
        loaders = flat[0] if len(flat) == 1 else None
    if not isinstance(loaders, DataLoader) or loaders.batch_sampler is None:
        return None
    return cast(DataLoader[Any], loaders)


def _resolve(data: Any, training: Any, name: str) -> tuple[Any, Sequence[int]]:
    if not is_indices(data):
        return data, range(len(data))
    indices = [int(i) for i in data]
    if training is None:
        raise MisconfigurationException(
            f"{name} is given as indices, but the Trainer's training data is a stream or several loaders; pass a "
            f"dataset as {name}"
        )
    if max(indices) >= len(training):
        raise ValueError(
            f"{name} has index {max(indices)}, but the training data has {len(training)} examples (0 to "
            f"{len(training) - 1})"
        )
    return training, indices


def _preparer(trainer: Any) -> Callable[[Batch], Batch]:
    """The training loop's conversion and transfer of a batch before the step.

    It calls the hooks directly, since the loop times them with a profiler, which threads must not share.
    """
    convert, device = trainer.precision_plugin.convert_input, trainer.strategy.root_device
    selector = trainer._data_connector._datahook_selector
    before, transfer, after = (getattr(selector.get_instance(name), name) for name in _TRANSFER_HOOKS)
    return lambda batch: after(transfer(before(convert(batch), 0), device, 0), 0)


def _precision_contexts(trainer: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """(around a whole snapshot, around each forward): autocast is local to a thread, a default dtype global."""
    enter = trainer.precision_plugin.train_step_context
    return (nullcontext, enter) if "mixed" in str(trainer.precision) else (enter, nullcontext)


@dataclass(frozen=True)
class _Losses:
    """Loss of each example, mean loss of a batch, the method in words, and token losses."""

    each: ExampleLoss
    mean: Callable[[nn.Module, Batch], Tensor]
    words: str
    derived: DerivedLoss | None = None
    tokens: LossFn | None = None


def _losses(
    trainer: Any,
    module: nn.Module,
    request: AttributionRequest,
    train: Examples,
    prepare: Callable[[Batch], Batch],
    around: Callable[[], Any],
    per_call: Callable[[], Any],
) -> _Losses:
    rows = torch.linspace(0, len(train) - 1, min(_PROOF_EXAMPLES, len(train))).long().unique().tolist()

    items = {row: train.item(row) for row in rows}  # read once: a random augmentation would differ from itself

    def batch_of(indices: Sequence[int]) -> Batch:
        return prepare(train.collate([items[index] for index in indices]))

    with around(), eval_mode(module):
        if request.loss_fn is not None:
            given = _in_precision(request.loss_fn, per_call)
            each = zero_absent(given)
            with _refused_as_misconfiguration():
                check_user_loss(each, module, batch_of, rows)
            _check_collectives(each, module, batch_of(rows))
            if request.per_token:
                with torch.no_grad():
                    by_token(given(module, batch_of(rows)), len(rows))
            tokens = given if request.per_token else None
            return _Losses(each, lambda m, batch: mean_of(each(m, batch)), "loss_fn", tokens=tokens)
        if not getattr(module, "automatic_optimization", True):
            raise MisconfigurationException(
                "the module optimizes by hand (automatic_optimization = False), so that calling its training_step "
                "would train it; pass loss_fn(module, batch) -> Tensor[batch] to BIFCallback"
            )
        step = _in_precision(_training_step(module), per_call)
        _check_collectives(step, module, batch_of(rows))
        with _refused_as_misconfiguration():
            derived = derive_loss(step, module, batch_of, rows, per_sample=request.per_sample)
        words = f"{derived.rung}, per_sample={derived.per_sample!r}; {derived.cost}"
        return _Losses(derived, lambda m, batch: scalar_loss(step(m, batch)), words, derived)


@contextmanager
def _refused_as_misconfiguration() -> Generator[None]:
    """Raise Lightning's exception for a loss that is refused, as for other settings of the callback."""
    try:
        yield
    except LossRefusedError as error:
        raise MisconfigurationException(str(error)) from error


def _check_collectives(function: Callable[[nn.Module, Batch], Any], module: nn.Module, batch: Batch) -> None:
    """Refuse collectives where ranks run different chains; sharded models need them."""
    if current_ranks().world_size > 1 and not is_sharded(module):
        with torch.no_grad():
            refuse_collectives(collectives_in(lambda: function(module, batch)))


def _training_step(module: nn.Module) -> Step:
    """Call `training_step` with a batch, and a batch index if it takes one."""
    parameters = list(inspect.signature(cast(Any, module).training_step).parameters)
    if "dataloader_iter" in parameters:
        raise MisconfigurationException(
            "training_step takes a dataloader_iter, so that it cannot run on chosen examples; pass "
            "loss_fn(module, batch) -> Tensor[batch] to BIFCallback"
        )
    extra = (0,) if len(parameters) > 1 else ()
    return lambda m, batch: cast(Any, m).training_step(batch, *extra)


def _in_precision(function: Callable[[nn.Module, Batch], Any], context: Callable[[], Any]) -> Any:
    def call(module: nn.Module, batch: Batch) -> Any:
        with context():
            return function(module, batch)

    return call


@dataclass(frozen=True)
class _InPrecision:
    """An observable measured in the Trainer's precision."""

    inner: Observable
    context: Callable[[], Any]

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def unit(self) -> str:
        return self.inner.unit

    def columns(self, num_queries: int) -> tuple[str, ...] | None:
        return self.inner.columns(num_queries)

    def measure(self, module: nn.Module, batches: Any, losses: Tensor) -> Tensor:
        with self.context():
            return self.inner.measure(module, batches, losses)
