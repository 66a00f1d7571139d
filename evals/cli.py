"""`specdec eval`: the commands; each loads what it measures with when it runs."""

from __future__ import annotations

import contextlib
import enum
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from specdec.config import DEFAULT_MODEL

if TYPE_CHECKING:
    from specdec.evals.result import EvalResult
    from specdec.evals.terminal import Terminal
    from specdec.speculative import SpeculativeConfig

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure what the engine promises. Each eval ends with 0 if it holds, with 1 if it does not.",
)

_MODEL, _WORK, _SPECULATION, _OUTPUT = "Model", "Workload", "Speculation", "Output"

Model = Annotated[
    str, typer.Option("--model", help="A catalog name, a folder or a Hugging Face id.", rich_help_panel=_MODEL)
]
Dtype = Annotated[
    Literal["auto", "bfloat16", "float16", "float32"],
    typer.Option("--dtype", help="Arithmetic; auto is the checkpoint's own.", rich_help_panel=_MODEL),
]
Exact = Annotated[bool, typer.Option("--exact/--no-exact", help="Row-invariant arithmetic.", rich_help_panel=_MODEL)]
Size = Annotated[
    Literal["quick", "standard", "full"],
    typer.Option("--size", help="How much to generate: a look, the usual, or the long run.", rich_help_panel=_WORK),
]
Spec = Annotated[
    Literal["none", "ngram", "draft_model"] | None,
    typer.Option("--spec", help="Who drafts.", show_default=False, rich_help_panel=_SPECULATION),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="MODEL",
        help="The draft model. Without it, --spec draft_model makes one of the target's first 6 layers.",
        show_default=False,
        rich_help_panel=_SPECULATION,
    ),
]
NumSpeculativeTokens = Annotated[
    int, typer.Option("--num-speculative-tokens", help="Longest draft, in tokens.", rich_help_panel=_SPECULATION)
]
Repeats = Annotated[
    int | None,
    typer.Option("--repeats", min=1, help="Timed runs of each side.", show_default="by --size", rich_help_panel=_WORK),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", min=1, help="Longest answer, in tokens.", show_default="by --size", rich_help_panel=_WORK
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="One JSON object on standard output, tables on standard error.", rich_help_panel=_OUTPUT
    ),
]
Save = Annotated[bool, typer.Option("--save", help="Keep the JSON, dated, in evals/results/.", rich_help_panel=_OUTPUT)]


@app.command()
def equivalence(
    model: Model = DEFAULT_MODEL,
    exact: Exact = True,
    dtype: Annotated[
        Literal["both", "float32", "bfloat16"], typer.Option(help="Arithmetic.", rich_help_panel=_MODEL)
    ] = "both",
    size: Size = "standard",
    json: Json = False,
    save: Save = False,
) -> None:
    """Do speculation, batching and preemption leave every answer as the plain engine gives it?

    Runs plain, ngram, the target as its own draft, and the target's first 6 layers as its draft; greedy and sampled,
    with and without a schema, one at a time and eight at once, with room and in a pool that forces preemption.
    --no-exact counts the differences that fast arithmetic makes, and never fails because of them.
    """
    import msgspec  # noqa: PLC0415

    from specdec.evals.equivalence import run_equivalence  # noqa: PLC0415
    from specdec.evals.equivalence_grid import EquivalenceGrid  # noqa: PLC0415

    terminal = _terminal(json=json)
    grid = EquivalenceGrid.of_size(size)
    if dtype != "both":
        grid = msgspec.structs.replace(grid, dtypes=(dtype,))
    _end(run_equivalence(model=model, exact=exact, grid=grid, terminal=terminal), terminal, save=save)


@app.command()
def law(
    samples: Annotated[
        int, typer.Option(min=1000, help="Texts sampled in each cell.", rich_help_panel=_WORK)
    ] = 200_000,
    seed: Annotated[int, typer.Option(help="Seed of the first text.", rich_help_panel=_WORK)] = 0,
    json: Json = False,
    save: Save = False,
) -> None:
    """Do speculative answers have the law of plain ones, by every kind of verification?

    Texts of 2 or 3 tokens over 6 or 8, free and constrained, sampled by the engine's own sampler and verifier. Their
    total variation from the plain law, which is written out, may be 3 times that of as many plain samples. Three faults
    are planted, each of which must show as 10 times; with fewer samples than 200,000, as less.
    """
    from specdec.evals.law import run_law  # noqa: PLC0415

    terminal = _terminal(json=json)
    _end(run_law(num_samples=samples, seed=seed, terminal=terminal), terminal, save=save)


