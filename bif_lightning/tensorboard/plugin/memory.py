"""What was read lately, up to a number of bytes, so that a slider that moves back and forth reads once."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, TypeVar

Kept = TypeVar("Kept")


class LRUCache:
    """A cache that forgets what was not used for longest. Safe to use from several threads.

    Args:
        most: bytes that it may hold.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable) -> Any | None:
        """What is kept under a key, or None."""
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Keep a value of so many bytes; larger than all the memory, it is not kept."""
        if size > self._most:
            return
        with self._lock:
            self._held += size - self._values.pop(key, (None, 0))[1]
            self._values[key] = (value, size)
            while self._held > self._most:
                _, (_, freed) = self._values.popitem(last=False)
                self._held -= freed

    def once(self, key: Hashable, make: Callable[[], Kept], size: Callable[[Kept], int]) -> Kept:
        """What is kept under a key, made where it is missing."""
        found = self.get(key)
        if found is None:
            found = make()
            self.put(key, found, size(found))
        return found
