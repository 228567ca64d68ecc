"""The `Problem` of a fit: the Trainer's module, data, batch transfer, precision and training step."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from bif_lightning.data.dataset import Batch, Collate, Examples, check_map_style
from bif_lightning.data.rows import rows_of
from bif_lightning.data.variety import CheckedExamples
from bif_lightning.distributed.ranks import BatchShard
from bif_lightning.exceptions import LossRefusedError
from bif_lightning.losses.collectives import check_collectives
from bif_lightning.losses.derived.batch_number import check_number_of_batch
from bif_lightning.losses.derived.derive import DerivedLoss, PerSample, check_rows, derive_loss
from bif_lightning.losses.derived.intercept import Step
from bif_lightning.losses.derived.user_loss import check_user_loss_on
from bif_lightning.losses.metric_states import MetricsKept, keeping_metrics
from bif_lightning.losses.observables import ExampleLoss, LossFn, Observable, mean_of
from bif_lightning.losses.own_batches import OwnBatches, OwnBatchesOf
from bif_lightning.losses.problem import Problem, eval_mode
from bif_lightning.losses.token_losses import by_token, zero_absent
from bif_lightning.model.devices import check_float64
from bif_lightning.model.sharded import is_sharded
from bif_lightning.sampling.context import ranks_of
from bif_lightning.trainer.drawn_rows import DrawnRows, drawn_rows
from bif_lightning.trainer.interrupts import stop_if_requested
from bif_lightning.trainer.prepared import Preparation, forget_prepared
from bif_lightning.trainer.support import split_of
from bif_lightning.trainer.training_loader import TrainingLoader, source_of, training_loader

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
    training_data: Any = None


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """A problem, and the origin of its examples.

    Attributes:
        problem: inputs of the engine.
        train, query: (dataset, positions in it) of the rows and of the columns.
        around: context of a whole snapshot, for default dtypes, which are global to all threads.
        loss: method of per-example losses, in words.
        derived: the losses if derived from the training step, else None.
        collate: as given by the user.
        sources: further objects that user code reads examples with.
        renews: whether L(w) is over the rows that the Trainer draws, as of each snapshot.
        prepared: what the hooks make of a few examples.
    """

    problem: Problem
    train: tuple[Any, Sequence[int]]
    query: tuple[Any, Sequence[int]]
    around: Callable[[], AbstractContextManager[Any]]
    loss: str
    derived: DerivedLoss | None
    prepared: Preparation
    collate: Collate | None = None
    sources: Sequence[Any] = ()
    renews: bool = False

    @property
    def datasets(self) -> list[Any]:
        """The objects that user code reads examples with."""
        parts = (self.problem.train, self.problem.query, self.problem.training)
        return [obj for part in parts for obj in (source_of(part), part.collate)] + list(self.sources)


def check_request(data: Any, name: str) -> None:
    """Check a train or query set before the Trainer exists.

    Raises:
        ValueError: it is empty, has negative or repeated indices, or numbers that may be rows or examples.
        TypeError: it is an iterable-style dataset.
    """
    try:
        rows = rows_of(data)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if rows is None:
        check_map_style(data, name)
        return
    values = rows.indices
    if not values:
        raise ValueError(f"{name} is empty; give at least one index into the training data, or a dataset")
    if min(values) < 0 or len(set(values)) < len(values):
        raise ValueError(
            f"{name} has negative or repeated indices (smallest {min(values)}, {len(values) - len(set(values))} "
            "repeated); give each example of the training data once, counted from 0, or a mask of True and False"
        )


def attribution_of(trainer: Any, module: nn.Module, request: AttributionRequest) -> Attribution:
    """The inputs of the engine, from a Trainer in `fit` with its training data.

    Raises:
        MisconfigurationException: the training data is unusable, or per-example losses cannot be derived.
        ValueError, TypeError: the sets or indices are invalid, or the device has no float64.
    """
    check_float64(trainer.strategy.root_device)
    loader = training_loader(trainer)
    places = _places(request, loader)
    sets = {name: loader.examples(*place, request.collate_fn) for name, place in places.items()}
    prepare, (around, per_call) = _preparer(trainer), _precision_contexts(trainer)
    checked = [CheckedExamples.of(name, examples, prepare) for name, examples in sets.items()]
    prepared = _prepared(module, checked, prepare, around, request.params)
    losses = _losses(module, request, checked, around, per_call)
    train = sets["train"]
    training, words = _training(trainer, loader, request, train)
    problem = Problem(
        module=module, loss=losses.each, objective=losses.mean, prepare=prepare, tokens=losses.tokens,
        train=train, query=sets.get("query", train), training=training,
        observables=[_InPrecision(OwnBatchesOf(o), per_call) for o in request.observables], params=request.params,
        eval_batch_size=losses.eval_batch_size or request.eval_batch_size, check_gradient=request.check_gradient,
        split=split_of(trainer) if is_sharded(module) else BatchShard(), sums_elements=request.per_sample == "sum",
        tick=partial(stop_if_requested, trainer),
        relative_weights=None if losses.derived is None else losses.derived.relative_weights,
    )  # fmt: skip
    _remark(problem, words)
    if losses.derived is not None and losses.derived.adapted.words:
        problem.remarks["loss"] = f"the losses of examples are of training_step with {losses.derived.adapted.words}"
    if training is not train and places["train"][0] is not loader.dataset and request.training_data is None:
        _check_form(problem, around, "training_step" if request.loss_fn is None else "loss_fn")
    return Attribution(
        problem=problem, train=places["train"], query=places.get("query", places["train"]), around=around,
        loss=losses.words, derived=losses.derived, prepared=prepared, collate=request.collate_fn,
        sources=[*data_of(trainer), request.collate_fn],
        renews=request.training_data is None and loader.dataset is not None,
    )  # fmt: skip


def _places(request: AttributionRequest, loader: TrainingLoader) -> dict[str, tuple[Any, Sequence[int]]]:
    """(dataset, positions in it) of the train set, and of the query set if it is another."""
    found = {"train": _resolve(request.train, loader, "train")}
    if request.query is not None:
        found["query"] = _resolve(request.query, loader, "query")
    return found


def _training(
    trainer: Any, loader: TrainingLoader, request: AttributionRequest, train: Examples
) -> tuple[Examples, str]:
    """The examples that L(w) is over, and words for the notes where these are not all rows of the Trainer's data."""
    if request.training_data is not None:
        data, rows = _resolve(request.training_data, loader, "training_data")
        words = f"L(w) is over the {len(rows)} examples of training_data"
        if request.training_data is request.train:
            return train, words
        return loader.examples(data, rows, request.collate_fn), words
    if loader.dataset is None:
        return train, f"L(w) is over the train examples alone, since the training data of the Trainer {loader.lacks}"
    drawn = _drawn(trainer, loader)
    return loader.examples(loader.dataset, drawn.rows, request.collate_fn), drawn.words


