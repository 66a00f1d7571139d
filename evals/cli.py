"""`specdec eval`: its commands; each loads what it measures with when it runs."""

from __future__ import annotations

import typer

from specdec.evals.engine_commands import constrained, throughput
from specdec.evals.grammar_commands import budget, compile_service, hostile, masks, schema
from specdec.evals.speculation_commands import acceptance, equivalence, law, stress

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure what the engine promises. Each eval ends with 0 if it holds, with 1 if it does not.",
)

app.command()(equivalence)
app.command()(law)
app.command()(acceptance)
app.command()(stress)
app.command()(throughput)
app.command()(constrained)
app.command()(schema)
app.command()(hostile)
app.command("compile")(compile_service)
app.command()(masks)
app.command()(budget)
