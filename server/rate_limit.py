"""RateLimit: requests per minute of one caller."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_ROUNDING = 1e-6
"""Requests: what sums of waits may lack of a whole one, so that whoever waited as told is served."""


class RateLimit:
    """A token bucket for each caller: a minute's worth at once, then one as each comes due."""

    def __init__(self, requests_per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity = float(requests_per_minute)
        self._per_second = requests_per_minute / 60
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}
        """By caller: what was left, and when; those who came last are last."""

    def take(self, caller: str) -> int | None:
        """Count a request; None if it may be served, else the whole seconds after which one may be."""
        now = self._clock()
        left, then = self._buckets.pop(caller, (self._capacity, now))
        left = min(self._capacity, left + (now - then) * self._per_second)
        is_allowed = left >= 1 - _ROUNDING
        self._buckets[caller] = (max(0.0, left - is_allowed), now)
        self._forget_idle(now)
        return None if is_allowed else math.ceil((1 - left) / self._per_second)

    def _forget_idle(self, now: float) -> None:
        """A caller whose bucket is full again is like one that never came.

        Those who came first are full first, within a minute; a call adds one, so that two a call keep up.
        """
        for _ in range(2):
            caller, (left, then) = next(iter(self._buckets.items()))
            if left + (now - then) * self._per_second < self._capacity:
                return
            del self._buckets[caller]
