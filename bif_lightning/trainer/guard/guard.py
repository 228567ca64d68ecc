"""The guard around a snapshot, which restores all state of the training that user code can change.

During a snapshot the user's `training_step`, `loss_fn` and dataset run many times, on copies of the weights. The copies
share everything else with the live module. `training_guard` saves that and restores it in place; each concern is one of
`PARTS`.

Not restored: iterators, which cannot be rewound (`iterators` finds them); objects of extension types that hide their
state; arrays beyond the budgets below, and memory maps; anything outside the process.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch.distributed.fsdp import FSDPModule

from bif_lightning.exceptions import TrainingDisturbedError
from bif_lightning.losses.metric_states import detach_metrics
from bif_lightning.model.object_graph import Node, is_dataset, walk_objects
from bif_lightning.model.sharded import is_sharded
from bif_lightning.trainer.guard.random_state import keep_global_generators
from bif_lightning.trainer.guard.restore import save_state
from bif_lightning.trainer.guard.tensors import (
    CopyBudget,
    Undo,
    has_values,
    keep_values,
    nothing,
    restore_gradient,
    writes_of,
)

_MIB = 2**20
_ABSENT = object()
_FSDP_HOOKS = (
    "_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)

Restoring = Generator[None, None, None]


@runtime_checkable
class LogsValues(Protocol):
    """The logging methods of a LightningModule, of `lightning` or of `pytorch_lightning`."""

    _current_fx_name: str | None

    def log(self, name: str, value: Any) -> None: ...
    def log_dict(self, dictionary: Any) -> None: ...


@dataclass(frozen=True)
class Scope:
    """The Trainer, LightningModule and datasets that one guard covers.

    Attributes:
        sampled: names of the parameters of which chains have copies, so that no forward pass meets the live ones.
    """

    trainer: Any
    module: nn.Module
    datasets: tuple[object, ...] = ()
    sampled: frozenset[str] = frozenset()

    @cached_property
    def reached(self) -> list[Node]:
        """All objects reachable from the module, except those inside the Trainer, its optimizers and datasets."""
        trainer = self.trainer
        live = {id(parameter) for parameter in self.module.parameters()}
        ids = live | {id(obj) for obj in (trainer, *trainer.loggers, *trainer.callbacks, *self.datasets)}

        def leave(obj: object) -> bool:
            return id(obj) in ids or is_dataset(obj) or isinstance(obj, torch.optim.Optimizer)

        hidden = live | _hooks_of_shards(self.module)
        return [node for node in walk_objects({"module": self.module}, leave=leave) if id(node[1]) not in hidden]


def _hooks_of_shards(module: nn.Module) -> set[int]:
    """State dict hooks that FSDP registers once, in its first forward pass, which may be one of a chain."""
    if not any(isinstance(part, FSDPModule) for part in module.modules()):
        return set()
    return {id(vars(part)[name]) for part in module.modules() for name in _FSDP_HOOKS}


Part = Callable[[Scope], AbstractContextManager[None]]


@contextmanager
def _undone(undos: Iterable[tuple[str, Undo]]) -> Restoring:
    kept = [(path, undo) for path, undo in undos if undo is not nothing]
    try:
        yield
    finally:
        _undo_all(kept)


def _undo_all(kept: Iterable[tuple[str, Undo]]) -> None:
    failures: list[BaseException] = []
    for path, undo in kept:
        try:
            undo()
        except BaseException as error:  # also an interrupt: the rest is restored first
            error.add_note(f"bif_lightning was restoring {path} after a snapshot")
            failures.append(error)
    if len(failures) > 1:
        raise BaseExceptionGroup("several objects could not be restored after a snapshot", failures)
    if failures:
        raise failures[0]


def _kept(nodes: Iterable[Node], budget: CopyBudget) -> AbstractContextManager[None]:
    return _undone((path, save_state(obj, budget)) for path, obj in nodes)


@contextmanager
def _replaced(namespace: dict[str, Any], values: Mapping[str, object]) -> Restoring:
    before = {name: namespace.get(name, _ABSENT) for name in values}
    try:
        namespace.update(values)
        yield
    finally:
        for name, value in before.items():
            if value is _ABSENT:
                namespace.pop(name, None)
            else:
                namespace[name] = value


def random_numbers(scope: Scope) -> AbstractContextManager[None]:
    """Guard the global generators of torch (CPU and the module's devices), NumPy and Python."""
    return _undone(keep_global_generators(scope.module))


def settings(scope: Scope) -> AbstractContextManager[None]:
    """Guard torch's settings for the process or the calling thread: gradients, default dtype, threads, determinism."""

    def undo(name: str, value: Any) -> None:
        read, write = SETTINGS[name]
        if read() != value:
            write(value)

    return _undone((name, partial(undo, name, read())) for name, (read, _) in SETTINGS.items())


_ReadAndWrite = tuple[Callable[[], Any], Callable[[Any], object]]


def _precisions() -> dict[str, _ReadAndWrite]:
    """Of each backend where torch has them: the older setting of all refuses to be read where one of these is set."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        return {"float32 precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)}
    cudnn: Any = torch.backends.cudnn
    of = {"products": torch.backends.cuda.matmul, "convolutions": cudnn.conv, "recurrent layers": cudnn.rnn}
    return {
        f"float32 precision of {what}": (
            partial(getattr, backend, "fp32_precision"), partial(setattr, backend, "fp32_precision"),
        )
        for what, backend in of.items()
    }  # fmt: skip


def _set_cudnn_benchmark(value: bool) -> None:
    torch.backends.cudnn.benchmark = value


SETTINGS: Mapping[str, _ReadAndWrite] = {
    "gradients on": (torch.is_grad_enabled, torch.set_grad_enabled),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "determinism": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    **_precisions(),
    "cuDNN benchmark": (lambda: torch.backends.cudnn.benchmark, _set_cudnn_benchmark),
}


@contextmanager
def attributes(scope: Scope) -> Restoring:
    """Guard the Python state of the module tree: attributes, buffers, metrics, train flags, private generators.

    Inside, metrics keep no graphs, since chains work on copies of them, and a tensor with a graph cannot be copied.
    """
    with _kept(scope.reached, CopyBudget(item=256 * _MIB, total=1024 * _MIB)):
        detach_metrics(obj for _, obj in scope.reached)
        yield


def datasets(scope: Scope) -> AbstractContextManager[None]:
    """Guard the Python state of the datasets: counters, caches, private generators, and small arrays."""
    found = [*scope.datasets, *(obj for _, obj in scope.reached if is_dataset(obj))]
    roots = {f"dataset {index}": obj for index, obj in enumerate(found)}
    return _kept(walk_objects(roots, elements=10_000), CopyBudget(item=_MIB, total=64 * _MIB))


@contextmanager
def optimizers(scope: Scope) -> Restoring:
    """Guard the settings of optimizers (learning rates) and schedulers; calling `step` raises RuntimeError."""
    trainer, live = scope.trainer, {id(parameter) for parameter in scope.module.parameters()}
    roots = {f"optimizer {index}": opt.param_groups for index, opt in enumerate(trainer.optimizers)}
    roots |= {f"scheduler {index}": c.scheduler for index, c in enumerate(trainer.lr_scheduler_configs)}

    def leave(obj: object) -> bool:
        return id(obj) in live or isinstance(obj, torch.optim.Optimizer)

    nodes = [(path, obj) for path, obj in walk_objects(roots, leave=leave) if not leave(obj)]
    with ExitStack() as stack:
        stack.enter_context(_kept(nodes, CopyBudget(item=_MIB, total=64 * _MIB)))
        for optimizer in trainer.optimizers:
            stack.enter_context(_replaced(vars(optimizer), {"step": _refuse_step}))
        yield


def _refuse_step(*args: object, **kwargs: object) -> None:
    raise RuntimeError(
        "training_step called an optimizer's step during a snapshot, which would train the model with the weights "
        "of a chain; with manual optimization give the callback a loss_fn(module, batch), which it calls instead"
    )


@contextmanager
def parameters(scope: Scope) -> Restoring:
    """Guard the values of the live parameters: a forward pass may write into those that chains do not sample.

    Those are saved within a budget. A write into any other stops the training.
    """
    if is_sharded(scope.module):  # chains compute with the shards themselves, and put them back
        yield
        return
    budget, saved, watched = CopyBudget(item=256 * _MIB, total=1024 * _MIB), list[tuple[str, Undo]](), list[Any]()
    for name, parameter in scope.module.named_parameters():
        if not has_values(parameter):
            continue
        undo = None if name in scope.sampled else keep_values(parameter, budget)
        if undo is None:
            watched.append((name, parameter, writes_of(parameter)))
        else:
            saved.append((name, undo))
    with _undone(saved):
        yield
    if written := [name for name, parameter, before in watched if writes_of(parameter) != before]:
        raise TrainingDisturbedError(
            f"a snapshot wrote into {', '.join(written[:4])}, and so changed the training: a forward pass writes into "
            "these weights, which are too large to be restored, or reaches them by another way than the attribute of "
            "the module. Let the model compute without writing into its weights, or look at saved checkpoints, with "
            "bif_lightning.attribute"
        )


@contextmanager
def gradients(scope: Scope) -> Restoring:
    """Set the gradients of the live parameters aside, so that a snapshot cannot add to them."""
    undos = [
        (f"gradient of {name}", partial(restore_gradient, parameter, parameter.grad, parameter.requires_grad))
        for name, parameter in scope.module.named_parameters()
    ]
    with _undone(undos):
        for parameter in scope.module.parameters():
            parameter.grad = None
        yield


def trainer_state(scope: Scope) -> AbstractContextManager[None]:
    """Guard the attributes of the Trainer and its loops that user code sets, such as `should_stop`."""
    trainer = scope.trainer
    connector = vars(trainer._logger_connector)
    tables = [value for value in connector.values() if isinstance(value, dict)]
    loops = [vars(trainer.fit_loop), vars(trainer.fit_loop.epoch_loop)]
    nodes = [("the Trainer", table) for table in (vars(trainer), *loops, connector, *tables)]
    return _kept(nodes, CopyBudget(item=_MIB, total=64 * _MIB))


def _log_nothing(*args: object, **kwargs: object) -> None:
    """Replaces `log` and `log_dict` of every LightningModule while a snapshot runs."""


@contextmanager
def logging(scope: Scope) -> Restoring:
    """Disable `self.log`, `self.log_dict` and the loggers, on every LightningModule in the tree.

    Copy the module inside the guard, so that copies share the disabled methods.
    """
    trainer, silent = scope.trainer, {"log": _log_nothing, "log_dict": _log_nothing}
    modules = [obj for _, obj in scope.reached if isinstance(obj, nn.Module)]
    loggers = trainer.loggers
    with ExitStack() as stack:
        for module in modules:
            if isinstance(module, LogsValues):
                stack.enter_context(_replaced(vars(module), {**silent, "_current_fx_name": "training_step"}))
        stack.callback(setattr, trainer, "loggers", loggers)
        trainer.loggers = [DummyLogger() for _ in loggers]
        yield


PARTS: Mapping[str, Part] = MappingProxyType(
    {
        "random numbers": random_numbers,
        "settings": settings,
        "attributes": attributes,
        "datasets": datasets,
        "optimizers": optimizers,
        "parameters": parameters,
        "gradients": gradients,
        "trainer": trainer_state,
        "logging": logging,
    }
)


def iterators(trainer: Any, module: nn.Module) -> list[str]:
    """Paths of the iterators that the module's code can reach, such as an open `iter(loader)`.

    Python cannot rewind them: if `training_step` advances one, a snapshot changes the training. The session warns.
    """
    return [path for path, obj in Scope(trainer, module).reached if isinstance(obj, Iterator)]


@contextmanager
def training_guard(
    trainer: Any,
    module: nn.Module,
    datasets: Sequence[object] = (),
    *,
    sampled: Iterable[str] = (),
    parts: Mapping[str, Part] = PARTS,
) -> Restoring:
    """Restore, at exit, whatever user code inside may have changed of the training.

    Every part restores, also after an exception or KeyboardInterrupt inside, and when another part fails to restore.
    Containers are restored in place, so that references held elsewhere stay valid. Threads that run user code must end
    before the exit. May be nested.

    Args:
        trainer: the Trainer, of `lightning` or `pytorch_lightning`, inside `fit`.
        module: its LightningModule, unwrapped.
        datasets: the objects that the snapshot reads examples with: datasets, and collate functions with state.
        sampled: names of the parameters that are only watched, since callers compute with copies of them.
        parts: the concerns to cover, by name; entered in order.

    Raises:
        RuntimeError: at exit, if a tensor too large to copy was written in place; of a parameter
            TrainingDisturbedError.
    """
    scope = Scope(trainer, module, tuple(datasets), frozenset(sampled))
    with ExitStack() as stack:
        for part in parts.values():
            stack.enter_context(part(scope))
        yield
