"""Terminal: tables and progress for people, one JSON object for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from specdec.evals.progress import Steps, progress_on
from specdec.evals.result import EvalResult

_FILE_WIDTH = 180


class Terminal:
    """With `json`, standard output carries the JSON object alone and all else goes to standard error."""

    def __init__(self, *, json: bool) -> None:
        self._json = json
        self.notes = _console(stderr=True)
        self._tables = self.notes if json else _console(stderr=False)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Steps]:
        """On standard error: a bar with what is being done beside it, or lines where that is no terminal."""
        with progress_on(self.notes, description, total) as steps:
            yield steps

    def say(self, text: str) -> None:
        """A line on standard error, above the bar where there is one."""
        self.notes.print(escape(text), soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """The first column is text, the others are figures."""
        table = Table(title=title, title_justify="left")
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self._tables.print(table)

    def finish(self, result: EvalResult) -> None:
        """Warnings, failures and the verdict; then the JSON, where it was asked for."""
        for warning in result.warnings:
            self.notes.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
        for failure in result.failures:
            self.notes.print(f"[red]failed:[/] {escape(failure)}", soft_wrap=True)
        self._tables.print(f"{result.eval_name}: {'passed' if result.is_passed else 'FAILED'}")
        if self._json:
            # Not through rich, which would wrap it.
            Console().file.write(result.encode() + "\n")


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    # A file has no width; the default of 80 would fold every table.
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=_FILE_WIDTH)
