"""The commands of `specdec eval` about the engine as a whole: its speed, and answers that validate."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from specdec.config import DEFAULT_MODEL
from specdec.evals.flags import (
    MODEL,
    SPECULATION,
    WORK,
    Draft,
    Dtype,
    Exact,
    Json,
    Model,
    Save,
    end,
    numbers_of,
    shallow_draft_of,
    terminal_of,
)
from specdec.speculative import CHAIN, NONE, SpeculativeConfig


def throughput(
    peer: Annotated[
        Literal["none", "transformers"], typer.Option(help="What to time beside it.", rich_help_panel=WORK)
    ] = "transformers",
    batch: Annotated[str, typer.Option(metavar="N,N", help="Batch sizes, by comma.", rich_help_panel=WORK)] = "1,8",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each side.", rich_help_panel=WORK)] = 5,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens generated per request.", rich_help_panel=WORK)] = 128,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "bfloat16",
    exact: Exact = False,
    json: Json = False,
    save: Save = False,
) -> None:
    """How fast is plain decoding, beside another library, and where does a step's time go?"""
    from specdec.evals.throughput import run_throughput  # noqa: PLC0415

    terminal = terminal_of(json=json)
    result = run_throughput(
        model=model,
        dtype=dtype,
        exact=exact,
        with_peer=peer == "transformers",
        batches=numbers_of(batch, 1024, "--batch"),
        repeats=repeats,
        num_new_tokens=new_tokens,
        terminal=terminal,
    )
    end(result, terminal, save=save)


def constrained(
    num_requests: Annotated[int, typer.Option(min=1, help="Requests in all.", rich_help_panel=WORK)] = 200,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.", rich_help_panel=WORK)] = 8,
    temperature: Annotated[float, typer.Option(help="High ones wander most.", rich_help_panel=WORK)] = 1.2,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.", rich_help_panel=WORK)] = 512,
    seed: Annotated[int, typer.Option(help="Seed of the first request.", rich_help_panel=WORK)] = 0,
    url: Annotated[
        str | None,
        typer.Option(
            help="Ask an OpenAI-compatible server, as http://127.0.0.1:8000, instead of an engine in process.",
            show_default=False,
            rich_help_panel="Server",
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="SPECDEC_API_KEY", help="Its key.", show_default=False, rich_help_panel="Server"),
    ] = None,
    tight_budgets: Annotated[
        bool,
        typer.Option(
            "--tight-budgets",
            help="Draw each request's max_tokens between the fewest that its schema needs and three times as many; one "
            "fewer must be refused.",
            rich_help_panel="Server",
        ),
    ] = False,
    spec: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="Who drafts, as in `specdec serve --spec`.",
            show_default="grammar, or chain with --draft",
            rich_help_panel=SPECULATION,
        ),
    ] = None,
    draft: Draft = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A catalog name, a folder or a Hugging Face id; with --url, the name to ask for.",
            show_default=f"{DEFAULT_MODEL}; with --url, the first that the server names",
            rich_help_panel=MODEL,
        ),
    ] = None,
    dtype: Dtype = "auto",
    exact: Exact = False,
    json: Json = False,
    save: Save = False,
) -> None:
    """Does every finished answer validate against its schema?

    Cycles through the structured tasks. An answer that stopped must be an instance; any other must say `length`.
    """
    from specdec.evals.constrained import ConstrainedRun, run_on_server, run_with_engine  # noqa: PLC0415

    terminal = terminal_of(json=json)
    run = ConstrainedRun(
        num_requests=num_requests,
        concurrency=concurrency,
        temperature=temperature,
        max_tokens=max_tokens,
        first_seed=seed,
        has_tight_budgets=tight_budgets,
    )
    if tight_budgets and url is None:
        raise typer.BadParameter("tight budgets are asked of a server; give its --url", param_hint="--tight-budgets")
    if url is not None:
        if spec is not None or draft is not None:
            raise typer.BadParameter("the server drafts as it was started; leave out --spec and --draft")
        end(run_on_server(run, url=url, model=model, api_key=api_key, terminal=terminal), terminal, save=save)
        return
    name = model or DEFAULT_MODEL
    draft = shallow_draft_of(name) if draft == "shallow" else draft
    method = spec or ("grammar" if draft is None else CHAIN)
    result = run_with_engine(
        run,
        model=name,
        dtype=dtype,
        exact=exact,
        speculative=None if method == NONE else SpeculativeConfig(method=method, model=draft),
        terminal=terminal,
    )
    end(result, terminal, save=save)