@app.command()
def acceptance(
    spec: Spec = None,
    draft: Draft = None,
    num_speculative_tokens: NumSpeculativeTokens = 4,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    exact: Exact = False,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", rich_help_panel=_WORK)] = 0.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.", rich_help_panel=_WORK)] = 1,
    size: Size = "standard",
    num_tasks: Annotated[
        int | None,
        typer.Option(min=1, help="Tasks of each workload.", show_default="by --size", rich_help_panel=_WORK),
    ] = None,
    repeats: Repeats = None,
    max_tokens: MaxTokens = None,
    json: Json = False,
    save: Save = False,
) -> None:
    """How many drafts are accepted, where, and what does it gain?

    Free text, structured tasks without their schema, and the same with it; each with and without speculation, in turns.
    Every finished constrained answer must validate.
    """
    from specdec.evals.acceptance import AcceptanceSize, run_acceptance  # noqa: PLC0415

    terminal = _terminal(json=json)
    method = spec or ("draft_model" if draft else "ngram")
    speculative = _speculative(method, draft, model, num_speculative_tokens)
    if speculative is None:
        raise typer.BadParameter("there is nothing to accept without a proposer", param_hint="--spec")
    result = run_acceptance(
        model=model,
        dtype=dtype,
        exact=exact,
        speculative=speculative,
        temperature=temperature,
        concurrency=concurrency,
        size=AcceptanceSize.of_size(size, num_tasks=num_tasks, repeats=repeats, max_tokens=max_tokens),
        terminal=terminal,
    )
    _end(result, terminal, save=save)


@app.command()
def throughput(
    peer: Annotated[
        Literal["none", "transformers"], typer.Option(help="What to time beside it.", rich_help_panel=_WORK)
    ] = "transformers",
    batch: Annotated[str, typer.Option(metavar="N,N", help="Batch sizes, by comma.", rich_help_panel=_WORK)] = "1,8",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each side.", rich_help_panel=_WORK)] = 5,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens generated per request.", rich_help_panel=_WORK)] = 128,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "bfloat16",
    exact: Exact = False,
    json: Json = False,
    save: Save = False,
) -> None:
    """How fast is plain decoding, beside another library, and where does a step's time go?"""
    from specdec.evals.throughput import run_throughput  # noqa: PLC0415

    terminal = _terminal(json=json)
    result = run_throughput(
        model=model,
        dtype=dtype,
        exact=exact,
        with_peer=peer == "transformers",
        batches=_batches(batch),
        repeats=repeats,
        num_new_tokens=new_tokens,
        terminal=terminal,
    )
    _end(result, terminal, save=save)


