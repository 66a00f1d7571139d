"""What pulling and loading a model report while they run, and the bars that show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec


class ModelProgress(msgspec.Struct, frozen=True, kw_only=True):
    """One moment; the stages come in this order, and any of them may be absent."""

    stage: Literal["waiting", "downloading", "converting", "done", "loading", "preparing"]
    description: str
    """One line for people."""
    completed: int = 0
    """Bytes downloaded or loaded, tensors converted, or steps of preparation done, so far."""
    total: int | None = None

    @property
    def is_in_bytes(self) -> bool:
        return self.stage not in {"converting", "preparing"}


ProgressCallback = Callable[[ModelProgress], None]


@contextmanager
def progress_bars() -> Iterator[ProgressCallback]:
    """A callback for what pulls and loads models, drawn on standard error; full bars leave the terminal to others."""
    # Imported here: a model that is in the cache of a library user needs no bar.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    tasks: dict[str, TaskID] = {}

    def show(report: ModelProgress) -> None:
        if report.stage in {"waiting", "done"}:
            bars.console.print(report.description, markup=False, highlight=False, soft_wrap=True)
            return
        bars.start()
        amount = _megabytes(report) if report.is_in_bytes else f"{report.completed}/{report.total or '?'}"
        if report.description not in tasks:
            tasks[report.description] = bars.add_task(report.description, total=report.total, amount=amount)
        bars.update(tasks[report.description], completed=report.completed, total=report.total, amount=amount)
        if bars.finished:
            bars.stop()
            for task in tasks.values():
                bars.remove_task(task)
            tasks.clear()

    try:
        yield show
    finally:
        if bars.live.is_started:
            bars.stop()


def _megabytes(report: ModelProgress) -> str:
    return f"{report.completed / 1e6:.1f}/{'?' if report.total is None else f'{report.total / 1e6:.1f}'} MB"
