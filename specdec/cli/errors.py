"""FriendlyGroup: the engine's own errors as one line with the flag and the way out, never a traceback."""

from __future__ import annotations

from typing import Final

import typer
from typer.core import TyperGroup

from specdec.cli.console import complain
from specdec.errors import ConfigError, SpecdecError

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2


class FriendlyGroup(TyperGroup):
    """The root of the command line: a SpecdecError ends it with 2 if a flag is at fault, else with 1."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # typer's Context is what arrives
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            names_its_flag = error.flag is None or error.flag in str(error)
            complain(str(error) if names_its_flag else f"{error.flag}: {error}")
            raise typer.Exit(EXIT_USAGE) from error
        except SpecdecError as error:
            complain(str(error))
            raise typer.Exit(EXIT_FAILURE) from error
