"""The commands of `specdec eval` about grammars."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from specdec.config import DEFAULT_MODEL
from specdec.evals.flags import (
    MODEL,
    WORK,
    Json,
    Save,
    end,
    faults_of_parameters,
    terminal_of,
)


def schema(
    suite: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="A draft's folder in the official JSON Schema test suite, a file of it, or JSON lines of "
            "{name, schema, tests: [{valid, data}]}, plain or .xz.",
            rich_help_panel=WORK,
        ),
    ],
    sample: Annotated[
        int | None,
        typer.Option(min=1, help="Schemas to draw.", show_default="all", rich_help_panel=WORK),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample and the walks.", rich_help_panel=WORK)] = 0,
    walks: Annotated[
        int,
        typer.Option(min=0, help="Random texts to generate over the schemas and to judge.", rich_help_panel=WORK),
    ] = 0,
    peer: Annotated[
        Literal["llguidance", "xgrammar", "outlines-core"] | None,
        typer.Option(
            help="A library to measure beside ours; needs specdec-engine[peers].",
            show_default=False,
            rich_help_panel=WORK,
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

    terminal = terminal_of(json=json)
    with faults_of_parameters():
        result = run_schema(load_suite(suite), sample=sample, seed=seed, peer=peer, num_walks=walks, terminal=terminal)
    end(result, terminal, save=save)


def hostile(
    name: Annotated[
        str | None,
        typer.Option(help="Only the schemas with this text in their name.", show_default="all", rich_help_panel=WORK),
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

    terminal = terminal_of(json=json)
    end(run_hostile(name=name, terminal=terminal), terminal, save=save)


def compile_service(
    suite: Annotated[
        Path,
        typer.Option(metavar="PATH", help="Schemas, as of `specdec eval schema`.", rich_help_panel=WORK),
    ],
    vocabulary: Annotated[
        str,
        typer.Option(metavar="PATH|MODEL", help="A vocabulary, as of `specdec eval masks`.", rich_help_panel=WORK),
    ] = DEFAULT_MODEL,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Schemas to draw.", show_default="all", rich_help_panel=WORK)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample.", rich_help_panel=WORK)] = 0,
    distinct: Annotated[
        int, typer.Option(min=0, help="Distinct schemas to watch the memory over.", rich_help_panel=WORK)
    ] = 0,
    bomb: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Also have this model stream while a schema is compiled that takes all it may.",
            show_default=False,
            rich_help_panel=WORK,
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

    terminal = terminal_of(json=json)
    with faults_of_parameters():
        result = run_compile(
            load_suite(suite),
            load_vocabulary(vocabulary)[0],
            sample=sample,
            seed=seed,
            num_distinct=distinct,
            bomb_model=bomb,
            terminal=terminal,
        )
    end(result, terminal, save=save)


class MaskPeer(enum.Enum):
    """An enumeration, because a list of literals is no option that typer understands."""

    llguidance = "llguidance"
    xgrammar = "xgrammar"


def masks(
    suite: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="JSON lines of {name, schema, tests: [{valid, data}]}, plain or .xz, or a folder or file of the "
            "official JSON Schema test suite.",
            rich_help_panel=WORK,
        ),
    ],
    vocabulary: Annotated[
        str,
        typer.Option(
            metavar="PATH|MODEL",
            help="A tokenizer.json, .gguf or .tiktoken file; or a catalog name, a folder or a Hugging Face id.",
            rich_help_panel=MODEL,
        ),
    ] = DEFAULT_MODEL,
    sample: Annotated[
        int | None,
        typer.Option(min=1, help="Schemas to draw.", show_default="all", rich_help_panel=WORK),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample.", rich_help_panel=WORK)] = 0,
    peer: Annotated[
        list[MaskPeer] | None,
        typer.Option(
            help="A library to time beside ours, in the same loop; may be given twice. Needs specdec-engine[peers].",
            show_default=False,
            rich_help_panel=WORK,
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

    terminal = terminal_of(json=json)
    with faults_of_parameters():
        result = run_masks(
            load_suite(suite),
            *load_vocabulary(vocabulary),
            sample=sample,
            seed=seed,
            peers=[each.value for each in peer or ()],
            terminal=terminal,
        )
    end(result, terminal, save=save)


def budget(
    suite: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="JSON lines of {name, schema, tests: [{valid, data}]}, plain or .xz, or a folder or file of the "
            "official JSON Schema test suite.",
            rich_help_panel=WORK,
        ),
    ],
    vocabulary: Annotated[
        str,
        typer.Option(
            metavar="PATH|MODEL",
            help="A tokenizer.json, .gguf or .tiktoken file; or a catalog name, a folder or a Hugging Face id.",
            rich_help_panel=MODEL,
        ),
    ] = DEFAULT_MODEL,
    schemas: Annotated[
        int, typer.Option(min=1, help="Schemas that compile and have a known minimum.", rich_help_panel=WORK)
    ] = 300,
    walks: Annotated[int, typer.Option(min=0, help="Random walks in all.", rich_help_panel=WORK)] = 2000,
    search_seconds: Annotated[
        float,
        typer.Option(min=0, help="For each schema's shortest answer of all; 0 leaves that out.", rich_help_panel=WORK),
    ] = 5.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the schemas and the walks.", rich_help_panel=WORK)] = 0,
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

    terminal = terminal_of(json=json)
    with faults_of_parameters():
        result = run_budget(
            load_suite(suite),
            load_vocabulary(vocabulary)[0],
            num_schemas=schemas,
            num_walks=walks,
            seed=seed,
            search_seconds=search_seconds,
            terminal=terminal,
        )
    end(result, terminal, save=save)
