"""`specdec schema check`: what would be enforced of a schema, and what narrows its answers, without a model."""

from __future__ import annotations

import json

import msgspec
from rich.console import Console
from rich.table import Table

from specdec.cli.console import complain, say
from specdec.cli.errors import EXIT_FAILURE
from specdec.cli.schema_file import read_schema_file
from specdec.grammars import (
    EnforcementReport,
    GrammarCompiler,
    GrammarError,
    SchemaOptions,
    Vocabulary,
)

_END = 256


def check_schema(file: str, options: SchemaOptions, *, as_json: bool) -> int:
    """Compile a schema over all bytes and print the report, or why it is refused; the exit code.

    Raises ConfigError for a file that cannot be read or holds no JSON.
    """
    text = read_schema_file(file, flag="FILE")
    compiler = GrammarCompiler(Vocabulary([*(bytes([byte]) for byte in range(256)), None], [_END]))
    try:
        report = compiler.compile_json_schema(text, options).report
    except GrammarError as error:
        _print_refusal(error, as_json=as_json)
        return EXIT_FAILURE
    if as_json:
        say(msgspec.json.encode({"enforcement": report}).decode(), out=True)
    else:
        _print_report(file, report)
    return 0


def _print_refusal(error: GrammarError, *, as_json: bool) -> None:
    name = type(error).__name__
    if as_json:
        refusal = {"name": name, "message": error.message, "keyword": error.keyword, "pointer": error.pointer}
        say(json.dumps({"error": refusal}), out=True)
    else:
        keyword = f" (keyword {error.keyword})" if error.keyword else ""
        complain(f"{name}: {error}{keyword}")


def _print_report(file: str, report: EnforcementReport) -> None:
    table = Table(title=f"{file}: enforced", title_justify="left")
    table.add_column("keyword or place", overflow="fold")
    table.add_column("what becomes of it", overflow="fold")
    for keyword in report.enforced:
        table.add_row(keyword, "enforced")
    for restriction in report.restrictions:
        table.add_row(restriction.pointer or "every text", f"restricted: {restriction.reason}")
    for keyword in report.annotations:
        table.add_row(keyword, "annotation: constrains nothing")
    console = Console(highlight=False)
    # A file has no width; the default of 80 would fold every line.
    (console if console.is_terminal else Console(highlight=False, width=160)).print(table)
