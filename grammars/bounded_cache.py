"""BoundedCache: a dict that forgets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """At most max_entries values that can be worked out again.

    Two generations: what was not used while the younger one filled up is dropped with the older one. A hit costs
    one dict lookup, which a strictly least-recently-used order would double. A dropped generation is freed a few
    entries at a time: freeing ten thousand at once takes milliseconds, which one call would wait for.
    """

    __slots__ = ("_dropped", "_num_bytes_of", "_old", "_third", "_third_of_bytes", "_young", "_young_bytes")

    def __init__(
        self, max_entries: int, *, max_bytes: int | None = None, num_bytes_of: Callable[[V], int] | None = None
    ) -> None:
        """With `max_bytes`, values of no more bytes than that and, in each generation, one value more."""
        self._third = max(1, max_entries // 3)
        self._third_of_bytes = max_bytes // 3 if max_bytes is not None else 0
        self._num_bytes_of = num_bytes_of
        self._young_bytes = 0
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
        if len(self._young) >= self._third or (
            self._num_bytes_of is not None and self._young_bytes >= self._third_of_bytes
        ):
            self._dropped, self._old, self._young, self._young_bytes = self._old, self._young, {}, 0
        if self._num_bytes_of is not None:
            replaced = self._young.get(key)
            self._young_bytes += self._num_bytes_of(value) - (0 if replaced is None else self._num_bytes_of(replaced))
        self._young[key] = value

    @property
    def num_kept(self) -> int:
        """Entries in memory, those counted twice that are in both generations."""
        return len(self._young) + len(self._old) + len(self._dropped)

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())
