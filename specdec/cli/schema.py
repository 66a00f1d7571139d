"""`specdec schema check`: what would be enforced of a schema, and what narrows its answers, without a model."""

from __future__ import annotations

import json

import msgspec
from rich.console import Console
from rich.table import Table

from specdec.cli.console import complain, say
from specdec.cli.errors import EXIT_FAILURE
from specdec.cli.schema_file import read_schema_file
from specdec.errors import ConfigError
from specdec.grammars import (
    EnforcementReport,
    GrammarCompiler,
    GrammarError,
    SchemaOptions,
    Vocabulary,
)

_END = 256


def check_schema(file: str, options: SchemaOptions, *, vocabulary: str | None, as_json: bool) -> int:
    """Compile a schema and print the report, or why it is refused; the exit code.

    Over all bytes where no vocabulary is named. Raises ConfigError for a file that cannot be read or holds no JSON, and
    for a vocabulary that is none.
    """
    text = read_schema_file(file, flag="FILE")
    compiler = GrammarCompiler(_vocabulary(vocabulary))
    try:
        grammar = compiler.compile_json_schema(text, options)
    except GrammarError as error:
        _print_refusal(error, as_json=as_json)
        return EXIT_FAILURE
    if as_json:
        shown: dict[str, object] = {"enforcement": grammar.report}
        if vocabulary is not None:
            shown["minimum_tokens"] = grammar.minimum_tokens
        say(msgspec.json.encode(shown).decode(), out=True)
        return 0
    _print_report(file, grammar.report)
    if vocabulary is not None and grammar.minimum_tokens is None:
        say(f"{vocabulary}: no max_tokens is taken, for the shortest answer is too long to plan for", out=True)
    elif vocabulary is not None:
        say(f"{vocabulary}: the smallest max_tokens that is taken is {grammar.minimum_tokens}", out=True)
    return 0


def _vocabulary(name: str | None) -> Vocabulary:
    if name is None:
        return Vocabulary([*(bytes([byte]) for byte in range(256)), None], [_END])
    # Not before it is needed: it loads tokenizers.
    from specdec.evals.vocabularies import VocabularyError, load_vocabulary

    try:
        loaded, _ = load_vocabulary(name)
    except VocabularyError as error:
        raise ConfigError(str(error), flag="--vocabulary") from error
    return Vocabulary(loaded.token_bytes, loaded.eos_token_ids, loaded.size)


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
