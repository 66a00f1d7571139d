"""FairThreads: threads for work that mostly waits, which no caller can take away from the others."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from specdec.grammars.fair_queue import FairQueue

R = TypeVar("R")


class FairThreads:
    """At most `num_threads`, of which a caller has no more than it leaves free; callers who wait take turns."""

    def __init__(self, num_threads: int, *, name: str) -> None:
        self._num_threads = num_threads
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._waiting: FairQueue[_Work] = FairQueue()
        self._num_held: Counter[str] = Counter()

    def submit(self, caller: str, function: Callable[[], R]) -> Future[R]:
        """Have it called on a thread, for this caller. A future that is cancelled before that is never begun."""
        future: Future[R] = Future()
        work = _Work(caller, (function, future))
        with self._lock:
            self._waiting.add(caller, work)
        future.add_done_callback(lambda _: self._forget(work))
        self._begin()
        return future

    def shutdown(self) -> None:
        """Begin nothing more; what runs goes on."""
        self._executor.shutdown(wait=False)

    def _forget(self, work: _Work) -> None:
        with self._lock:
            self._waiting.remove(work)
            # The future, which keeps this call, would keep itself and its result until a garbage collection.
            work.task = None

    def _begin(self) -> None:
        """Whatever may now."""
        with self._lock:
            for work in list(self._waiting):
                num_free = self._num_threads - self._num_held.total()
                if not num_free:
                    return
                if self._num_held[work.caller] < num_free:
                    self._waiting.remove(work, is_served=True)
                    self._num_held[work.caller] += 1
                    assert work.task is not None, "what was forgotten waits no more"
                    function, future = work.task
                    self._executor.submit(self._run, work.caller, function, future)

    def _run(self, caller: str, function: Callable[[], R], future: Future[R]) -> None:
        try:
            if future.set_running_or_notify_cancel():
                try:
                    result = function()
                except BaseException as error:  # noqa: BLE001, whoever waits for the result raises it
                    future.set_exception(error)
                else:
                    future.set_result(result)
        finally:
            with self._lock:
                self._num_held[caller] -= 1
                self._num_held += Counter()
            self._begin()


class _Work:
    __slots__ = ("caller", "task")

    # Any: of what its submitter is promised.
    def __init__(self, caller: str, task: tuple[Callable[[], Any], Future[Any]]) -> None:
        self.caller = caller
        self.task: tuple[Callable[[], Any], Future[Any]] | None = task
        """None once it is done, or was cancelled."""
