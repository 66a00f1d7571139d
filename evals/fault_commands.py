"""`specdec bench faults`."""

from __future__ import annotations

from typing import Annotated

import typer

from specdec.config import DEFAULT_MODEL
from specdec.evals.flags import Json, Model, Save, end, terminal_of

_LOAD = "Load"


def faults(
    model: Model = DEFAULT_MODEL,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="engine|worker|sigterm",
            help="Kill that alone; may be given several times.",
            show_default="all three",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=4, max=1000, help="Clients that ask without a pause.", rich_help_panel=_LOAD)
    ] = 32,
    grace: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Of the server's SIGTERM.", rich_help_panel=_LOAD)
    ] = 5.0,
    json: Json = False,
    save: Save = False,
) -> None:
    """What do clients see when the engine or a compile worker is killed, or the server told to end, under load?

    Starts a server of its own for each. Exits with 1 where a client gets neither answer nor error, a dead engine does
    not show and end its server within two seconds, the end of a worker is noticed beyond its request, or SIGTERM takes
    longer than its grace period.
    """
    from specdec.evals.bench_faults import SCENARIOS, run_faults  # noqa: PLC0415

    unknown = sorted(set(only or ()).difference(SCENARIOS))
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(SCENARIOS)}", param_hint="--only")
    chosen = [scenario for scenario in SCENARIOS if not only or scenario in only]
    terminal = terminal_of(json=json)
    result = run_faults(model, chosen, num_clients=concurrency, grace_s=grace, terminal=terminal)
    end(result, terminal, save=save)
