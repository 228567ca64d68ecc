"""Metrics of torchmetrics in a module whose loss is called many times: their states stay, and cannot make it fail.

A metric that is fed the network's output keeps its last value, and often its state, with the graph that they belong to.
Such tensors cannot be copied, and a list of them would keep the graph of every draw of a chain. A metric may also fail
where the loss does not: R² needs two examples, and none of its tests of values can run under vmap.

So every call of a loss begins with the metrics as they were before the first one. The value of a metric that fails is
NaN: where it is only logged, nothing happens; where it is a part of the loss, the loss is NaN.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

_METHODS = ("forward", "update", "compute")

Failed = dict[int, tuple[str, Exception]]
"""Metrics that failed, by id (their hash depends on their state): their class, and the error."""


def is_metric(value: object) -> TypeGuard[Metric]:
    """Whether a value is a metric.

    `isinstance` would ask all subclasses of this abstract class about every other class that it meets for the first
    time: half a second at the start of a training, whose objects are all looked at.
    """
    return Metric in type(value).__mro__


def has_metrics(module: nn.Module) -> bool:
    """Whether a metric is a part of the module."""
    return any(is_metric(part) for part in module.modules())


def detach_metrics(objects: Iterable[object]) -> None:
    """Cut the graphs of what the metrics among some objects keep, by new tensors and lists in place of the old ones."""
    for metric in objects:
        if is_metric(metric):
            kept = vars(metric)
            kept.update({name: _without_graph(value) for name, value in kept.items()})


class MetricsKept:
    """A function of a module and a batch that leaves the metrics of the module as they are.

    Args:
        function: a training step or a loss.

    Attributes:
        failure: the last metric that failed, with its error, in words; "" for none.
    """

    def __init__(self, function: Callable[[nn.Module, Any], Any]) -> None:
        self.function, self.failure = function, ""

    def __call__(self, module: nn.Module, batch: Any) -> Any:
        """The function's result.

        Raises:
            Exception: what the function raises; where a metric failed before, its error.
        """
        failed: Failed = {}
        with _kept(module, failed):
            try:
                return self.function(module, batch)
            except Exception as error:
                if failed:  # it could not use NaN in place of what the metric gives
                    raise next(iter(failed.values()))[1] from error
                raise
            finally:
                for name, cause in failed.values():
                    self.failure = f"{name} raised {type(cause).__name__}: {cause}"


def keeping_metrics(function: Callable[[nn.Module, Any], Any], module: nn.Module) -> Callable[[nn.Module, Any], Any]:
    """The function, in `MetricsKept` where the module has metrics."""
    return MetricsKept(function) if has_metrics(module) else function


@contextmanager
def _kept(module: nn.Module, failed: Failed) -> Generator[None]:
    """Give the metrics of a module copies of their states, and methods that do not fail; take both away at exit.

    Args:
        failed: gets the metrics that failed, with their errors.
    """
    metrics = [part for part in module.modules() if is_metric(part)]
    before = [(vars(metric), dict(vars(metric))) for metric in metrics]
    try:
        for metric in metrics:
            methods = {name: _tolerant(metric, name, failed) for name in _METHODS}
            fields = {name: _copied(value) for name, value in vars(metric).items()}
            vars(metric).update(fields | methods)
        yield
    finally:
        for fields, kept in before:
            for name in fields.keys() - kept.keys():
                del fields[name]
            fields.update(kept)


def _tolerant(metric: Metric, name: str, failed: Failed) -> Callable[..., Any]:
    """A method of a metric that gives NaN where it fails, and after a failure."""
    method = cast(Callable[..., Any], getattr(metric, name))

    def call(*args: Any, **kwargs: Any) -> Any:
        value = None
        try:
            value = method(*args, **kwargs)
        except Exception as error:
            failed.setdefault(id(metric), (type(metric).__name__, error))
        if id(metric) in failed and name != "update":
            return torch.full((), torch.nan, device=metric.device)
        return value

    return call


def _copied(value: Any) -> Any:
    """A copy that can be written into: states are changed in place."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (list, dict):
        return value.copy()
    return value


def _without_graph(value: Any) -> Any:
    """The value itself, or one like it where tensors in it have a graph."""
    if isinstance(value, Tensor):
        return value if value.grad_fn is None else value.detach()
    if type(value) in (list, tuple):
        items = [_without_graph(item) for item in cast(Iterable[Any], value)]
        return value if _same(items, value) else type(value)(items)
    if type(value) is dict:
        table = cast(dict[Any, Any], value)
        items = [_without_graph(item) for item in table.values()]
        return table if _same(items, table.values()) else dict(zip(table, items, strict=True))
    return value


def _same(one: Iterable[Any], other: Iterable[Any]) -> bool:
    return all(a is b for a, b in zip(one, other, strict=True))
