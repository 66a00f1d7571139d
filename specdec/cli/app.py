"""The commands. Each imports what it runs when it runs, so that --help and a mistyped flag answer at once."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from specdec import __version__
from specdec.cli.console import say
from specdec.cli.engine_flags import EngineFlags, takes_engine_flags
from specdec.cli.errors import FriendlyGroup
from specdec.config import DEFAULT_MODEL

app = typer.Typer(
    cls=FriendlyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Serve language models with speculative and structured decoding as one engine.",
)


def main() -> None:
    """The console script."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"specdec {__version__}", out=True)
        raise typer.Exit


@app.callback()
def options_of_all_commands(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Nothing to do before a command."""


@app.command()
@takes_engine_flags
def serve(
    engine: EngineFlags,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.", rich_help_panel="Server")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any free port.", rich_help_panel="Server")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="Key that clients must present; repeat it for several.",
            envvar="SPECDEC_API_KEY",
            show_default=False,
            rich_help_panel="Server",
        ),
    ] = None,
    api_key_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Keys that clients must present, one a line, as they are or as sha256:HEX.",
            show_default=False,
            rich_help_panel="Server",
        ),
    ] = None,
    metrics_key: Annotated[
        str | None,
        typer.Option(
            help="Key that opens /metrics alone.",
            envvar="SPECDEC_METRICS_KEY",
            show_default="as the other routes",
            rich_help_panel="Server",
        ),
    ] = None,
    public_metrics: Annotated[
        bool, typer.Option("--public-metrics", help="Serve /metrics without a key.", rich_help_panel="Server")
    ] = False,
    metrics_compat: Annotated[
        Literal["none", "vllm"],
        typer.Option(help="vllm: every metric also under vLLM's prefix, for its dashboards.", rich_help_panel="Server"),
    ] = "none",
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin whose pages may call the server from a browser; repeat it for several, * for all.",
            show_default="none",
            rich_help_panel="Server",
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Host that requests may name; repeat it for several.", show_default="any", rich_help_panel="Server"
        ),
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that requests give as `model`; repeat it for several.",
            show_default="the model's",
            rich_help_panel="Server",
        ),
    ] = None,
    max_num_queued_reqs: Annotated[
        int,
        typer.Option(
            min=0,
            help="Choices in flight, running or waiting, beyond which requests get a 503; 0 for any number.",
            rich_help_panel="Server",
        ),
    ] = 1024,
    max_num_queued_tokens: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Prompt tokens waiting to be computed, beyond which requests get a 503.",
            show_default="any number",
            rich_help_panel="Server",
        ),
    ] = None,
    max_connections: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Connections at once, beyond which requests get a 503; /health, /ready and /metrics are answered.",
            show_default="1024, or what `ulimit -n` leaves",
            rich_help_panel="Server",
        ),
    ] = None,
    rate_limit: Annotated[
        int | None,
        typer.Option(
            metavar="REQUESTS",
            help="Requests per minute of one API key, or without keys of one address, beyond which they get a 429.",
            show_default="any number",
            rich_help_panel="Server",
        ),
    ] = None,
    request_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="From a request's arrival to its last token; what takes longer ends with an error.",
            show_default="none",
            rich_help_panel="Server",
        ),
    ] = None,
    shutdown_grace: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="How long running requests may go on after Ctrl-C or SIGTERM.",
            rich_help_panel="Server",
        ),
    ] = 30.0,
    engine_in_process: Annotated[
        bool,
        typer.Option(
            "--engine-in-process",
            help="Run the engine on a thread of the server instead of in a process of its own.",
            rich_help_panel="Server",
        ),
    ] = False,
    per_request_spec_decode_metrics: Annotated[
        Literal["none", "summary", "detailed"],
        typer.Option(
            help="Say in each answer's `metrics` what was drafted and accepted for it, in all or pass by pass.",
            rich_help_panel="Server",
        ),
    ] = "none",
    log_format: Annotated[
        Literal["text", "json"],
        typer.Option(help="One line of text, or one JSON object, for each record of the log.", rich_help_panel="Log"),
    ] = "text",
    log_level: Annotated[
        Literal["critical", "error", "warning", "info", "debug"],
        typer.Option(help="info has a line for each request, debug one for each probe too.", rich_help_panel="Log"),
    ] = "info",
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="Log prompts, which are not logged otherwise.", rich_help_panel="Log")
    ] = False,
    reasoning_parser: Annotated[
        str,
        typer.Option(
            help="Whether answers begin with reasoning between think tags: auto (by the chat template), none, "
            "deepseek_r1 or qwen3.",
            rich_help_panel="Server",
        ),
    ] = "auto",
) -> None:
    """Serve a model over the OpenAI API.

    Pulls the model if it is not in the cache. Ctrl-C lets running requests finish; a second one ends them.
    """
    config = engine.config()
    from specdec.cli.serve import serve_until_stopped
    from specdec.server import ServerConfig
    from specdec.server.auth import read_key_file

    server_config = ServerConfig(
        host=host,
        port=port,
        api_keys=tuple(api_key or []),
        api_key_digests=() if api_key_file is None else read_key_file(Path(api_key_file)),
        metrics_key=metrics_key,
        has_public_metrics=public_metrics,
        metrics_compat=metrics_compat,
        cors_origins=tuple(cors_origin or []),
        allowed_hosts=tuple(allowed_host or []),
        served_model_names=tuple(served_model_name or []),
        max_num_queued_reqs=max_num_queued_reqs or None,
        max_num_queued_tokens=max_num_queued_tokens or None,
        max_connections=max_connections,
        rate_limit=rate_limit,
        request_timeout_s=request_timeout,
        shutdown_grace_s=shutdown_grace,
        per_request_spec_decode_metrics=per_request_spec_decode_metrics,
        reasoning_parser=reasoning_parser,
        log_format=log_format,
        log_level=log_level,
        log_requests=log_requests,
    )
    raise typer.Exit(serve_until_stopped(config, server_config, notes=engine.notes(), in_process=engine_in_process))


@app.command()
@takes_engine_flags
def run(
    engine: EngineFlags,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            help="Answer this and exit. Without it: a chat, or one answer to what is piped in.",
            rich_help_panel="Generation",
        ),
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="JSON Schema that every answer satisfies.", rich_help_panel="Generation"),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.", rich_help_panel="Generation")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", rich_help_panel="Generation")] = 0.7,
    top_p: Annotated[float, typer.Option(rich_help_panel="Generation")] = 1.0,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Longest answer, in tokens.", show_default="what the context leaves", rich_help_panel="Generation"
        ),
    ] = None,
    show_drafts: Annotated[
        bool,
        typer.Option(
            "--show-drafts",
            help="Colour each token by the proposer that drafted it, in a terminal.",
            rich_help_panel="Generation",
        ),
    ] = False,
) -> None:
    """Chat with a model in the terminal, or answer one prompt."""
    config = engine.config()
    from specdec.cli.chat import chat

    raise typer.Exit(
        chat(
            config,
            prompt=prompt,
            schema_file=schema,
            system=system,
            sampling={"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens},
            notes=engine.notes(),
            shows_drafts=show_drafts,
        )
    )


@app.command()
def pull(
    model: Annotated[
        str, typer.Argument(help="A catalog name or a Hugging Face id.", show_default=True)
    ] = DEFAULT_MODEL,
) -> None:
    """Download a model into the cache and print its folder."""
    from specdec.models.catalog import resolve_model
    from specdec.models.progress import progress_bars

    with progress_bars() as progress:
        folder = resolve_model(model, progress=progress)
    say(str(folder), out=True)


schema_commands = typer.Typer(cls=FriendlyGroup, no_args_is_help=True, help="Look at schemas, without a model.")
app.add_typer(schema_commands, name="schema")


@schema_commands.callback()
def schemas() -> None:
    """Look at schemas, without a model."""


@schema_commands.command("check")
def check_schema(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A JSON Schema.", show_default=False)],
    format_: Annotated[
        Literal["assert", "annotation"], typer.Option("--format", help="Whether formats constrain anything.")
    ] = "assert",
    unknown_format: Annotated[
        Literal["refuse", "annotation"], typer.Option(help="What a format that is not known does.")
    ] = "refuse",
    document: Annotated[
        list[str] | None,
        typer.Option(metavar="URI=FILE", help="A schema that references may lead to; repeat it for several."),
    ] = None,
    property_order: Annotated[
        Literal["schema", "any"], typer.Option(help="The order of the keys of an object.")
    ] = "schema",
    additional_properties: Annotated[
        Literal["schema", "closed"], typer.Option(help="Whether objects take keys that the schema does not describe.")
    ] = "schema",
    whitespace: Annotated[
        Literal["compact", "pretty", "flexible"], typer.Option(help="Between the tokens of JSON.")
    ] = "compact",
    max_whitespace: Annotated[
        int, typer.Option(min=1, max=1000, help="Characters in a row, where whitespace is flexible.")
    ] = 2,
    vocabulary: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|MODEL",
            help="Also say the smallest max_tokens that is taken: by a tokenizer.json, .gguf or .tiktoken file, or a "
            "model's.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Say what is enforced of a schema and what narrows its answers; 1 if it is refused."""
    from specdec.cli.schema import check_schema as check
    from specdec.cli.schema_file import read_documents
    from specdec.grammars import SchemaOptions

    options = SchemaOptions(
        format=format_,
        unknown_format=unknown_format,
        documents=read_documents(document or []),
        property_order=property_order,
        additional_properties=additional_properties,
        whitespace=whitespace,
        max_whitespace=max_whitespace,
    )
    raise typer.Exit(check(file, options, vocabulary=vocabulary, as_json=as_json))


_PASSED_ON: Final = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command("eval", add_help_option=False, context_settings=_PASSED_ON)
def evaluate(context: typer.Context) -> None:
    """Measure what the engine promises: equivalence, acceptance, constrained, throughput."""
    _pass_on(context, "specdec.evals.cli")


@app.command("bench", add_help_option=False, context_settings=_PASSED_ON)
def bench(context: typer.Context) -> None:
    """Measure how fast it is: a server under load."""
    _pass_on(context, "specdec.evals.bench_cli")


def _pass_on(context: typer.Context, module: str) -> None:
    """Run another layer's commands, by name: the evals import the engine."""
    commands = importlib.import_module(module)
    code = commands.app(
        args=context.args or ["--help"], prog_name=f"specdec {context.info_name}", standalone_mode=False
    )
    raise typer.Exit(code if isinstance(code, int) else 0)


@app.command()
def version() -> None:
    """Print the versions of specdec and of what it stands on."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    say(f"specdec {__version__}", out=True)
    say(f"python {sys.version.split()[0]}", out=True)
    for distribution in ("torch", "triton", "tokenizers", "litestar"):
        try:
            say(f"{distribution} {version_of(distribution)}", out=True)
        except PackageNotFoundError:
            say(f"{distribution} is not installed", out=True)
