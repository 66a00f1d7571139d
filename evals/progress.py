"""Steps: how far a run has come, as a bar on a terminal, and as lines for whoever reads a log or a pipe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

FIRST_SECONDS: Final = 5.0
"""Until the first line; what is over sooner has none."""
_MAX_SECONDS: Final = 30.0
"""Between lines, once the time between them has doubled so far."""
_ESTIMATE_SECONDS: Final = 3600.0
"""Of the run, from which a bar tells what is left: steps may take minutes each."""


class Steps(Protocol):
    """What a run says of itself."""

    def note(self, text: str) -> None:
        """What is being done now."""
        ...

    def advance(self) -> None:
        """One step more is done."""
        ...


@contextmanager
def progress_on(console: Console, description: str, total: int) -> Iterator[Steps]:
    """A bar that vanishes where the console is a terminal, or else a line from time to time."""
    if not console.is_terminal:

        def write(line: str) -> None:
            console.print(escape(line), soft_wrap=True)

        with progress_in_lines(description, total, write, first_seconds=FIRST_SECONDS) as steps:
            yield steps
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        speed_estimate_period=_ESTIMATE_SECONDS,
    ) as bars:
        yield _BarSteps(bars, bars.add_task(description, total=total, note=""))


@contextmanager
def progress_in_lines(
    description: str, total: int, write: Callable[[str], None], *, first_seconds: float
) -> Iterator[Steps]:
    """Lines after `first_seconds`, then at twice the time each, at most half a minute; one at the end of those.

    They come however long a step takes.
    """
    steps = _CountedSteps(description, total)
    has_ended = threading.Event()
    teller = threading.Thread(target=_tell, args=(steps, write, first_seconds, has_ended), daemon=True)
    teller.start()
    try:
        yield steps
    finally:
        has_ended.set()
        teller.join()


class _BarSteps:
    """One bar of a progress display."""

    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars = bars
        self._task = task

    def note(self, text: str) -> None:
        self._bars.update(self._task, note=text)

    def advance(self) -> None:
        self._bars.advance(self._task)


class _CountedSteps:
    """Steps that are counted, for another thread to tell of them."""

    def __init__(self, description: str, total: int) -> None:
        self._description = description
        self._total = total
        self._num_done = 0
        self._current = ""
        self._start = time.monotonic()

    def note(self, text: str) -> None:
        self._current = text

    def advance(self) -> None:
        self._num_done += 1

    def line(self) -> str:
        """How far it has come, what is being done, and what is left if the rest goes on like this."""
        elapsed = time.monotonic() - self._start
        num_done, total = self._num_done, self._total
        parts = [f"{self._description}: {num_done}/{total}", f"{_clock(elapsed)} elapsed"]
        if 0 < num_done < total:
            parts.append(f"about {_clock(elapsed / num_done * (total - num_done))} left")
        if self._current and num_done < total:
            parts.append(self._current)
        return ", ".join(parts)


def _tell(steps: _CountedSteps, write: Callable[[str], None], first_seconds: float, has_ended: threading.Event) -> None:
    seconds, has_told = first_seconds, False
    while not has_ended.wait(seconds):
        write(steps.line())
        seconds, has_told = min(2 * seconds, _MAX_SECONDS), True
    if has_told:
        write(steps.line())


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