def _prepared(
    module: nn.Module,
    checked: Sequence[CheckedExamples],
    prepare: Callable[[Batch], Batch],
    around: Callable[[], AbstractContextManager[Any]],
    params: Sequence[str] | None,
) -> Preparation:
    with around():
        found = Preparation(module, [each.collated(each.rows) for each in checked], prepare)
        found.refuse_moved_weights(params)
    return found


def renew_training(trainer: Any, attribution: Attribution) -> None:
    """Let L(w) be over what training draws now: its loader may be a new one, and its dataset and sampler may change.

    Measured examples are prepared anew where the hooks of the module give others than before. Collective.
    """
    if any(ranks_of(attribution.problem.module).all_gather(attribution.prepared.changed())):
        forget_prepared(attribution.problem)
    if not attribution.renews:
        return
    problem, loader = attribution.problem, training_loader(trainer)
    if loader.dataset is None:
        return
    drawn, now = _drawn(trainer, loader), problem.training
    training = loader.examples(loader.dataset, drawn.rows, attribution.collate)
    _remark(problem, drawn.words)
    if source_of(now) is loader.dataset and list(now.rows) == list(training.rows):
        now.renew()
        return
    problem.training = training
    if problem.loaded:
        problem.training.prepare()


def _drawn(trainer: Any, loader: TrainingLoader) -> DrawnRows:
    assert loader.loader is not None
    return drawn_rows(loader.loader, trainer.num_training_batches, trainer.world_size)


def _remark(problem: Problem, words: str) -> None:
    problem.remarks.pop("training", None)
    if words:
        problem.remarks["training"] = words


def data_of(trainer: Any) -> list[Any]:
    """The objects with which the Trainer's training loaders read examples."""
    loaders = [loader for loader in tree_leaves(trainer.train_dataloader) if isinstance(loader, DataLoader)]
    return [obj for loader in loaders for obj in (loader.dataset, loader.collate_fn)]


def _resolve(data: Any, loader: TrainingLoader, name: str) -> tuple[Any, Sequence[int]]:
    if (rows := rows_of(data)) is None:
        return data, range(len(data))
    training = loader.dataset
    if training is None:
        raise MisconfigurationException(
            f"{name} is given as indices, but the Trainer's training data {loader.lacks}; pass a dataset as {name}"
        )
    if rows.mask not in (None, len(training)):
        raise ValueError(
            f"{name} is a mask of {rows.mask} values, but the training data has {len(training)} examples; give one "
            "value for each of them"
        )
    if max(rows.indices) >= len(training):
        raise ValueError(
            f"{name} has index {max(rows.indices)}, but the training data has {len(training)} examples (0 to "
            f"{len(training) - 1})"
        )
    return training, rows.indices


def _check_form(problem: Problem, around: Callable[[], AbstractContextManager[Any]], name: str) -> None:
    """Check that the loss takes the Trainer's training data, where train and query are other data.

    Raises:
        MisconfigurationException: it does not.
    """
    training, module = problem.training, problem.module
    if is_sharded(module):
        return
    try:
        with around(), eval_mode(module), torch.enable_grad():
            problem.objective(module, problem.prepare(training.collated(range(min(2, len(training))))))
    except Exception as error:
        raise MisconfigurationException(
            f"{name} takes the examples of train, but raised {type(error).__name__} on the Trainer's training data "
            f"({type(source_of(training)).__name__}), which L(w) is the mean loss over: {error}. Where these have "
            "another form, say which data L(w) is over, in the form of train: training_data=train, or a larger set"
        ) from error


