"""SchemaDocument: a schema as checked plain data, its dialect, and what its references point to.

The text is parsed before anything looks at it, so that whatever the caller handed in (a dict with tuples, cycles
or NaN) becomes plain JSON or a named error, and every limit on its size holds before any walk of it. No walk here
or later recurses: depth is a limit, not a stack overflow.
"""

from __future__ import annotations

import functools
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, cast
from urllib.parse import unquote

import attrs
import jsonschema_specifications
import msgspec
import referencing
import referencing.exceptions
import referencing.jsonschema

from specdec.grammars.errors import InvalidSchemaError, LimitExceededError, UnsupportedSchemaError
from specdec.grammars.limits import Limits

# A schema's values are whatever JSON holds; each use checks the shape it needs.
Json = Any

_DRAFTS = {"draft-04": 4, "draft-06": 6, "draft-07": 7, "draft/2019-09": 8, "draft/2020-12": 9}
_SCHEMA_URI = re.compile(r"https?://json-schema\.org/(draft-0[3467]|draft/20(?:19-09|20-12))/(?:hyper-)?schema#?")
_DRAFT_2019, _DRAFT_2020 = 8, 9
_BASE_SPECIFICATIONS = {
    4: referencing.jsonschema.DRAFT4,
    6: referencing.jsonschema.DRAFT6,
    7: referencing.jsonschema.DRAFT7,
    8: referencing.jsonschema.DRAFT201909,
    9: referencing.jsonschema.DRAFT202012,
}
_SUBSCHEMAS = frozenset({
    "additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not",
    "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
})  # fmt: skip
_LISTS_OF_SUBSCHEMAS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
_NAMED_SUBSCHEMAS = frozenset({
    "$defs", "definitions", "dependentSchemas", "dependencies", "patternProperties", "properties",
})  # fmt: skip
_DEEPEST_PARSED = 800
"""Nesting that Python's JSON parser takes below any usual stack of calls."""
_ABSENT_BASE = "urn:specdec:schema"
_DYNAMIC = ("$dynamicRef", "$recursiveRef")


class Dialect(msgspec.Struct, frozen=True):
    """The rules that `$schema` selects: a draft by its order (4, 6, 7, 8 is 2019-09, 9 is 2020-12)."""

    draft: int = _DRAFT_2020
    is_named: bool = False
    """Without a `$schema` the rules are those of 2020-12, and older spellings that mean nothing there count as well."""

    @property
    def ref_hides_siblings(self) -> bool:
        """Up to draft 7 the keywords beside a `$ref` count for nothing."""
        return self.draft <= 7

    @property
    def floats_are_no_integers(self) -> bool:
        """Up to draft 4, 1.0 is no integer though 1 is: a whole number must then be spelt without a fraction."""
        return self.draft <= 4

    def knows(self, keyword: str) -> bool:
        """Whether the keyword constrains anything in this dialect."""
        first, last = _DRAFTS_OF_KEYWORD.get(keyword, (0, _DRAFT_2020))
        return first <= self.draft and (self.draft <= last or not self.is_named)


_DRAFTS_OF_KEYWORD = {
    "const": (6, 9), "contains": (6, 9), "propertyNames": (6, 9), "if": (7, 9), "minContains": (8, 9),
    "maxContains": (8, 9), "dependentRequired": (8, 9), "dependentSchemas": (8, 9), "unevaluatedProperties": (8, 9),
    "unevaluatedItems": (8, 9), "prefixItems": (9, 9), "$dynamicRef": (9, 9), "$recursiveRef": (8, 8),
    "dependencies": (4, 7), "additionalItems": (4, 8),
}  # fmt: skip
"""First and last draft of the keywords that not every draft has."""


class Place(NamedTuple):
    """A subschema where it stands: what it is, its pointer, and what references in it are relative to."""

    pointer: str
    schema: Json
    resolver: Resolver


class Resolver(Protocol):
    """What the referencing library knows at one place."""

    def lookup(self, ref: str) -> Any: ...  # the library's Resolved, typed there by a variable
    def in_subresource(self, subresource: Any) -> Any: ...
    def dynamic_scope(self) -> Any: ...


