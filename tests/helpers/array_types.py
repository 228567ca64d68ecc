"""Checks array annotations (dtype and shape) of a whole package at run time, and no others.

The rest of the annotations is a type checker's work: at run time they would turn the package's own messages about
bad input into messages about types.

A function without an array in its signature stays as it is, and costs nothing. The import hook of jaxtyping wraps every
function, binds its arguments to its signature at each call, and checks arguments twice: that took as long as the tests.
"""

import ast
import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeVar, get_args

from beartype import beartype
from jaxtyping import AbstractArray, config, jaxtyped

T = TypeVar("T", bound=Callable[..., Any])

_HERE = "__check_arrays__"
_VERSION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


def check_arrays(checked: T) -> T:
    """Check the arguments and the result whose annotations mention an array with a shape; of a dataclass, its fields.

    A generator stays as it is: its body runs in calls of others, whose named sizes are not its own.
    """
    if isinstance(checked, type):
        if is_dataclass(checked) and "__init__" in vars(checked):
            checked.__init__ = check_arrays(checked.__init__)
        return checked
    whole = checked.__annotations__
    arrays = {name: hint for name, hint in whole.items() if _mentions_array(hint)}
    if not arrays or inspect.isgeneratorfunction(checked):
        return checked
    checked.__annotations__ = arrays
    strict = beartype(checked)
    checked.__annotations__ = whole

    @functools.wraps(checked)
    def call(*args: Any, **kwargs: Any) -> Any:
        if config.jaxtyping_disable:
            return checked(*args, **kwargs)
        with jaxtyped("context"):  # sizes that have a name are the same throughout one call
            return strict(*args, **kwargs)

    return call


def _mentions_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_mentions_array(part) for part in get_args(hint))


def install(package: str) -> None:
    """Check every function, method and dataclass of a package that is imported from now on; not functions within
    functions, which would be wrapped anew at each call."""
    sys.meta_path.insert(0, _Finder(package))


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.package and not fullname.startswith(f"{self.package}."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Keeps bytecode beside that of the package as it is, under a name that changes with this file."""

    def source_to_code(self, data: Any, path: Any, **options: Any) -> CodeType:
        tree = ast.parse(data, path)
        _decorate(tree)
        return super().source_to_code(tree, path, **options)

    def get_data(self, path: str) -> bytes:
        return super().get_data(_own(path))

    def set_data(self, path: str, data: Any, **options: Any) -> None:
        super().set_data(_own(path), data, **options)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[_HERE] = check_arrays
        super().exec_module(module)


def _own(path: str) -> str:
    return path.removesuffix(".pyc") + f".{_VERSION}.pyc" if path.endswith(".pyc") else path


def _decorate(parent: ast.Module | ast.ClassDef) -> None:
    for node in parent.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = ast.copy_location(ast.Name(_HERE, ast.Load()), node)
            # Innermost of a function, where the annotations are; outermost of a class, when it is a dataclass already.
            node.decorator_list.insert(0 if isinstance(node, ast.ClassDef) else len(node.decorator_list), name)
        if isinstance(node, ast.ClassDef):
            _decorate(node)
