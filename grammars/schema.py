"""SchemaDocument: a schema as checked plain data, its dialect, and what its references point to.

The text is parsed before anything looks at it, so that whatever the caller handed in (a dict with tuples, cycles
or NaN) becomes plain JSON or a named error, and every limit on its size holds before any walk of it. No walk here
or later recurses: depth is a limit, not a stack overflow.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urldefrag

import msgspec

from specdec.grammars.errors import InvalidSchemaError, LimitExceededError, UnsupportedSchemaError
from specdec.grammars.limits import Limits

# A schema's values are whatever JSON holds; each use checks the shape it needs.
Json = Any

_LEGACY_DRAFTS = {"draft-04": 4, "draft-06": 6, "draft-07": 7}
_SCHEMA_URI = re.compile(r"https?://json-schema\.org/(draft-0[3467]|draft/20(?:19-09|20-12))/(?:hyper-)?schema#?")
_ARRAY_INDEX = re.compile(r"0|[1-9][0-9]*")


class Dialect(msgspec.Struct, frozen=True):
    """The rules that `$schema` selects."""

    ref_hides_siblings: bool = False
    """Up to draft 7 the keywords beside a `$ref` count for nothing."""
    whole_floats_are_integers: bool = True
    """From draft 6 on, 1.0 is an integer."""
    id_keyword: str = "$id"


class SchemaDocument:
    """One schema text, parsed and within the limits."""

    def __init__(self, text: str, limits: Limits) -> None:
        self.root = _parse(text, limits)
        self.dialect = _dialect(self.root)
        self._base_uri = ""
        if isinstance(self.root, dict):
            base = self.root.get(self.dialect.id_keyword)
            self._base_uri = base if isinstance(base, str) else ""

    def resolve(self, reference: str, pointer: str) -> tuple[str, Json]:
        """Pointer and value of what a `$ref` at `pointer` refers to, inside this document."""
        uri, fragment = urldefrag(reference)
        if uri and uri != urldefrag(self._base_uri)[0]:
            raise UnsupportedSchemaError(
                f"$ref {reference!r} leads outside the schema; only references into it are resolved",
                keyword="$ref",
                pointer=pointer,
            )
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            raise UnsupportedSchemaError(
                f"$ref {reference!r} names an anchor; only '#' and JSON pointers are resolved",
                keyword="$ref",
                pointer=pointer,
            )
        if not uri:
            self._check_scope(reference, pointer)
        target, value = "", self.root
        for token in fragment.split("/")[1:]:
            key = token.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and key in value:
                value = value[key]
            elif isinstance(value, list) and _ARRAY_INDEX.fullmatch(key) and int(key) < len(value):
                value = value[int(key)]
            else:
                raise InvalidSchemaError(f"$ref {reference!r} points at nothing", keyword="$ref", pointer=pointer)
            target = child_pointer(target, key)
        return target, value

    def _check_scope(self, reference: str, pointer: str) -> None:
        """A `$id` below the root changes what a reference under it is relative to; that is not supported."""
        value = self.root
        for token in pointer.split("/")[1:]:
            key = token.replace("~1", "/").replace("~0", "~")
            value = value[int(key)] if isinstance(value, list) else value[key]
            nested_id = value.get(self.dialect.id_keyword) if isinstance(value, dict) else None
            if isinstance(nested_id, str) and not nested_id.startswith("#"):
                raise UnsupportedSchemaError(
                    f"$ref {reference!r} lies below the nested {self.dialect.id_keyword} {nested_id!r}",
                    keyword="$ref",
                    pointer=pointer,
                )


def schema_text(schema: str | bool | Mapping[str, Json], limits: Limits) -> str:
    """The schema as JSON text no longer than the limit."""
    if isinstance(schema, str):
        text = schema
    else:
        try:
            text = json.dumps(schema, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        except RecursionError:
            raise LimitExceededError(f"the schema is nested deeper than the limit of {limits.max_depth}") from None
        except (TypeError, ValueError) as error:
            raise InvalidSchemaError(f"the schema is not JSON: {error}") from None
    # A string has at least as many UTF-8 bytes as characters, and the encoding is worth avoiding when it is huge.
    size = len(text) if len(text) > limits.max_schema_bytes else len(text.encode("utf-8", "surrogatepass"))
    if size > limits.max_schema_bytes:
        raise LimitExceededError(
            f"the schema has {size} bytes; the limit is {limits.max_schema_bytes} (max_schema_bytes)"
        )
    return text


def child_pointer(pointer: str, key: str | int) -> str:
    """The RFC 6901 pointer one step below."""
    return f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}"


def _parse(text: str, limits: Limits) -> Json:
    def unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        keys = dict(pairs)
        if len(keys) < len(pairs):
            repeated = next(key for index, (key, _) in enumerate(pairs) if any(key == k for k, _ in pairs[:index]))
            raise InvalidSchemaError(f"the schema repeats the key {repeated!r} in one object")
        return keys

    def refuse_constant(name: str) -> Json:
        raise InvalidSchemaError(f"the schema contains {name}, which is not JSON")

    def finite(number: str) -> float:
        value = float(number)
        if not math.isfinite(value):
            raise InvalidSchemaError(f"the schema contains {number[:40]}, which no finite double holds")
        return value

    too_deep = f"the schema is nested deeper than the limit of {limits.max_depth} (max_depth)"
    try:
        root = json.loads(text, object_pairs_hook=unique, parse_constant=refuse_constant, parse_float=finite)
    except RecursionError:
        raise LimitExceededError(too_deep) from None
    except ValueError as error:
        raise InvalidSchemaError(f"the schema is not JSON: {error}") from None
    level = [root]
    for _ in range(limits.max_depth):
        level = [
            child
            for value in level
            if isinstance(value, (dict, list))
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            break
    if any(isinstance(value, (dict, list)) for value in level):
        raise LimitExceededError(too_deep)
    if not isinstance(root, (dict, bool)):
        raise InvalidSchemaError(f"a schema is an object or a boolean, not {type_name(root)}")
    return root


def _dialect(root: Json) -> Dialect:
    uri = root.get("$schema") if isinstance(root, dict) else None
    if uri is None:
        return Dialect()
    if not isinstance(uri, str):
        raise InvalidSchemaError(f"$schema is {type_name(uri)}, not a string", keyword="$schema")
    known = _SCHEMA_URI.fullmatch(uri)
    if known is None:
        return Dialect()
    draft = known[1]
    if draft == "draft-03":
        raise UnsupportedSchemaError("draft 3 is not supported; draft 4 and later are", keyword="$schema")
    number = _LEGACY_DRAFTS.get(draft, 8)
    return Dialect(
        ref_hides_siblings=number <= 7,
        whole_floats_are_integers=number > 4,
        id_keyword="id" if number == 4 else "$id",
    )


def type_name(value: Json) -> str:
    """The JSON type of a parsed value, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"