@app.command()
def constrained(
    num_requests: Annotated[int, typer.Option(min=1, help="Requests in all.", rich_help_panel=_WORK)] = 200,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.", rich_help_panel=_WORK)] = 8,
    temperature: Annotated[float, typer.Option(help="High ones wander most.", rich_help_panel=_WORK)] = 1.2,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.", rich_help_panel=_WORK)] = 512,
    seed: Annotated[int, typer.Option(help="Seed of the first request.", rich_help_panel=_WORK)] = 0,
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
    spec: Spec = None,
    draft: Draft = None,
    num_speculative_tokens: NumSpeculativeTokens = 4,
    model: Annotated[
        str | None,
        typer.Option(
            help="A catalog name, a folder or a Hugging Face id; with --url, the name to ask for.",
            show_default=f"{DEFAULT_MODEL}; with --url, the first that the server names",
            rich_help_panel=_MODEL,
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

    terminal = _terminal(json=json)
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
        _end(run_on_server(run, url=url, model=model, api_key=api_key, terminal=terminal), terminal, save=save)
        return
    name = model or DEFAULT_MODEL
    method = spec or ("draft_model" if draft else "none")
    result = run_with_engine(
        run,
        model=name,
        dtype=dtype,
        exact=exact,
        speculative=_speculative(method, draft, name, num_speculative_tokens),
        terminal=terminal,
    )
    _end(result, terminal, save=save)


@app.command()
def schema(
    suite: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="A draft's folder in the official JSON Schema test suite, a file of it, or JSON lines of "
            "{name, schema, tests: [{valid, data}]}, plain or .xz.",
            rich_help_panel=_WORK,
        ),
    ],
    sample: Annotated[
        int | None,
        typer.Option(min=1, help="Schemas to draw.", show_default="all", rich_help_panel=_WORK),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample and the walks.", rich_help_panel=_WORK)] = 0,
    walks: Annotated[
        int,
        typer.Option(min=0, help="Random texts to generate over the schemas and to judge.", rich_help_panel=_WORK),
    ] = 0,
    peer: Annotated[
        Literal["llguidance", "xgrammar", "outlines-core"] | None,
        typer.Option(
            help="A library to measure beside ours; needs specdec-engine[peers].",
            show_default=False,
            rich_help_panel=_WORK,
        ),
    ] = None,
    json: Json = False,
    save: Save = False,
) -> None:
    """Which schemas compile, and are labelled instances accepted and refused as they should be?

    An invalid instance that is accepted fails it. Formats are asserted for JSON lines and for the official suite's
    optional/format, and are annotations in the rest of that suite.
    """
    from specdec.evals.schema import run_schema  # noqa: PLC0415
    from specdec.evals.schema_suite import load_suite  # noqa: PLC0415

    terminal = _terminal(json=json)
    with _faults_of_parameters():
        result = run_schema(load_suite(suite), sample=sample, seed=seed, peer=peer, num_walks=walks, terminal=terminal)
    _end(result, terminal, save=save)


@app.command()
def hostile(
    name: Annotated[
        str | None,
        typer.Option(help="Only the schemas with this text in their name.", show_default="all", rich_help_panel=_WORK),
    ] = None,
    json: Json = False,
    save: Save = False,
) -> None:
    """Is every hostile schema answered in bounded time and memory, with a grammar or a named error?

    Exploding patterns and combinations, nesting, counts, sizes. Each is compiled in a process of its own and, where it
    compiles, walked by 50 random tokens and then closed. At most 6 s of processor time and 1 GiB. Linux only.
    """
    if sys.platform != "linux":
        raise typer.BadParameter("memory is limited and measured by the means of Linux", param_hint="hostile")
    from specdec.evals.hostile import run_hostile  # noqa: PLC0415

    terminal = _terminal(json=json)
    _end(run_hostile(name=name, terminal=terminal), terminal, save=save)


@app.command("compile")
def compile_service(
    suite: Annotated[
        Path,
        typer.Option(metavar="PATH", help="Schemas, as of `specdec eval schema`.", rich_help_panel=_WORK),
    ],
    vocabulary: Annotated[
        str,
        typer.Option(metavar="PATH|MODEL", help="A vocabulary, as of `specdec eval masks`.", rich_help_panel=_WORK),
    ] = DEFAULT_MODEL,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Schemas to draw.", show_default="all", rich_help_panel=_WORK)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample.", rich_help_panel=_WORK)] = 0,
    distinct: Annotated[
        int, typer.Option(min=0, help="Distinct schemas to watch the memory over.", rich_help_panel=_WORK)
    ] = 0,
    bomb: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Also have this model stream while a schema is compiled that takes all it may.",
            show_default=False,
            rich_help_panel=_WORK,
        ),
    ] = None,
    json: Json = False,
    save: Save = False,
) -> None:
    """What do the compiler's processes add to a compilation, and does a runaway one disturb anybody?

    At most 10 ms in the median; memory that stays flat over --distinct schemas; streams that do not stand still.
    """
    from specdec.evals.compile_service import run_compile  # noqa: PLC0415
    from specdec.evals.schema_suite import load_suite  # noqa: PLC0415
    from specdec.evals.vocabularies import load_vocabulary  # noqa: PLC0415

    terminal = _terminal(json=json)
    with _faults_of_parameters():
        result = run_compile(
            load_suite(suite),
            load_vocabulary(vocabulary)[0],
            sample=sample,
            seed=seed,
            num_distinct=distinct,
            bomb_model=bomb,
            terminal=terminal,
        )
    _end(result, terminal, save=save)


class MaskPeer(enum.Enum):
    """An enumeration, because a list of literals is no option that typer understands."""

    llguidance = "llguidance"
    xgrammar = "xgrammar"


@app.command()
def masks(
    suite: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="JSON lines of {name, schema, tests: [{valid, data}]}, plain or .xz, or a folder or file of the "
            "official JSON Schema test suite.",
            rich_help_panel=_WORK,
        ),
    ],
    vocabulary: Annotated[
        str,
        typer.Option(
            metavar="PATH|MODEL",
            help="A tokenizer.json, .gguf or .tiktoken file; or a catalog name, a folder or a Hugging Face id.",
            rich_help_panel=_MODEL,
        ),
    ] = DEFAULT_MODEL,
    sample: Annotated[
        int | None,
        typer.Option(min=1, help="Schemas to draw.", show_default="all", rich_help_panel=_WORK),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample.", rich_help_panel=_WORK)] = 0,
    peer: Annotated[
        list[MaskPeer] | None,
        typer.Option(
            help="A library to time beside ours, in the same loop; may be given twice. Needs specdec-engine[peers].",
            show_default=False,
            rich_help_panel=_WORK,
        ),
    ] = None,
    json: Json = False,
    save: Save = False,
) -> None:
    """How long does it take from a state to a filled bitmask, over the valid instances of a suite?

    A mask that disagrees with the tokens that are then taken fails it. Times are measurements.
    """
    from specdec.evals.masks import run_masks  # noqa: PLC0415
    from specdec.evals.schema_suite import load_suite  # noqa: PLC0415
    from specdec.evals.vocabularies import load_vocabulary  # noqa: PLC0415

    terminal = _terminal(json=json)
    with _faults_of_parameters():
        result = run_masks(
            load_suite(suite),
            *load_vocabulary(vocabulary),
            sample=sample,
            seed=seed,
            peers=[each.value for each in peer or ()],
            terminal=terminal,
        )
    _end(result, terminal, save=save)


