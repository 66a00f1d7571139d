"""BreakOff: an interrupt (Ctrl-C) that ends a long eval between two runs, so that what was measured is told."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class BreakOff:
    """Whether whoever waits for an eval has asked for its end."""

    def __init__(self) -> None:
        self.is_asked = False

    def failures(self) -> list[str]:
        """What makes a result of fewer runs no passed one."""
        return ["interrupted: what was not measured by then is missing, and medians are of fewer runs"] * self.is_asked


@contextmanager
def break_off(tell: Callable[[str], None]) -> Iterator[BreakOff]:
    """While it lasts the first interrupt only asks, and `tell` says so; the second acts as it did before.

    Outside the main thread, which alone gets signals, nothing is changed.
    """
    asked = BreakOff()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, _: FrameType | None) -> None:
        asked.is_asked = True
        signal.signal(number, before)
        tell("interrupted: after this run come the tables of those that are done; interrupt again to end without")

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
