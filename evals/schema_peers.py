"""Schema peers: other libraries as schema engines, to measure beside ours; installed by the extra `peers`.

Each is set as its documentation sets it for compact JSON: llguidance by its defaults on its byte tokenizer, xgrammar
without whitespace and with open objects left open (`strict_mode=False`), outlines-core without whitespace. None of them
takes documents for references to lead to, nor a choice between asserting formats and not.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

from specdec.evals.schema_engine import EOS_TOKEN_ID, CompileOptions, RefusedSchemaError, SchemaEngine, refused_at

PeerName = Literal["llguidance", "xgrammar", "outlines-core"]

# The peers ship no types that strict checking accepts, and may be absent: every object of theirs is Any.


class MissingPeerError(Exception):
    """The peer is not installed; the message says how to get it."""


def import_peer(name: PeerName) -> Any:
    """The peer's module; MissingPeerError where it is not installed."""
    try:
        return importlib.import_module(name.replace("-", "_"))
    except ImportError as error:
        raise MissingPeerError(
            f"{name} is not installed ({error}); pip install 'specdec-engine[peers]' brings it"
        ) from error


def load_peer(name: PeerName) -> SchemaEngine:
    """Raises MissingPeerError."""
    module = import_peer(name)
    if name == "llguidance":
        return LlguidanceEngine(module)
    return XgrammarEngine(module) if name == "xgrammar" else OutlinesCoreEngine(module)


def _refused(error: Exception | str) -> RefusedSchemaError:
    message = " ".join(str(error).split())
    # Its own figures would make every message a reason of its own.
    reason = message.partition("] ")[2] if message.startswith("[") else message
    return RefusedSchemaError(
        reason[:80] or type(error).__name__, message=message, is_unsatisfiable="nsatisfiable" in message
    )


class LlguidanceEngine:
    def __init__(self, module: Any) -> None:
        self._module = module
        self._tokenizer: Any = module.LLTokenizer("byte")

    def compile(self, schema_text: str, options: CompileOptions) -> _LlguidanceSchema:
        del options
        try:
            grammar = self._module.LLMatcher.grammar_from_json_schema(schema_text)
        except ValueError as error:
            raise _refused(error) from error
        matcher = self._module.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise _refused(matcher.get_error())
        return _LlguidanceSchema(matcher)


class _LlguidanceSchema:
    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def refusal(self, text: bytes) -> str | None:
        matcher = self._matcher.deep_copy()
        num_accepted = matcher.try_consume_tokens(list(text))
        if num_accepted == len(text) and matcher.is_accepting():
            return None
        if matcher.is_error():
            return f"matcher error: {matcher.get_error()}"
        return refused_at(text, num_accepted)


class XgrammarEngine:
    def __init__(self, module: Any) -> None:
        self._module = module
        info = module.TokenizerInfo(
            [*(bytes([byte]) for byte in range(256)), b"<eos>"],
            vocab_type=module.VocabType.RAW,
            stop_token_ids=[EOS_TOKEN_ID],
        )
        self._compiler: Any = module.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile(self, schema_text: str, options: CompileOptions) -> _XgrammarSchema:
        del options
        try:
            compiled = self._compiler.compile_json_schema(
                schema_text, any_whitespace=False, strict_mode=False, separators=(",", ":")
            )
        except (RuntimeError, ValueError) as error:
            raise _refused(error) from error
        return _XgrammarSchema(self._module, compiled)


class _XgrammarSchema:
    def __init__(self, module: Any, compiled: Any) -> None:
        self._module = module
        self._compiled = compiled

    def refusal(self, text: bytes) -> str | None:
        matcher = self._module.GrammarMatcher(self._compiled)
        for position, byte in enumerate(text):
            if not matcher.accept_token(byte):
                return refused_at(text, position)
        return None if matcher.accept_token(EOS_TOKEN_ID) else refused_at(text, len(text))


class OutlinesCoreEngine:
    def __init__(self, module: Any) -> None:
        self._module = module
        self._vocabulary: Any = module.Vocabulary(EOS_TOKEN_ID, {bytes([byte]): [byte] for byte in range(256)})
        self._build_regex: Any = importlib.import_module("outlines_core.json_schema").build_regex_from_schema

    def compile(self, schema_text: str, options: CompileOptions) -> _OutlinesCoreSchema:
        del options
        try:
            return _OutlinesCoreSchema(self._module.Index(self._build_regex(schema_text, ""), self._vocabulary))
        except (RuntimeError, ValueError) as error:
            raise _refused(error) from error


class _OutlinesCoreSchema:
    def __init__(self, index: Any) -> None:
        self._index = index

    def refusal(self, text: bytes) -> str | None:
        state = self._index.get_initial_state()
        for position, byte in enumerate(text):
            state = self._index.get_next_state(state, byte)
            if state is None:
                return refused_at(text, position)
        return None if self._index.is_final_state(state) else refused_at(text, len(text))
