"""Attributes that methods of a module set while it trains: a loss may use them, and saved weights do not hold them.

They are read from the source of the methods, which are not called: hooks may take long, and write files.
"""

import ast
import inspect
import textwrap
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

TRAINING_HOOKS = (
    "training_step", "on_before_zero_grad",
    "on_before_backward", "on_after_backward", "on_before_optimizer_step", "configure_gradient_clipping",
    "optimizer_step", "optimizer_zero_grad", "lr_scheduler_step", "on_train_batch_end", "on_train_epoch_end",
    "on_validation_start", "on_validation_epoch_start", "on_validation_batch_start", "validation_step",
    "on_validation_batch_end", "on_validation_epoch_end", "on_validation_end",
)  # fmt: skip
"""Methods that Lightning calls while it trains, after those at the start of a training, an epoch and a batch."""

_LIBRARIES = ("torch", "torchmetrics", "torchvision", "lightning", "pytorch_lightning", "transformers", "builtins")
_ABSENT = object()


def attributes_set(module: Any, methods: Iterable[str]) -> dict[str, str]:
    """Attributes that these methods of a module set, also by way of methods of its parts.

    Returns:
        Dotted path of each attribute, such as "schedule.weight" -> the method.
    """
    found, seen = dict[str, str](), set[tuple[str, str]]()
    for method in methods:
        for path in _set_by(module, "", method, seen):
            found.setdefault(path, method)
    return found


@contextmanager
def other_value(module: Any, path: str) -> Generator[None]:
    """Give an attribute another value, as training may have done.

    Raises:
        TypeError: it is no number, tensor or None.
        AttributeError: the object that has it is not there.
    """
    *parts, name = path.split(".")
    owner = _at(module, parts)
    before = getattr(owner, name, _ABSENT)
    setattr(owner, name, _other(before))
    try:
        yield
    finally:
        delattr(owner, name) if before is _ABSENT else setattr(owner, name, before)


def _at(module: Any, parts: Iterable[str]) -> Any:
    """The object at a path of attributes and parts, without properties, which may do anything.

    Raises:
        AttributeError: there is none.
    """
    for part in parts:
        held = {**getattr(module, "_modules", {}), **getattr(module, "__dict__", {})}
        if part not in held:
            raise AttributeError(f"{type(module).__name__} holds no {part}")
        module = held[part]
    return module


def _other(value: Any) -> Any:
    if value is None or value is _ABSENT:
        return 1.5
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 + 3
    if isinstance(value, Tensor):
        return ~value if value.dtype == torch.bool else value.detach() * 2 + 3
    raise TypeError(f"{type(value).__name__} has no other value")


def _set_by(obj: Any, prefix: str, method: str, seen: set[tuple[str, str]]) -> Iterator[str]:
    function = getattr(type(obj), method, None)
    root = (getattr(function, "__module__", None) or "builtins").partition(".")[0]
    if (prefix, method) in seen or root in _LIBRARIES or function is getattr(pl.LightningModule, method, _ABSENT):
        return
    seen.add((prefix, method))
    definition = _definition(function)
    if definition is None or not definition.args.args:
        return
    own = definition.args.args[0].arg
    for node in ast.walk(definition):
        for path in _targets(node, own):
            yield f"{prefix}{path}"
        if isinstance(node, ast.Call) and (called := _path(node.func, own)):
            *parts, name = called.split(".")
            try:
                owner = _at(obj, parts)
            except AttributeError:
                continue
            yield from _set_by(owner, prefix + "".join(f"{part}." for part in parts), name, seen)


def _definition(function: Any) -> ast.FunctionDef | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError, ValueError):  # of no file, or not written as a method
        return None
    return tree.body[0] if tree.body and isinstance(tree.body[0], ast.FunctionDef) else None


def _targets(node: ast.AST, own: str) -> list[str]:
    """Paths that a statement sets: self.x = ..., self.x.y += ..., self.x[0] = ..., setattr(self, "x", ...)."""
    targets = list[ast.expr]()
    if isinstance(node, ast.Assign):
        targets = [each for target in node.targets for each in getattr(target, "elts", [target])]
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        targets = [node.target]
    elif isinstance(node, ast.Call) and ast.unparse(node).startswith(f"setattr({own}, '"):
        return [ast.literal_eval(node.args[1])]
    return [path for target in targets if (path := _path(_indexed(target), own))]


def _indexed(node: ast.expr) -> ast.expr:
    """What an index is of, which it changes."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return node


def _path(node: ast.expr, own: str) -> str:
    """The dotted path of an attribute of the module; "" of anything else."""
    parts = list[str]()
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed(parts)) if isinstance(node, ast.Name) and node.id == own else ""
