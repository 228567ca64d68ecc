"""Checks array annotations (dtype and shape) at run time, and no others.

The rest of the annotations is a type checker's work: at run time they would turn the package's own messages about
bad input into messages about types.
"""

from collections.abc import Callable
from typing import Any, TypeVar, get_args

from beartype import beartype
from jaxtyping import AbstractArray

F = TypeVar("F", bound=Callable[..., Any])


def check_arrays(function: F) -> F:
    """Check the arguments and the result whose annotations mention an array with a shape."""
    arrays = {name: hint for name, hint in function.__annotations__.items() if _mentions_array(hint)}
    if not arrays:
        return function
    function.__annotations__ = arrays
    return beartype(function)


def _mentions_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_mentions_array(part) for part in get_args(hint))
