"""A device on which functions of test files are tried."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """Calls functions with the name of a kind of device, such as "cuda", in a process where it is."""

    device: str
    call: Callable[..., Any]

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.call(function, self.device, *args)
