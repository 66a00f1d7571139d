"""Stopwatch: the processor time that one compilation may take, checked between its steps."""

from __future__ import annotations

import time

from specdec.grammars.errors import CompileResourceError


class Stopwatch:
    """Runs from when it is made, on the thread that made it."""

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._begin = time.thread_time()

    def is_half_over(self) -> bool:
        """Whether what can be left for later should be."""
        return time.thread_time() - self._begin > self._max_seconds / 2

    def check(self, pointer: str = "") -> None:
        """Raise CompileResourceError once the time is up."""
        if time.thread_time() - self._begin > self._max_seconds:
            raise CompileResourceError(
                f"compiling the schema takes more than {self._max_seconds:g} s of processor time (max_compile_seconds)",
                pointer=pointer,
            )