def _preparer(trainer: Any) -> Callable[[Batch], Batch]:
    """The training loop's conversion and transfer of a batch before the step.

    It calls the hooks directly, since the loop times them with a profiler, which threads must not share.
    """
    convert, device = trainer.precision_plugin.convert_input, trainer.strategy.root_device
    selector = trainer._data_connector._datahook_selector
    before, transfer, after = (getattr(selector.get_instance(name), name) for name in _TRANSFER_HOOKS)

    def prepare(batch: Batch) -> Batch:
        with torch.no_grad():  # batches are kept, and a graph could be used once only
            return after(transfer(before(convert(batch), 0), device, 0), 0)

    return prepare


def _precision_contexts(trainer: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Contexts of a snapshot and of each forward pass: autocast is local to a thread, a default dtype global."""
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

    @property
    def eval_batch_size(self) -> int | None:
        """The required number of examples in a batch; None for any."""
        return None if self.derived is None else self.derived.eval_batch_size


def _losses(
    module: nn.Module,
    request: AttributionRequest,
    checked: Sequence[CheckedExamples],
    around: Callable[[], Any],
    per_call: Callable[[], Any],
) -> _Losses:
    with around(), eval_mode(module):
        if request.loss_fn is None:
            return _derived_losses(module, request.per_sample, checked, per_call)
        return _given_losses(module, request.loss_fn, request.per_token, checked, per_call)


def _derived_losses(
    module: nn.Module, per_sample: PerSample, checked: Sequence[CheckedExamples], per_call: Callable[[], Any]
) -> _Losses:
    if not getattr(module, "automatic_optimization", True):
        raise MisconfigurationException(
            "the module uses manual optimization (automatic_optimization = False), so its training_step would "
            "train it; pass loss_fn(module, batch) -> Tensor[batch] to BIFCallback"
        )
    kept = keeping_metrics(_training_step(module, 0), module)
    step, train = _in_precision(kept, per_call), checked[0]
    steps: Callable[[int], Step] = lambda number: _in_precision(  # noqa: E731
        keeping_metrics(_training_step(module, number), module), per_call
    )
    with _refused_as_misconfiguration(kept):
        check_collectives(step, module, train.batch(), "training_step")
        derived = derive_loss(step, module, train.batch_of, train.rows, per_sample=per_sample)
        check_number_of_batch(lambda number: derived.adapted.step(steps(number)), module, train.batch())
        for further in checked[1:]:
            check_rows(derived, module, further.batch_of, further.rows, further.name)
    words = f"{derived.method}, per_sample={derived.per_sample!r}; {derived.cost}"
    words += "; sums over a batch are averaged" if derived.adds_up else ""
    words += f"; with {derived.adapted.words}" if derived.adapted.words else ""
    return _Losses(derived, derived.objective, words, derived)


def _given_losses(
    module: nn.Module, loss_fn: LossFn, per_token: bool, checked: Sequence[CheckedExamples], per_call: Callable[[], Any]
) -> _Losses:
    kept = keeping_metrics(OwnBatches(loss_fn), module)
    given, train = _in_precision(kept, per_call), checked[0]
    each = zero_absent(given)
    with _refused_as_misconfiguration(kept):
        check_user_loss_on(each, module, checked)
        check_collectives(each, module, train.batch(), "loss_fn")
    if per_token:
        with torch.enable_grad():  # a loss may differentiate inside
            by_token(given(module, train.batch()), len(train.rows))
    tokens = given if per_token else None
    return _Losses(each, lambda m, batch: mean_of(each(m, batch)), "loss_fn", tokens=tokens)


@contextmanager
def _refused_as_misconfiguration(function: object) -> Generator[None]:
    """Turn the refusal of a loss into Lightning's exception for invalid settings; it names a metric that failed."""
    try:
        yield
    except LossRefusedError as error:
        failure = function.failure if isinstance(function, MetricsKept) else ""
        said = f"\n\n{failure}. If that metric is a part of the loss, the loss is NaN for it." if failure else ""
        raise MisconfigurationException(f"{error}{said}") from error


def _training_step(module: nn.Module, number: int) -> Step:
    """Call `training_step` with a batch, and with its number in the epoch if Lightning would pass it."""
    function = cast(Any, module).training_step
    if is_param_in_hook_signature(function, "dataloader_iter", explicit=True):
        raise MisconfigurationException(
            "training_step takes a dataloader_iter, so it cannot run on chosen examples; pass "
            "loss_fn(module, batch) -> Tensor[batch] to BIFCallback"
        )
    extra = (number,) if is_param_in_hook_signature(function, "batch_idx", min_args=2) else ()
    return OwnBatches(lambda m, batch: cast(Any, m).training_step(batch, *extra))


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
