"""The package `pytorch_lightning`, which has a Callback class of its own beside that of `lightning`."""

import sys
from typing import Any

_TAKES_OTHERS = (2, 6)
"""The first release whose Trainer takes callbacks that are not of its own class."""


def served_by_both(kind: type) -> type:
    """A class of callbacks, as a subclass of `pytorch_lightning.Callback` too where that package takes no other.

    An earlier release of it that is not imported yet is not seen.
    """
    package: Any = sys.modules.get("pytorch_lightning")
    other = getattr(package, "Callback", None)
    if other is None or issubclass(kind, other) or _release(package) >= _TAKES_OTHERS:
        return kind
    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind, other), named)


def _release(package: Any) -> tuple[int, ...]:
    numbers = str(getattr(package, "__version__", "")).split(".")[:2]
    return tuple(int(number) for number in numbers if number.isdecimal())
