"""`specdec bench`: its commands; each loads what it measures with when it runs."""

from __future__ import annotations

import typer

from specdec.evals.bench_commands import serve
from specdec.evals.bench_engine_commands import engine
from specdec.evals.bench_kernel_commands import kernels
from specdec.evals.fault_commands import faults

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure how fast it is. Each ends with 0 if what was measured worked, with 1 if it did not.",
)


@app.callback()
def commands() -> None:
    """Measure how fast it is."""


app.command()(serve)
app.command()(faults)
app.command()(kernels)
app.command()(engine)
