"""`specdec eval`: its commands; each loads what it measures with when it runs."""

from __future__ import annotations

import typer

from specdec.evals.engine_commands import constrained, throughput
from specdec.evals.grammar_commands import budget, compile_service, hostile, masks, schema
from specdec.evals.speculation_commands import acceptance, equivalence, law

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure what the engine promises. Each eval ends with 0 if it holds, with 1 if it does not.",
)

for command in (equivalence, law, acceptance, throughput, constrained, schema, hostile):
    app.command()(command)
app.command("compile")(compile_service)
for command in (masks, budget):
    app.command()(command)
