"""What goes wrong in the middle of a bench: one point's failure is told, and what was measured is kept all the same."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def attempted(what: str, failures: list[str]) -> Iterator[None]:
    """An exception becomes one of the failures, by its name and message."""
    try:
        yield
    except Exception as error:  # noqa: BLE001, whatever it is, the other points are measured
        failures.append(f"{what} is not timed: {type(error).__name__}: {error}")


@contextmanager
def until_stopped(failures: list[str]) -> Iterator[None]:
    """Ctrl-C, or SIGTERM as a time limit sends it, ends what is inside and nothing else."""
    previous = None
    # Only there are signals handled.
    is_main = threading.current_thread() is threading.main_thread()
    if is_main:
        previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        failures.append("stopped before all was measured, by a signal")
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, previous)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    raise KeyboardInterrupt
