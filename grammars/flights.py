"""Flights: of several that want the same thing at once, one works it out and all get it.

Whoever does not want it any more leaves. When all have, the work is ended.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class LeftError(Exception):
    """It was left before there was a result."""


class Interest:
    """One caller's wish for a result, for as long as it lasts; `caller` says whose, for taking turns."""

    def __init__(self, caller: str = "") -> None:
        self.caller = caller
        self._lock = threading.Lock()
        self._on_leave: Callable[[], None] | None = None
        self.has_left = False

    def leave(self) -> None:
        """From any thread, at once: whoever waits in this interest stops. Leaving again does nothing."""
        with self._lock:
            if self.has_left:
                return
            self.has_left = True
            on_leave = self._on_leave
        if on_leave is not None:
            on_leave()

    def watch(self, on_leave: Callable[[], None]) -> bool:
        """Have `on_leave` called when it is left; False where it was left already."""
        with self._lock:
            self._on_leave = None if self.has_left else on_leave
            return not self.has_left

    def unwatch(self) -> None:
        """Nothing is waited for any more."""
        with self._lock:
            self._on_leave = None


class Flight(Generic[V]):
    """One piece of work, under the lock of whoever keeps the flights."""

    def __init__(self, lock: threading.Lock, end: Callable[[], None]) -> None:
        self._changed = threading.Condition(lock)
        self._end = end
        self._num_waiting = 0
        self._result: V | None = None
        self._error: BaseException | None = None
        self.is_over = False
        """There is a result, or there will be none."""

    def join(self) -> None:
        """Count one more that waits. The lock is held."""
        self._num_waiting += 1

    def leave(self) -> None:
        """One fewer waits; the last one ends the work. Takes the lock."""
        with self._changed:
            self._num_waiting -= 1
            is_abandoned = not self._num_waiting and not self.is_over
            self.is_over = self.is_over or is_abandoned
            self._changed.notify_all()
        if is_abandoned:
            self._end()

    def land(self, result: V | None, error: BaseException | None) -> None:
        """Give all that wait the result or the error. Takes the lock."""
        with self._changed:
            self._result, self._error, self.is_over = result, error, True
            self._changed.notify_all()

    def wait(self, interest: Interest) -> V:
        """The result, once there is one. Raises the work's error, or LeftError. Takes the lock."""
        with self._changed:
            while not interest.has_left and self._result is None and self._error is None:
                self._changed.wait()
            if interest.has_left:
                raise LeftError
            if self._error is not None:
                # One object raised on several threads would collect all of their tracebacks.
                raise copy.copy(self._error) from self._error
            assert self._result is not None, "it was waited for"
            return self._result
