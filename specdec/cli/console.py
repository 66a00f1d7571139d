"""What the commands print: answers on standard output, everything about them on standard error."""

from __future__ import annotations

from rich.console import Console


def say(text: str, *, out: bool = False, style: str | None = None) -> None:
    """Print a line as it is, never as markup; `out` is standard output."""
    Console(stderr=not out).print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def complain(text: str) -> None:
    """Print an error in one red line."""
    say(f"error: {text}", style="bold red")