@app.command()
def budget(
    suite: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="JSON lines of {name, schema, tests: [{valid, data}]}, plain or .xz, or a folder or file of the "
            "official JSON Schema test suite.",
            rich_help_panel=_WORK,
        ),
    ],
    vocabulary: Annotated[
        str,
        typer.Option(
            metavar="PATH|MODEL",
            help="A tokenizer.json, .gguf or .tiktoken file; or a catalog name, a folder or a Hugging Face id.",
            rich_help_panel=_MODEL,
        ),
    ] = DEFAULT_MODEL,
    schemas: Annotated[
        int, typer.Option(min=1, help="Schemas that compile and have a known minimum.", rich_help_panel=_WORK)
    ] = 300,
    walks: Annotated[int, typer.Option(min=0, help="Random walks in all.", rich_help_panel=_WORK)] = 2000,
    search_seconds: Annotated[
        float,
        typer.Option(min=0, help="For each schema's shortest answer of all; 0 leaves that out.", rich_help_panel=_WORK),
    ] = 5.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the schemas and the walks.", rich_help_panel=_WORK)] = 0,
    json: Json = False,
    save: Save = False,
) -> None:
    """Does every walk close inside its budget, and is the smallest budget the fewest tokens of any answer?

    Walks take tokens from the masks alone, at random temperatures, some of them opening what they can, in budgets from
    the schema's minimum to three times it. A walk that does not close or validate fails it, and so does a budget below
    the minimum that is not refused. How near the minimum is to the shortest answer is a measurement, by search.
    """
    from specdec.evals.budget import run_budget  # noqa: PLC0415
    from specdec.evals.schema_suite import load_suite  # noqa: PLC0415
    from specdec.evals.vocabularies import load_vocabulary  # noqa: PLC0415

    terminal = _terminal(json=json)
    with _faults_of_parameters():
        result = run_budget(
            load_suite(suite),
            load_vocabulary(vocabulary)[0],
            num_schemas=schemas,
            num_walks=walks,
            seed=seed,
            search_seconds=search_seconds,
            terminal=terminal,
        )
    _end(result, terminal, save=save)


@contextlib.contextmanager
def _faults_of_parameters() -> Iterator[None]:
    """Errors in what a suite, a vocabulary or a peer names are faults of the parameter that names it."""
    from specdec.evals.schema_peers import MissingPeerError  # noqa: PLC0415
    from specdec.evals.schema_suite import SuiteError  # noqa: PLC0415
    from specdec.evals.vocabularies import VocabularyError  # noqa: PLC0415

    try:
        yield
    except SuiteError as error:
        raise typer.BadParameter(str(error), param_hint="--suite") from error
    except VocabularyError as error:
        raise typer.BadParameter(str(error), param_hint="--vocabulary") from error
    except MissingPeerError as error:
        raise typer.BadParameter(str(error), param_hint="--peer") from error


def _terminal(*, json: bool) -> Terminal:
    from specdec.evals.terminal import Terminal  # noqa: PLC0415

    return Terminal(json=json)


def _speculative(
    method: Literal["none", "ngram", "draft_model"], draft: str | None, model: str, num_speculative_tokens: int
) -> SpeculativeConfig | None:
    from specdec.speculative import SpeculativeConfig  # noqa: PLC0415

    if method == "none":
        return None
    if method == "draft_model" and draft is None:
        from specdec.evals.driver import model_folder  # noqa: PLC0415
        from specdec.evals.shallow_draft import shallow_draft  # noqa: PLC0415

        draft = str(shallow_draft(model_folder(model)))
    return SpeculativeConfig(method=method, model=draft, num_speculative_tokens=num_speculative_tokens)


def _batches(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= 1024 for part in parts):
        raise typer.BadParameter(f"{text!r} is no list of batch sizes between 1 and 1024, as 1,8", param_hint="--batch")
    return tuple(int(part) for part in parts)


def _end(result: EvalResult, terminal: Terminal, *, save: bool) -> None:
    terminal.finish(result)
    if save:
        terminal.notes.print(f"saved as {result.save()}")
    if not result.is_passed:
        raise typer.Exit(1)
