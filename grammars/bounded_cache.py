"""BoundedCache: a dict that forgets."""

from __future__ import annotations

import contextlib
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """At most max_entries values that can be worked out again.

    Two generations: what was not used while the younger one filled up is dropped with the older one. A hit costs
    one dict lookup, which a strictly least-recently-used order would double. A dropped generation is freed a few
    entries at a time: freeing ten thousand at once takes milliseconds, which one call would wait for.
    """

    __slots__ = ("_dropped", "_old", "_third", "_young")

    def __init__(self, max_entries: int) -> None:
        self._third = max(1, max_entries // 3)
        self._dropped: dict[K, V] = {}
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        value = self._young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: K, value: V) -> None:
        for _ in range(min(2, len(self._dropped))):
            # Another thread may have freed the last of them.
            with contextlib.suppress(KeyError):
                self._dropped.popitem()
        if len(self._young) >= self._third:
            self._dropped, self._old, self._young = self._old, self._young, {}
        self._young[key] = value

    @property
    def num_kept(self) -> int:
        """Entries in memory, those counted twice that are in both generations."""
        return len(self._young) + len(self._old) + len(self._dropped)

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())
