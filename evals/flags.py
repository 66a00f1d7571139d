"""Flags that several commands of `specdec eval` share, and how a command begins and ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from specdec.evals.result import EvalResult
    from specdec.evals.terminal import Terminal

MODEL, WORK, SPECULATION, OUTPUT = "Model", "Workload", "Speculation", "Output"
"""Panels of a command's help."""

Model = Annotated[
    str, typer.Option("--model", help="A catalog name, a folder or a Hugging Face id.", rich_help_panel=MODEL)
]
Dtype = Annotated[
    Literal["auto", "bfloat16", "float16", "float32"],
    typer.Option("--dtype", help="Arithmetic; auto is the checkpoint's own.", rich_help_panel=MODEL),
]
Exact = Annotated[bool, typer.Option("--exact/--no-exact", help="Row-invariant arithmetic.", rich_help_panel=MODEL)]
Size = Annotated[
    Literal["quick", "standard", "full"],
    typer.Option("--size", help="How much to generate: a look, the usual, or the long run.", rich_help_panel=WORK),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="MODEL",
        help="The draft model; `shallow` makes one of the target's first 6 layers.",
        show_default=False,
        rich_help_panel=SPECULATION,
    ),
]
Repeats = Annotated[
    int | None,
    typer.Option("--repeats", min=1, help="Timed runs of each side.", show_default="by --size", rich_help_panel=WORK),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", min=1, help="Longest answer, in tokens.", show_default="by --size", rich_help_panel=WORK
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="One JSON object on standard output, tables on standard error.", rich_help_panel=OUTPUT
    ),
]
Save = Annotated[bool, typer.Option("--save", help="Keep the JSON, dated, in evals/results/.", rich_help_panel=OUTPUT)]


@contextlib.contextmanager
def faults_of_parameters() -> Iterator[None]:
    """Errors in what a suite, a dataset, a vocabulary or a peer names are faults of the parameter that names it."""
    from specdec.evals.dataset import DatasetError  # noqa: PLC0415
    from specdec.evals.schema_peers import MissingPeerError  # noqa: PLC0415
    from specdec.evals.schema_suite import SuiteError  # noqa: PLC0415
    from specdec.evals.vocabularies import VocabularyError  # noqa: PLC0415

    try:
        yield
    except SuiteError as error:
        raise typer.BadParameter(str(error), param_hint="--suite") from error
    except DatasetError as error:
        raise typer.BadParameter(str(error), param_hint="--dataset") from error
    except VocabularyError as error:
        raise typer.BadParameter(str(error), param_hint="--vocabulary") from error
    except MissingPeerError as error:
        raise typer.BadParameter(str(error), param_hint="--peer") from error


def terminal_of(*, json: bool) -> Terminal:
    """Where a command prints; loaded when it runs."""
    from specdec.evals.terminal import Terminal  # noqa: PLC0415

    return Terminal(json=json)


def shallow_draft_of(model: str) -> str:
    """A folder with the first layers of a model, to draft for it."""
    from specdec.evals.driver import model_folder  # noqa: PLC0415
    from specdec.evals.shallow_draft import shallow_draft  # noqa: PLC0415

    return str(shallow_draft(model_folder(model)))


def numbers_of(text: str, most: int, flag: str) -> tuple[int, ...]:
    """Numbers from 1 to the most, by comma. Raises typer's BadParameter."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= most for part in parts):
        raise typer.BadParameter(f"{text!r} is no list of numbers between 1 and {most}, as 1,8", param_hint=flag)
    return tuple(int(part) for part in parts)


def end(result: EvalResult, terminal: Terminal, *, save: bool) -> None:
    """Print the verdict, keep the result, and exit with 1 where it failed."""
    terminal.finish(result)
    if save:
        terminal.notes.print(f"saved as {result.save()}")
    if not result.is_passed:
        raise typer.Exit(1)