class SchemaDocument:
    """One schema text, parsed and within the limits, with the documents that it may refer to."""

    def __init__(self, text: str, limits: Limits, documents: Mapping[str, Json] | None = None) -> None:
        self.root = _parse(text, limits)
        self.dialect = _dialect(self.root)
        self.specification = _specification(self.dialect)
        self._pointers: dict[int, str] = {}
        self._others: dict[str, Json] = {
            uri: document if isinstance(document, bool) else _parse(schema_text(document, limits), limits)
            for uri, document in (documents or {}).items()
        }
        try:
            resource = self.specification.create_resource(self.root)
            base = resource.id() or _ABSENT_BASE
            others = [
                (uri, referencing.Resource.from_contents(value, default_specification=self.specification))
                for uri, value in self._others.items()
            ]
            registry = referencing.jsonschema.SchemaRegistry().with_resources([*others, (base, resource)])
            registry = jsonschema_specifications.REGISTRY.combine(registry).crawl()
        except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
            raise InvalidSchemaError(f"the schema's $id cannot be read: {error}", keyword="$id") from None
        self.start = Place("", self.root, registry.resolver(base_uri=base))
        self._has_dynamic_references = "json-schema.org/draft/20" in text or any(
            word in holder
            for document in (self.root, *self._others.values())
            for holder in _objects(document)
            for word in _DYNAMIC
        )

    def child(self, place: Place, *keys: str | int) -> Place:
        """The subschema some keys below a place."""
        value, pointer = place.schema, place.pointer
        for key in keys:
            value, pointer = value[key], child_pointer(pointer, key)
        return Place(pointer, value, self._enter(place.resolver, value))

    def resolve(self, reference: Json, place: Place, keyword: str) -> Place:
        """Where a reference leads: inside the schema or to one of the documents, never to the network."""
        pointer = child_pointer(place.pointer, keyword)
        if not isinstance(reference, str):
            raise InvalidSchemaError(
                f"{keyword} is {type_name(reference)}, not a string", keyword=keyword, pointer=pointer
            )
        try:
            if keyword == "$recursiveRef":
                resolved = referencing.jsonschema.lookup_recursive_ref(cast("Any", place.resolver))
            else:
                resolved = place.resolver.lookup(reference)
        except referencing.exceptions.Unresolvable as error:
            if isinstance(error, referencing.exceptions.PointerToNowhere):
                raise InvalidSchemaError(
                    f"{keyword} {reference!r} points at nothing", keyword=keyword, pointer=pointer
                ) from None
            if isinstance(error, (referencing.exceptions.NoSuchAnchor, referencing.exceptions.InvalidAnchor)):
                raise InvalidSchemaError(
                    f"{keyword} {reference!r} names no anchor of the schema", keyword=keyword, pointer=pointer
                ) from None
            raise UnsupportedSchemaError(
                f"{keyword} {reference!r} leads outside the schema; hand the document in as `documents`, nothing is "
                "fetched",
                keyword=keyword,
                pointer=pointer,
            ) from None
        except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
            raise InvalidSchemaError(
                f"{keyword} {reference!r} cannot be followed: {error}", keyword=keyword, pointer=pointer
            ) from None
        value = resolved.contents
        target = reference[1:] if reference.startswith("#/") or reference == "#" else reference
        return Place(self._pointers.setdefault(id(value), unquote(target)), value, resolved.resolver)

    def is_of_another_draft(self, document: dict[str, Json]) -> bool:
        """Whether a subschema, or a document that is referred to, is to be read by other rules than the schema."""
        uri = document.get("$schema")
        known = _SCHEMA_URI.fullmatch(uri) if isinstance(uri, str) else None
        if known is None or document is self.root:
            return False
        # The metaschemas themselves say the same in every draft that can read them.
        own = document.get("$id", document.get("id"))
        return _DRAFTS.get(known[1]) != self.dialect.draft and not (isinstance(own, str) and _SCHEMA_URI.fullmatch(own))

    @functools.cached_property
    def has_canonical_numbers(self) -> bool:
        """Whether a whole number must have no fraction: where 1.0 is no integer, and some place asks for integers."""
        return self.dialect.floats_are_no_integers and any(
            holder.get("type") == "integer"
            or (isinstance(holder.get("type"), list) and "integer" in holder["type"])
            or "json-schema.org" in str(holder.get("$ref"))
            for document in (self.root, *self._others.values())
            for holder in _objects(document)
        )

    def scope(self, place: Place) -> Hashable:
        """What, beside the subschema itself, its dynamic references depend on."""
        if not self._has_dynamic_references:
            return ()
        return tuple(dict.fromkeys(uri for uri, _ in place.resolver.dynamic_scope()))

    def _enter(self, resolver: Resolver, value: Json) -> Resolver:
        keyword = "id" if self.dialect.draft == 4 else "$id"
        if not isinstance(value, dict) or not isinstance(value.get(keyword), str):
            return resolver
        entered: Resolver = resolver.in_subresource(self.specification.create_resource(value))
        return entered


def _specification(dialect: Dialect) -> referencing.Specification[Json]:
    """The library's rules of a draft, with a search for subschemas that passes over what is malformed.

    What is malformed is reported where it is lowered, with its place.
    """

    def subresources_of(contents: Json) -> Iterator[Json]:
        if not isinstance(contents, dict) or (dialect.ref_hides_siblings and "$ref" in contents):
            return
        for keyword, value in contents.items():
            if not dialect.knows(keyword):
                continue
            members: list[Json] = [value] if keyword in _SUBSCHEMAS else []
            if keyword in _LISTS_OF_SUBSCHEMAS and isinstance(value, list):
                members = value
            elif keyword in _NAMED_SUBSCHEMAS and isinstance(value, dict):
                members = list(value.values())
            yield from (member for member in members if isinstance(member, dict))

    # The library's class is an attrs class behind a decorator of its own, which type checkers do not see through.
    base = cast("Any", _BASE_SPECIFICATIONS[dialect.draft])
    specification: referencing.Specification[Json] = attrs.evolve(base, subresources_of=subresources_of)
    return specification


def _objects(document: Json) -> Iterator[dict[str, Json]]:
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield value
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


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
            repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
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
        if limits.max_depth >= _DEEPEST_PARSED:
            too_deep = (
                f"the schema is nested deeper than its parser goes, which is {_DEEPEST_PARSED} to "
                f"{sys.getrecursionlimit()} levels whatever max_depth is"
            )
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
    return Dialect(_DRAFTS[draft], is_named=True)


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
