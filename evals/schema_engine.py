"""SchemaEngine: what compiles a schema and says which texts it accepts; ours, and what every peer has to offer."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import msgspec

from specdec import grammars
from specdec.grammars import Grammar, GrammarCompiler, GrammarError, GrammarState, Vocabulary

# Schemas are whatever JSON holds.
Json = Any

EOS_TOKEN_ID = 256
_WORDS = (
    b'{"', b'":', b'":"', b'","', b'",', b'"}', b'"}]', b"}}", b"},{", b"[[", b"]]", b'["', b'"]', b"],", b"{}", b"[]",
    b'""', b"true", b"false", b"null", b"10", b"0.5", b"-1", b"\\u00", b"\\n", b'\\"', b"the", b"ab", b"2024-",
    "é".encode(), "中".encode(), "😀".encode(), b"\x98\x80", b'":{"', b'":[{"', b'":null', b'":true,"',
)  # fmt: skip


class CompileOptions(msgspec.Struct, frozen=True, kw_only=True):
    format: Literal["assert", "annotation"]
    unknown_format: Literal["refuse", "annotation"] = "annotation"
    with_documents: bool = False
    """Whether references may lead to the documents of the suite."""


class RefusedSchemaError(Exception):
    """The engine does not take the schema; `reason` is short enough to count by."""

    def __init__(
        self, reason: str, *, message: str, keyword: str | None = None, is_unsatisfiable: bool = False
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.keyword = keyword
        self.is_unsatisfiable = is_unsatisfiable


class CompiledSchema(Protocol):
    def refusal(self, text: bytes) -> str | None:
        """Where and why the text is refused; None where it is accepted, the end of the sequence after it included."""


class SchemaEngine(Protocol):
    def compile(self, schema_text: str, options: CompileOptions) -> CompiledSchema:
        """Raises RefusedSchemaError; anything else it raises is a fault of the engine."""


def refused_at(text: bytes, num_accepted: int) -> str:
    """The message for a text whose first bytes alone are accepted."""
    if num_accepted >= len(text):
        return "the text may not end here"
    before = text[max(0, num_accepted - 40) : num_accepted].decode(errors="replace")
    after = text[num_accepted : num_accepted + 40].decode(errors="replace")
    return f"byte {num_accepted} is not allowed: {before} >>> {after}"


class SpecdecEngine:
    """Our compiler, where nothing else is given over a vocabulary of single bytes and some words."""

    def __init__(
        self,
        documents: Mapping[str, Json],
        vocabulary: Vocabulary | None = None,
        *,
        compiler: GrammarCompiler | None = None,
    ) -> None:
        self._documents = dict(documents)
        tokens: list[bytes | None] = [bytes([byte]) for byte in range(256)]
        if compiler is None:
            vocabulary = vocabulary or Vocabulary([*tokens, None, *_WORDS], [EOS_TOKEN_ID])
            compiler = GrammarCompiler(vocabulary, max_cache_entries=1)
        self.compiler = compiler
        self.vocabulary = compiler.vocabulary

    def compile(self, schema_text: str, options: CompileOptions) -> SpecdecGrammar:
        try:
            return SpecdecGrammar(self.grammar(schema_text, options))
        except GrammarError as error:
            kind = type(error).__name__.removesuffix("Error")
            raise RefusedSchemaError(
                f"{kind}: {error.keyword}" if error.keyword else f"{kind}: {error.message[:80]}",
                message=str(error),
                keyword=error.keyword,
                is_unsatisfiable=isinstance(error, grammars.UnsatisfiableSchemaError),
            ) from error

    def grammar(self, schema_text: str, options: CompileOptions) -> Grammar:
        """Raises GrammarError."""
        # Any: the options have a type only in compilers that take them; the first release's takes the schema alone.
        compile_json_schema: Any = self.compiler.compile_json_schema
        # Parsed here, as most callers do: it is then that 1.0 and 1 are still told apart.
        schema = json.loads(schema_text)
        keywords: dict[str, Any] = {}
        if "options" in inspect.signature(compile_json_schema).parameters:
            # Any: as above.
            exported: Any = grammars
            keywords["options"] = exported.SchemaOptions(
                format=options.format,
                unknown_format=options.unknown_format,
                documents=self._documents if options.with_documents else {},
            )
        grammar: Grammar = compile_json_schema(schema, **keywords)
        return grammar


class SpecdecGrammar:
    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar

    def refusal(self, text: bytes) -> str | None:
        state: GrammarState | None = self.grammar.initial_state
        for position in range(len(text)):
            assert state is not None
            state = self.grammar.advance_bytes(state, text[position : position + 1])
            if state is None:
                return refused_at(text, position)
        assert state is not None
        return None if self.grammar.is_accepting(state) else refused_at(text, len(text))
