"""Why other libraries disagree with the judge on random schemas: counterfactuals, each of which can be refuted.

A cause says what the library does instead. A spelling cause writes the same value in another way, and the library must
accept that text. A schema cause rewrites the schema into what the library compiles: the judge's verdict on the
rewritten schema must be the library's on the first one, and the library must see no difference between the two. The
smallest set of a library's causes that does so explains a disagreement; where none does, it is news.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from specdec.evals.schema_engine import (
    EOS_TOKEN_ID,
    CompiledSchema,
    CompileOptions,
    RefusedSchemaError,
    SchemaEngine,
)
from specdec.grammars.judge import Judge, UnjudgeableError

OPTIONS = CompileOptions(format="assert", unknown_format="annotation")
_MAX_CAUSES = 3
_END = b"\0"
_ANNOTATIONS = frozenset({"$defs", "$anchor", "$id", "$schema", "title", "description"})
_OF_OBJECTS = ("properties", "additionalProperties")
_BOUNDS = ("minItems", "maxItems", "minLength", "maxLength", "required")
_ESCAPED = r'["\\\x00-\x1f]'
_PLAIN_KEY = re.compile(r"[ !#-\[\]-~]*")
_CONTROL = r"[\x00-\x07\x0b\x0e-\x1f\x7f-\x9f]"

KEY_ORDER = "keys come in the order of the schema"
NUMERALS = "a number is spelt in another way"
SPACES = "a value without constraints has a space after its commas"
END_MARK = "where the text may end, a token after which it may not is not allowed"
_SIBLINGS = "keywords beside $ref, const, enum or anyOf are dropped"
_FIRST_KEYWORD = "properties, anyOf, enum, const and $ref drop what is beside them, the first of them the others"
_REQUIRED = "a required key that properties does not declare is not asked for"
_DECLARED_KEY = "where no required key is declared, one that is declared must come"
_IMPLIED_TYPE = "keywords of one type ask for that type"
_LONE_BOUNDS = "bounds alone, without a type, are dropped"
_CLOSED = "properties close an object"
_AS_UNDECLARED = "a declared key that is optional, and not plain ASCII, may come as one that is not declared"
_ESCAPES = "a string with bounds has no escapes"
_CONTROLS = "a string has no control characters but those with an escape of their own"
_SPELLINGS = {
    "llguidance": (NUMERALS, KEY_ORDER),
    "xgrammar": (NUMERALS, KEY_ORDER, SPACES),
    "outlines-core": (NUMERALS, KEY_ORDER, END_MARK),
}


class SchemaCause(NamedTuple):
    name: str
    peers: tuple[str, ...]
    rewritten: Callable[[dict[str, Any]], dict[str, Any]]
    """Of one subschema, whose own subschemas are rewritten already."""


def _kept(schema: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key in names or key in _ANNOTATIONS}


def _without_siblings(schema: dict[str, Any]) -> dict[str, Any]:
    for keyword in ("$ref", "const", "enum", "anyOf"):
        if keyword in schema:
            return _kept(schema, keyword)
    return schema


def _first_keyword(schema: dict[str, Any]) -> dict[str, Any]:
    if "properties" in schema:
        return {**_kept(schema, "properties", "required", "additionalProperties"), "type": "object"}
    for keyword in ("anyOf", "enum", "const", "$ref"):
        if keyword in schema:
            return _kept(schema, keyword)
    return schema


def _without_undeclared_required(schema: dict[str, Any]) -> dict[str, Any]:
    if "required" not in schema:
        return schema
    declared = schema.get("properties", {})
    return {**schema, "required": [key for key in schema["required"] if key in declared]}


def _with_a_declared_key(schema: dict[str, Any]) -> dict[str, Any]:
    declared, required = schema.get("properties", {}), schema.get("required", ())
    if not declared or not required or any(key in declared for key in required):
        return schema
    # Denied twice, since `not` is passed over by the library, and `anyOf` would hide the rest from it.
    return {**schema, "not": {"not": {"anyOf": [{"required": [key]} for key in declared]}}}


def _with_implied_type(schema: dict[str, Any]) -> dict[str, Any]:
    if "type" in schema:
        return schema
    if any(keyword in schema for keyword in _OF_OBJECTS):
        return {**schema, "type": "object"}
    return {**schema, "type": "array"} if "items" in schema else schema


def _without_lone_bounds(schema: dict[str, Any]) -> dict[str, Any]:
    if any(keyword in schema for keyword in ("type", "items", *_OF_OBJECTS)):
        return schema
    return {key: value for key, value in schema.items() if key not in _BOUNDS}


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "additionalProperties": False} if "properties" in schema else schema


def _with_declared_as_undeclared(schema: dict[str, Any]) -> dict[str, Any]:
    others = schema.get("additionalProperties", True)
    required = schema.get("required", ())
    properties = {
        key: value if key in required or _PLAIN_KEY.fullmatch(key) else {"anyOf": [value, others]}
        for key, value in schema.get("properties", {}).items()
    }
    return {**schema, "properties": properties} if properties and others is not False else schema


def _with_plain_strings_where_bounded(schema: dict[str, Any]) -> dict[str, Any]:
    is_bounded = schema.get("minLength", 0) > 0 or "maxLength" in schema
    return {**schema, "not": _string_with(_ESCAPED)} if is_bounded else schema


def _with_strings_of_outlines(schema: dict[str, Any]) -> dict[str, Any]:
    if "enum" in schema or "const" in schema:
        return schema
    return {**schema, "not": _string_with(_CONTROL)}


def _string_with(pattern: str) -> dict[str, Any]:
    """For `not`, which both libraries pass over: what they compile stays the same."""
    return {"type": "string", "pattern": pattern}


SCHEMA_CAUSES = (
    SchemaCause(_SIBLINGS, ("xgrammar",), _without_siblings),
    SchemaCause(
        _FIRST_KEYWORD,
        ("outlines-core",),
        _first_keyword,
    ),
    SchemaCause(
        _REQUIRED,
        ("xgrammar", "outlines-core"),
        _without_undeclared_required,
    ),
    SchemaCause(_DECLARED_KEY, ("xgrammar",), _with_a_declared_key),
    SchemaCause(_IMPLIED_TYPE, ("xgrammar",), _with_implied_type),
    SchemaCause(_LONE_BOUNDS, ("xgrammar",), _without_lone_bounds),
    SchemaCause(_CLOSED, ("outlines-core",), _closed),
    SchemaCause(
        _AS_UNDECLARED,
        ("xgrammar",),
        _with_declared_as_undeclared,
    ),
    SchemaCause(_ESCAPES, ("xgrammar",), _with_plain_strings_where_bounded),
    SchemaCause(
        _CONTROLS,
        ("outlines-core",),
        _with_strings_of_outlines,
    ),
)


# Any: schemas and values are whatever JSON holds.
EXAMPLES: tuple[tuple[str, str, Any, Any], ...] = (
    ("llguidance", NUMERALS, {"type": "integer"}, 1.0),
    ("llguidance", KEY_ORDER, {"properties": {"a": {}, "b": {}}}, {"b": 1, "a": 1}),
    ("xgrammar", NUMERALS, {"type": "integer"}, 1.0),
    ("xgrammar", KEY_ORDER, {"type": "object", "properties": {"a": {}, "b": {}}}, {"b": 1, "a": 1}),
    ("xgrammar", SPACES, True, [1, 2]),
    ("xgrammar", _SIBLINGS, {"type": "number", "enum": ["a"]}, "a"),
    ("xgrammar", _REQUIRED, {"type": "object", "properties": {}, "required": ["a"]}, {}),
    ("xgrammar", _DECLARED_KEY, {"type": "object", "properties": {"b": {}}, "required": ["a"]}, {"a": 1}),
    ("xgrammar", _IMPLIED_TYPE, {"items": {}}, 1),
    ("xgrammar", _LONE_BOUNDS, {"minItems": 2}, []),
    ("xgrammar", _AS_UNDECLARED, {"type": "object", "properties": {"é": {"type": "null"}}}, {"é": 1}),
    ("xgrammar", _ESCAPES, {"type": "string", "minLength": 1}, "\n"),
    ("outlines-core", NUMERALS, {"type": "integer"}, 1.0),
    (
        "outlines-core",
        KEY_ORDER,
        {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}},
        {"b": None, "a": None},
    ),
    ("outlines-core", END_MARK, {"type": "number"}, 0.5),
    ("outlines-core", _FIRST_KEYWORD, {"type": "number", "enum": ["a"]}, "a"),
    ("outlines-core", _REQUIRED, {"type": "object", "properties": {}, "required": ["a"]}, {}),
    ("outlines-core", _CLOSED, {"type": "object", "properties": {}}, {"a": 1}),
    ("outlines-core", _CONTROLS, {"type": "string"}, "\u0001"),
)


class Peer:
    """A library with what it made of one schema."""

    def __init__(self, name: str, engine: SchemaEngine, schema: Any) -> None:
        """Raises RefusedSchemaError."""
        self._name = name
        self._engine = engine
        self._schema = schema
        self._compiled = engine.compile(json.dumps(schema), OPTIONS)
        self._marked: CompiledSchema | None = None
        self._rewritten: dict[tuple[str, ...], tuple[Judge, CompiledSchema | None]] = {}

    def accepts(self, text: bytes) -> bool:
        return self._compiled.refusal(text) is None

    def explanation(self, value: Any, text: bytes, *, is_valid: bool) -> tuple[str, ...] | None:
        """The fewest causes under which the judge and the library agree on a value on which they do not."""
        if is_valid:
            for causes in _sets(_SPELLINGS[self._name]):
                peer = self._with_end_mark() if END_MARK in causes else self._compiled
                if any(peer.refusal(one) is None for one in _texts(value, causes)):
                    return causes
        mine = [cause for cause in SCHEMA_CAUSES if self._name in cause.peers]
        for chosen in _sets(mine):
            if self._is_explained_by(chosen, text, is_valid=is_valid):
                return tuple(cause.name for cause in chosen)
        return None

    def _is_explained_by(self, causes: tuple[SchemaCause, ...], text: bytes, *, is_valid: bool) -> bool:
        names = tuple(cause.name for cause in causes)
        if names not in self._rewritten:
            rewritten = self._schema
            for cause in causes:
                rewritten = _rewritten(rewritten, cause.rewritten)
            try:
                compiled = self._engine.compile(json.dumps(rewritten), OPTIONS)
            except RefusedSchemaError:
                compiled = None
            self._rewritten[names] = Judge(rewritten), compiled
        judge, compiled = self._rewritten[names]
        try:
            is_valid_then = judge.violation(text.decode()) is None
        except UnjudgeableError:
            return False
        is_taken = not is_valid
        return is_valid_then == is_taken and compiled is not None and (compiled.refusal(text) is None) == is_taken

    def _with_end_mark(self) -> CompiledSchema:
        """The pattern of outlines-core with a byte after it, so that no text may end before that."""
        if self._marked is None:
            self._marked = _MarkedIndex(self._schema)
        return self._marked


class _MarkedIndex:
    def __init__(self, schema: Any) -> None:
        # Here and not above: the other libraries' tests run without it.
        import outlines_core
        from outlines_core.json_schema import build_regex_from_schema

        vocabulary = outlines_core.Vocabulary(EOS_TOKEN_ID, {bytes([byte]): [byte] for byte in range(256)})
        pattern = build_regex_from_schema(json.dumps(schema), "")
        self._index: Any = outlines_core.Index(rf"(?:{pattern})\x00", vocabulary)

    def refusal(self, text: bytes) -> str | None:
        state = self._index.get_initial_state()
        for byte in text + _END:
            state = self._index.get_next_state(state, byte)
            if state is None:
                return "refused"
        return None if self._index.is_final_state(state) else "refused"


def cause_names(peer: str) -> tuple[str, ...]:
    """All that a disagreement of the library may be explained by."""
    return (*_SPELLINGS[peer], *(cause.name for cause in SCHEMA_CAUSES if peer in cause.peers))


def spelt(value: Any) -> bytes:
    """The compact text of a value as it stands."""
    return next(_texts(value, ()))


def _sets(causes: Any) -> Iterator[tuple[Any, ...]]:
    for number in range(1, _MAX_CAUSES + 1):
        yield from itertools.combinations(causes, number)


def _rewritten(schema: Any, rewrite: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Every subschema, from the inside out."""
    if not isinstance(schema, dict):
        return schema
    inside = dict(schema)
    for keyword in ("properties", "$defs"):
        if keyword in schema:
            inside[keyword] = {key: _rewritten(one, rewrite) for key, one in schema[keyword].items()}
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            inside[keyword] = _rewritten(schema[keyword], rewrite)
    if "anyOf" in schema:
        inside["anyOf"] = [_rewritten(one, rewrite) for one in schema["anyOf"]]
    return rewrite(inside)


def _texts(value: Any, causes: tuple[str, ...]) -> Iterator[bytes]:
    return (text.encode() for text in _spelt(value, causes))


def _spelt(value: Any, causes: tuple[str, ...]) -> Iterator[str]:
    commas = (",", ", ") if SPACES in causes and isinstance(value, (dict, list)) and len(value) > 1 else (",",)
    if isinstance(value, dict):
        for order in itertools.permutations(value) if KEY_ORDER in causes else (tuple(value),):
            members = [[f"{_json(key)}:{text}" for text in _spelt(value[key], causes)] for key in order]
            for parts in itertools.product(*members):
                yield from ("{" + comma.join(parts) + "}" for comma in commas)
    elif isinstance(value, list):
        for parts in itertools.product(*(list(_spelt(item, causes)) for item in value)):
            yield from ("[" + comma.join(parts) + "]" for comma in commas)
    elif NUMERALS in causes and isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value):
        yield str(int(value))
        yield _json(float(value))
    else:
        yield _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
