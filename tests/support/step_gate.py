"""The edge at which tests decide when an engine takes its steps."""

from __future__ import annotations

import threading
from typing import Self

from live_server import TIMEOUT_S

from specdec import Engine, TokenDelta


class StepGate:
    """Stands before each step of an engine, shut until steps are let through; leaving it as a context opens it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.num_begun = 0
        """Steps that were asked for: one more than have been taken while one stands before the gate."""
        self.num_taken = 0
        self._num_allowed: float = 0
        self._changed = threading.Condition()
        self._step = engine.step
        engine.step = self._gated_step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()

    @property
    def is_stood_before(self) -> bool:
        return self.num_begun > self.num_taken

    def allow(self, num_steps: float) -> None:
        """Let steps through until so many have been taken in all."""
        with self._changed:
            self._num_allowed = num_steps
            self._changed.notify_all()

    def open(self) -> None:
        """Let all steps through."""
        self.allow(float("inf"))

    def _gated_step(self) -> list[TokenDelta]:
        self.num_begun += 1
        with self._changed:
            assert self._changed.wait_for(lambda: self._num_allowed > self.num_taken, 2 * TIMEOUT_S), "shut for ever"
        try:
            return self._step()
        finally:
            self.num_taken += 1
